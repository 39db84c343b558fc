"""Generated tasks whose best possible loss is known exactly, and comes with the data."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.tasks._check import check
from shared.tasks.associative import (
    ALPHABET,
    Guesser,
    Retrieval,
    RetrievalFloors,
    retrieval,
    retrieval_floors,
    to_text,
)
from shared.tasks.dialects import HABITS, DialectFloors, Dialects, dialect_floors, reber_dialects
from shared.tasks.grammar import (
    EMBEDDED_REBER,
    LETTERS,
    REBER,
    Reber,
    ReberFloors,
    ReberStrings,
    is_reber,
    reber,
    reber_floors,
    reber_strings,
)
from shared.tasks.repeated import RepeatCopy, RepeatCopyFloors, repeat_copy, repeat_copy_floors

__all__ = [
    "ALPHABET",
    "EMBEDDED_REBER",
    "HABITS",
    "LAGS",
    "LETTERS",
    "REBER",
    "Adding",
    "AddingFloors",
    "Copy",
    "CopyFloors",
    "DialectFloors",
    "Dialects",
    "Echo",
    "EchoFloors",
    "Guesser",
    "Reber",
    "ReberFloors",
    "ReberStrings",
    "RepeatCopy",
    "RepeatCopyFloors",
    "Retrieval",
    "RetrievalFloors",
    "adding",
    "adding_floors",
    "copy_floors",
    "copy_memory",
    "dialect_floors",
    "echo",
    "echo_chance",
    "echo_floor",
    "echo_floors",
    "is_reber",
    "reber",
    "reber_dialects",
    "reber_floors",
    "reber_strings",
    "repeat_copy",
    "repeat_copy_floors",
    "retrieval",
    "retrieval_floors",
    "to_text",
]

LAGS = (3, 8)  # the two steps back that a target of the echo task depends on


class EchoFloors(NamedTuple):
    """The lowest expected cross-entropy, in nats a step, of a model that knows neither, one, or both of the lags."""

    none: float
    only_8: float
    only_3: float
    both: float


class Echo(NamedTuple):
    """Inputs (one-hot), targets (0 or 1), and the floors that no model can beat on average."""

    inputs: Float[Tensor, "time batch 2"]
    targets: Int[Tensor, "time batch"]
    floors: EchoFloors


def echo_chance(bit_3: float | Tensor, bit_8: float | Tensor) -> float | Tensor:
    """The chance that the target is 1, given the inputs (0 or 1) three and eight steps ago."""
    return 0.5 + 0.5 * bit_3 - 0.25 * bit_8


def echo(length: int, batch_size: int, generator: torch.Generator) -> Echo:
    """Draw the echo task of R2RT, "Recurrent Neural Networks in Tensorflow I" (2016).

    Each input is a fair coin; the target at step t is 1 with chance 0.5 + 0.5·x[t−3] − 0.25·x[t−8]. The inputs before
    the first step are drawn too but not shown (the post's generator takes them from the end of its array), so the first
    eight targets depend on what no model can see: the first three have the floor `none`, the next five `only_3`.

    Raises ValueError if `length` or `batch_size` is not a whole number of at least 1, and TypeError if `generator` is
    not a torch.Generator.
    """
    for name, size in (("length", length), ("batch_size", batch_size)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1 (got {size!r})")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator (got {generator!r})")
    longest, where = max(LAGS), generator.device
    bits = torch.randint(2, (longest + length, batch_size), generator=generator, device=where)
    ago_3, ago_8 = (bits[longest - lag : longest - lag + length] for lag in LAGS)
    targets = torch.rand(length, batch_size, generator=generator, device=where) < echo_chance(ago_3, ago_8)
    inputs = torch.nn.functional.one_hot(bits[longest:], 2).float()
    return Echo(inputs, targets.long(), echo_floors())


def echo_floor(known: Iterable[int]) -> float:
    """The expected cross-entropy, in nats a step, of the best model that uses only the inputs `known` steps ago.

    Enumerates the inputs that matter: for each value of the known ones the best prediction is the mean chance over the
    others, and its cross-entropy is the entropy of that mean. A lag that does not matter lowers nothing.
    """
    known = set(known)
    chances: dict[tuple, list[float]] = {}
    for bits in itertools.product((0, 1), repeat=len(LAGS)):
        seen = tuple(bit for lag, bit in zip(LAGS, bits, strict=True) if lag in known)
        chances.setdefault(seen, []).append(echo_chance(*bits))
    return sum(_entropy(sum(group) / len(group)) for group in chances.values()) / len(chances)


def echo_floors() -> EchoFloors:
    """The floors of the echo task: for a model that knows neither lag, only t−8, only t−3, and both."""
    return EchoFloors(none=echo_floor(()), only_8=echo_floor((8,)), only_3=echo_floor((3,)), both=echo_floor((3, 8)))


def _entropy(chance: float) -> float:
    """Of a coin that shows 1 with this chance, in nats."""
    return -sum(p * math.log(p) for p in (chance, 1 - chance) if p > 0)


class AddingFloors(NamedTuple):
    """The lowest expected squared error of a model that knows neither of the two marked values, only the values and not
    the marks (it predicts the sum of the means of the two halves), one of the two and no more, or both."""

    none: float
    no_marks: float
    one: float
    both: float


class Adding(NamedTuple):
    """Inputs (a value and a mark a step), targets (one a sequence), and the floors of the mean squared error."""

    inputs: Float[Tensor, "time batch 2"]
    targets: Float[Tensor, " batch"]
    floors: AddingFloors


def adding(length: int, batch_size: int, generator: torch.Generator) -> Adding:
    """Draw the adding problem of Hochreiter and Schmidhuber (1997) in the form of Arjovsky, Shah and Bengio (2016).

    A step shows a value, uniform on [0, 1), and a mark, which is 1 at exactly two steps and else 0: one step drawn
    evenly from the first `length // 2`, one from the rest. The target is the sum of the two marked values, without
    scaling; only the output at the last step counts. (In 1997 the values were uniform on [−1, 1], the first mark fell
    among the first ten steps, lengths varied and the target was 0.5 + sum/4.)

    Raises ValueError if `length` is not a whole number of at least 2 or `batch_size` one of at least 1, and TypeError if
    `generator` is not a torch.Generator.
    """
    check(generator, length=(length, 2), batch_size=(batch_size, 1))
    half, where = length // 2, generator.device
    values = torch.rand(length, batch_size, generator=generator, device=where)
    first = torch.randint(half, (1, batch_size), generator=generator, device=where)
    second = torch.randint(half, length, (1, batch_size), generator=generator, device=where)
    marks = torch.zeros_like(values).scatter_(0, torch.cat((first, second)), 1.0)
    return Adding(torch.stack((values, marks), -1), (values * marks).sum(0), adding_floors(length))


def adding_floors(length: int) -> AddingFloors:
    """The floors of the adding problem: a value has the variance 1/12, one of n that are seen, but not told apart, has
    (1 − 1/n)/12 around their mean."""
    halves = (length // 2, length - length // 2)
    return AddingFloors(none=1 / 6, no_marks=sum((1 - 1 / n) / 12 for n in halves), one=1 / 12, both=0.0)


class CopyFloors(NamedTuple):
    """The lowest expected cross-entropy, in nats a step, of a model that knows neither when to answer nor what, only
    when, or both."""

    none: float
    when: float
    both: float


class Copy(NamedTuple):
    """Inputs (one-hot: symbols, blank, cue), targets (class indices: symbols, blank), and the floors."""

    inputs: Float[Tensor, "time batch symbols_and_2"]
    targets: Int[Tensor, "time batch"]
    floors: CopyFloors


def copy_memory(delay: int, batch_size: int, generator: torch.Generator, symbols: int = 8, count: int = 10) -> Copy:
    """Draw the copy memory task of Arjovsky, Shah and Bengio (2016), of `delay + 2 * count` steps.

    Inputs, from step 0 on: `count` symbols (each drawn evenly from 0 … `symbols` − 1), `delay` − 1 blanks (`symbols`),
    the cue (`symbols` + 1) at step `count + delay - 1`, `count` blanks. Targets: blank up to and including the step of
    the cue, then the symbols in their order, so that each is wanted `count + delay` steps after it was shown.

    Raises ValueError if a size is not a whole number of at least 1, and TypeError if `generator` is not a
    torch.Generator.
    """
    check(generator, delay=(delay, 1), batch_size=(batch_size, 1), symbols=(symbols, 1), count=(count, 1))
    shown = torch.randint(symbols, (count, batch_size), generator=generator, device=generator.device)
    blanks = torch.full((count + delay, batch_size), symbols, device=generator.device)
    inputs, targets = torch.cat((shown, blanks)), torch.cat((blanks, shown))
    inputs[count + delay - 1] = symbols + 1
    one_hot = torch.nn.functional.one_hot(inputs, symbols + 2).float()
    return Copy(one_hot, targets, copy_floors(delay, symbols, count))


def copy_floors(delay: int, symbols: int = 8, count: int = 10) -> CopyFloors:
    """The floors of the copy memory task: the one that knows when to answer pays ln `symbols` for each symbol, the one
    that does not, the entropy of the classes over all steps."""
    answers = count / (delay + 2 * count)
    when = answers * math.log(symbols)
    return CopyFloors(none=_entropy(answers) + when, when=when, both=0.0)
