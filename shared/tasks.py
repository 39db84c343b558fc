"""Generated tasks whose best possible loss is known exactly, and comes with the data."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
