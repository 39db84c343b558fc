"""Repeat copy: a few symbols, then a number. Say them again as often as that."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.tasks._check import check


class RepeatCopyFloors(NamedTuple):
    """The lowest expected cross-entropy, in nats a step, of a model that knows neither when to answer nor what, only when,
    only what (and where in the sequence it is, but not how often to repeat), or all."""

    none: float
    when: float
    what: float
    both: float


class RepeatCopy(NamedTuple):
    """Inputs (one-hot: symbols, blank, cue; and last the count, at the cue), targets (class indices: symbols, blank), how often
    each sequence is to be said, and the floors."""

    inputs: Float[Tensor, "time batch symbols_and_3"]
    targets: Int[Tensor, "time batch"]
    repeats: Int[Tensor, " batch"]
    floors: RepeatCopyFloors


def repeat_copy(
    most: int, batch_size: int, generator: torch.Generator, symbols: int = 8, count: int = 3, least: int = 1
) -> RepeatCopy:
    """Draw a repeat-copy task of `count + 1 + most * count` steps, after the task of that name for neural Turing
    machines (Graves, Wayne and Danihelka, 2014); the form is this book's.

    Inputs, from step 0 on: `count` symbols (each drawn evenly from 0 … `symbols` − 1), the cue (`symbols` + 1) at step `count`,
    then blanks (`symbols`). How often the symbols are to be said is drawn evenly from `least` … `most` for each sequence and shown
    with the cue, as a last input of a tenth for each time, which is 0 elsewhere. Targets: blank up to and including the step of
    the cue, then the symbols in their order, as often as that, then blanks.

    Raises ValueError if a size is not a whole number of at least 1 or `most` is below `least`, and TypeError if `generator` is
    not a torch.Generator.
    """
    check(generator, least=(least, 1), batch_size=(batch_size, 1), symbols=(symbols, 1), count=(count, 1))
    check(generator, most=(most, least))
    where = generator.device
    shown = torch.randint(symbols, (count, batch_size), generator=generator, device=where)
    repeats = torch.randint(least, most + 1, (batch_size,), generator=generator, device=where)
    steps = torch.arange(most * count, device=where)[:, None]
    answers = torch.where(steps < count * repeats, shown.repeat(most, 1), symbols)
    silent = torch.full((count + 1, batch_size), symbols, device=where)
    inputs = torch.cat((shown, torch.full_like(answers, symbols)[:1] + 1, torch.full_like(answers, symbols)))
    number = torch.zeros(len(inputs), batch_size, 1, device=where)
    number[count, :, 0] = repeats / 10
    one_hot = torch.nn.functional.one_hot(inputs, symbols + 2).float()
    floors = repeat_copy_floors(most, symbols, count, least)
    return RepeatCopy(torch.cat((one_hot, number), -1), torch.cat((silent, answers)), repeats, floors)


def repeat_copy_floors(most: int, symbols: int = 8, count: int = 3, least: int = 1) -> RepeatCopyFloors:
    """The floors of repeat copy.

    Who knows when to answer pays ln `symbols` for each answer, and who knows nothing also the entropy of whether one is due,
    over all steps. Who knows the symbols but not the number pays, in each step of the kth time, for whether there is one: since all
    numbers are equally likely, its chance is (most − k + 1)/(most − least + 1), at most 1.
    """
    steps = count + 1 + most * count
    answers = count * (least + most) / 2 / steps
    when = answers * math.log(symbols)
    chances = [min(1.0, (most - k + 1) / (most - least + 1)) for k in range(1, most + 1)]
    return RepeatCopyFloors(
        none=_entropy(answers) + when, when=when, what=count * sum(map(_entropy, chances)) / steps, both=0.0
    )


def _entropy(chance: float) -> float:
    return -sum(p * math.log(p) for p in (chance, 1 - chance) if p > 0)
