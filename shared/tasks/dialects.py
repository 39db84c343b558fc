"""Which dialect of the embedded Reber grammar is it? Strings to classify, with the exact posterior after each letter."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.tasks._check import check
from shared.tasks.grammar import REBER, _reber_tables

HABITS = (0.3, 0.5, 0.7)  # of each dialect: the chance of the way that REBER lists first, where there are two
WILDEST = 0.9  # with which a string has 74 letters on average; the floors take a second or two, beyond it much longer
NEGLECTED = 1e-15  # the chance of strings too long to be counted in the floors


class DialectFloors(NamedTuple):
    """What no model can beat on average. Of the label given the whole string: the lowest expected cross-entropy in nats,
    the highest expected accuracy, and this given that the string has so many letters. Of the label given the letters
    up to and including step t (from 0): the accuracy over the strings that have a step t, and cross-entropy and
    accuracy over all steps of all strings together."""

    loss: float
    accuracy: float
    accuracy_at_length: dict[int, float]
    accuracy_after: Float[Tensor, " letters"]
    step_loss: float
    step_accuracy: float


class Dialects(NamedTuple):
    """Strings as indices into LETTERS, the dialect of each, its exact log posterior (nats) after each letter, so that
    the last row is given the whole string, and the floors."""

    strings: list[Int[Tensor, " letters"]]
    labels: Int[Tensor, " count"]
    log_posteriors: list[Float[Tensor, "letters dialects"]]
    floors: DialectFloors


def reber_dialects(count: int, generator: torch.Generator, habits: Sequence[float] = HABITS) -> Dialects:
    """Draw strings of the embedded Reber grammar in dialects that take its ways with different chances.

    Each dialect is as likely as the others. Dialect d takes, at each node of the inner grammar, the way that REBER lists
    first with the chance `habits[d]`: T, then S and T (the loops), X, P. The second letter, T or P, stays fair, and with
    it all that is embedded: it says nothing of the dialect.

    All dialects have the same strings, of 9 letters or more; one in which the first way was taken a times and the second
    b times has a + b + 6, and in dialect d the chance ½ p^a (1 − p)^b with p = `habits[d]`. So its label can only be
    guessed, and a and b are all that matters. With the default habits the mean lengths are 10.1, 12 and 17.8, and one
    string in 1,300 has more than 60 letters.

    Raises ValueError if `count` is not a whole number of at least 1 or `habits` are not at least two different numbers
    above 0 and at most 0.9, and TypeError if `generator` is not a torch.Generator.
    """
    check(generator, count=(count, 1))
    floors, where = dialect_floors(habits), generator.device
    tables = _reber_tables(where)
    labels = torch.randint(len(habits), (count,), generator=generator, device=where)
    first = torch.tensor(habits, device=where)[labels]
    ways, state = labels.new_zeros(0, count), torch.zeros_like(labels)
    while not bool(
        (ends := tables.follow[ways] == 0).any(0).all()
    ):  # on, past the first end of some, till all have one
        chances = torch.rand(16, count, generator=generator, device=where)
        more = (chances >= first).long()
        if len(ways) == 0:
            more[1] = chances[1] >= 0.5  # the fork
        for way in more.unbind(0):  # each a view, to which the state is added in place
            state = tables.follow[way.add_(state)]
        ways = torch.cat((ways, more))
    lengths = ends.int().argmax(0) + 1  # up to the first end; what came after it is left
    used = torch.arange(len(ways), device=where) < lengths[:, None]

    chosen = (tables.possible.sum(-1) == 2)[ways // 2]
    chosen[1] = False
    a, b = ((chosen & (ways % 2 == way)).cumsum(0).T[used].cpu() for way in (0, 1))
    log_posteriors = _log_posteriors(a, b, habits).float().to(where)
    sizes = lengths.tolist()
    return Dialects(list(tables.letter[ways.T[used]].split(sizes)), labels, list(log_posteriors.split(sizes)), floors)


def dialect_floors(habits: Sequence[float] = HABITS) -> DialectFloors:
    """The floors of the dialects, exact but for the strings beyond some length, which have a total chance below 1e-15.

    Goes through the inner grammar a letter at a time with the chances of each dialect, node and count of first ways.
    The best guess is the dialect with the highest posterior, which depends on the counts alone.

    Raises ValueError if `habits` are not at least two different numbers above 0 and at most 0.9.
    """
    habits = tuple(habits)
    right = all(isinstance(habit, float) and 0 < habit <= WILDEST for habit in habits)
    if not right or len(set(habits)) != len(habits) or len(habits) < 2:
        raise ValueError(f"habits must be at least two different numbers above 0 and at most {WILDEST} (got {habits})")
    floors = _dialect_floors(habits)
    return floors._replace(
        accuracy_at_length=dict(floors.accuracy_at_length), accuracy_after=floors.accuracy_after.clone()
    )


@functools.lru_cache(maxsize=16)
def _dialect_floors(habits: tuple[float, ...]) -> DialectFloors:
    p = torch.tensor(habits, dtype=torch.float64)[:, None, None]
    first, second = torch.tensor([list(REBER[node].values()) for node in range(1, 6)]).T  # from those with two ways
    joint = torch.zeros(len(habits), len(REBER) + 1, 1, dtype=torch.float64)  # of dialect, node, first ways taken
    joint[:, 1] = 1 / len(habits)
    passing, ended = [], []  # for each number n of letters chosen, in rows: chance, chance of a right guess, nats
    while True:
        a = torch.arange(joint.shape[-1])
        log_posteriors = _log_posteriors(a, a.flip(0), habits).T
        for rows, here in ((passing, joint.sum(1)), (ended, joint[:, 6])):
            rows.append(torch.stack((here.sum(), here.amax(0).sum(), -(here * log_posteriors).sum())))
        if joint[:, :6].sum() < NEGLECTED:  # before the last letter chosen
            break
        before, joint = joint, joint.new_zeros(*joint.shape[:2], len(a) + 1)
        joint[..., 1:].index_add_(1, first, p * before[:, 1:6])
        joint[..., :-1].index_add_(1, second, (1 - p) * before[:, 1:6])
    passing, ended = torch.stack(passing), torch.stack(ended)
    _, accuracy, loss = ended.sum(0).tolist()
    # Before the first choice come B, T or P, and B; after the last, E, T or P, and E, which change nothing.
    steps = torch.cat((passing[:1], passing[:1], passing))
    for later in (1, 2, 3):
        steps[2 + later :] += ended[:-later]
    number, right, nats = steps.sum(0).tolist()
    return DialectFloors(
        loss=loss,
        accuracy=accuracy,
        accuracy_at_length={n + 6: guess / chance for n, (chance, guess, _) in enumerate(ended.tolist()) if chance > 0},
        accuracy_after=steps[:, 1] / steps[:, 0],
        step_loss=nats / number,
        step_accuracy=right / number,
    )


def _log_posteriors(a: Int[Tensor, " n"], b: Int[Tensor, " n"], habits: Sequence[float]) -> Float[Tensor, "n dialects"]:
    """Of the dialects, in nats, when the first way was taken a times and the second b times."""
    first = torch.tensor([math.log(p) for p in habits], dtype=torch.float64)
    second = torch.tensor([math.log1p(-p) for p in habits], dtype=torch.float64)
    return torch.log_softmax(a[:, None] * first + b[:, None] * second, -1)
