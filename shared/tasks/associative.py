"""Associative retrieval: pairs of a letter and a digit, then a letter. Which digit stood beside it?"""

import functools
import math
import string
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from shared.tasks._check import check

LETTER_COUNT, DIGIT_COUNT = len(string.ascii_lowercase), len(string.digits)
ALPHABET = string.ascii_lowercase + string.digits + "?"  # in the order of the symbols' numbers


class Guesser(NamedTuple):
    """What no model with this knowledge can beat on average: cross-entropy in nats, and the share of wrong answers.

    Both belong to the best prediction, which gives each digit its chance; the answer is one with the largest chance.
    """

    loss: float
    error: float


class RetrievalFloors(NamedTuple):
    """The floors of a model that knows nothing of the string; the digit of one pair, always of the same place; how often
    each digit occurred, with or without the places; or which digit belongs to which letter."""

    none: Guesser
    one_digit: Guesser
    digits: Guesser
    binding: Guesser


class Retrieval(NamedTuple):
    """Strings as indices into ALPHABET, a column each; the digits that are asked for, 0 … 9; which pair each belongs to,
    from 0; and the floors."""

    symbols: Int[Tensor, "time batch"]
    targets: Int[Tensor, " batch"]
    answers: Int[Tensor, " batch"]
    floors: RetrievalFloors


def retrieval(pairs: int, count: int, generator: torch.Generator, *, letters: int = LETTER_COUNT) -> Retrieval:
    """Draw `count` strings of the associative retrieval task of Ba et al. (2016, section 4.1), `2 * pairs + 3` long.

    A string such as "c9k8j3f1??c", whose answer is 9, has `pairs` different letters with a digit after each, two question
    marks, and one of the letters again. All sets of letters from the first `letters` of the alphabet, in all orders, are
    equally likely, and so is each pair to be asked for. Digits are drawn uniformly *with replacement*: so a digit may
    occur twice, and the floors follow from it. The floors do not depend on `letters`.

    Raises ValueError if `letters` is not a whole number from 1 to 26, `pairs` one from 1 to `letters`, or `count` one of at
    least 1, and TypeError if `generator` is not a torch.Generator.
    """
    _check_range("letters", letters, LETTER_COUNT)
    _check_range("pairs", pairs, letters)
    check(generator, count=(count, 1))
    where = generator.device
    shuffled = torch.rand(count, letters, generator=generator, device=where).argsort(-1)
    keys = shuffled[:, :pairs].T
    values = torch.randint(DIGIT_COUNT, (pairs, count), generator=generator, device=where)
    answers = torch.randint(pairs, (count,), generator=generator, device=where)
    shown = torch.stack((keys, LETTER_COUNT + values), 1).flatten(0, 1)  # a letter, its digit, the next letter, …
    marks = torch.full((2, count), ALPHABET.index("?"), device=where)
    queries, targets = (table.gather(0, answers[None]) for table in (keys, values))
    return Retrieval(torch.cat((shown, marks, queries)), targets[0], answers, retrieval_floors(pairs))


def to_text(symbols: Int[Tensor, " time"]) -> str:
    """One string of the task, as "c9k8j3f1??c".

    Raises ValueError if `symbols` is not one-dimensional or one of them is not from 0 to 36, and TypeError if it is not a
    tensor of integers.
    """
    if not isinstance(symbols, Tensor) or symbols.is_floating_point() or symbols.dtype == torch.bool:
        got = getattr(symbols, "dtype", type(symbols).__name__)
        raise TypeError(f"symbols must be a tensor of integers (got {got})")
    if symbols.ndim != 1:
        raise ValueError(f"symbols must have one dimension, as one column has (got shape {tuple(symbols.shape)})")
    indices = symbols.tolist()
    for index in indices:
        if not 0 <= index < len(ALPHABET):
            raise ValueError(f"symbols must be from 0 to {len(ALPHABET) - 1} (got {index})")
    return "".join(ALPHABET[index] for index in indices)


def retrieval_floors(pairs: int) -> RetrievalFloors:
    """The floors of associative retrieval with `pairs` pairs, exact: nothing is drawn.

    Who knows which digits occurred, and not which letter each stood beside, gives a digit that occurred c times the chance
    c / `pairs`: the pair that is asked for is drawn evenly, whatever the digits are. To know their places as well is
    therefore no help. The mean over all 10^`pairs` strings is one over the partitions of `pairs`, since only the counts
    matter and not whose they are; there are 1,761 of them for 26 pairs.

    Who knows the digit of one pair answers it, right with the chance 1/`pairs` + (1 − 1/`pairs`)/10.

    Raises ValueError if `pairs` is not a whole number from 1 to 26.
    """
    _check_range("pairs", pairs, LETTER_COUNT)
    return _retrieval_floors(pairs)


@functools.cache
def _retrieval_floors(pairs: int) -> RetrievalFloors:
    right, losses = Fraction(0), []
    for counts in _partitions(pairs, DIGIT_COUNT):
        chance = Fraction(_strings(counts), DIGIT_COUNT**pairs)
        right += chance * counts[0] / pairs
        losses.append(chance * sum(count / pairs * math.log(pairs / count) for count in counts))
    known = Fraction(1, pairs) + Fraction(pairs - 1, pairs * DIGIT_COUNT)
    chances = [known] + [(1 - known) / (DIGIT_COUNT - 1)] * (DIGIT_COUNT - 1) * (known < 1)
    one_digit = sum(chance * math.log(1 / chance) for chance in chances)
    return RetrievalFloors(
        none=Guesser(math.log(DIGIT_COUNT), 1 - 1 / DIGIT_COUNT),
        one_digit=Guesser(one_digit, float(1 - known)),
        digits=Guesser(math.fsum(losses), float(1 - right)),
        binding=Guesser(0.0, 0.0),
    )


def _partitions(total: int, parts: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """The ways to write `total` as a sum of at most `parts` whole numbers of at least 1, the largest first."""
    if total == 0:
        yield ()
    elif parts > 0:
        for first in range(min(total, largest or total), 0, -1):
            for rest in _partitions(total - first, parts - 1, first):
                yield (first, *rest)


def _strings(counts: tuple[int, ...]) -> int:
    """How many strings of digits have these counts, in some order: which digits have them, times their arrangements."""
    absent = DIGIT_COUNT - len(counts)
    digits = math.factorial(DIGIT_COUNT) // math.prod(map(math.factorial, [*Counter(counts).values(), absent]))
    return digits * math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))


def _check_range(name: str, size: int, most: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most} (got {size!r})")
