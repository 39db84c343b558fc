"""The embedded Reber grammar: a stream or strings of letters, with floors computed from its automaton."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shared.tasks._check import check

LETTERS = "BTPSXVE"  # of the Reber grammar, in the order of their indices

# The Reber grammar. Row: a node, the letters that may be drawn there (equally likely) and the nodes they lead to.
# A string starts at node 0 and ends at node 7.
REBER = {
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": 7},
}

# The embedded one: B, T or P, a Reber string, the same one of T and P again, E. It holds the table above twice, since
# what came second can only be remembered as being in one copy or the other. After its E the next string starts.
EMBEDDED_REBER = {
    "start": {"B": "fork"},
    "fork": {"T": ("T", 0), "P": ("P", 0)},
    **{(fork, n): {a: (fork, m) for a, m in ways.items()} for fork in "TP" for n, ways in REBER.items()},
    **{(fork, 7): {fork: "last"} for fork in "TP"},
    "last": {"E": "start"},
}


class ReberFloors(NamedTuple):
    """The lowest expected cross-entropy, in nats, of a model that knows only how often each letter comes, the place in
    the string but not which of T and P came second (so that it guesses the decisive letter), or both."""

    none: float
    place: float
    both: float


class Reber(NamedTuple):
    """Inputs (one-hot), the letters that follow them, which letters could have, whether the one that does is the
    decisive one (the last but one of its string, equal to the second), and the floors in nats a letter."""

    inputs: Float[Tensor, "time batch 7"]
    targets: Int[Tensor, "time batch"]
    possible: Bool[Tensor, "time batch 7"]
    decisive: Bool[Tensor, "time batch"]
    floors: ReberFloors


class ReberStrings(NamedTuple):
    """Strings as indices into LETTERS, the floors in nats a string, and the expected length of a string."""

    strings: list[Int[Tensor, " letters"]]
    floors: ReberFloors
    mean_length: float


def reber(length: int, batch_size: int, generator: torch.Generator) -> Reber:
    """Draw the continual embedded Reber grammar of Gers, Schmidhuber and Cummins (2000): each column is an endless run
    of strings, the first from its beginning, with nothing to mark where one ends and no reset.

    Where a node has two ways, each has the chance 1/2. The floor `both` is the entropy rate of the source. The floors
    hold in the long run: over the first `length` letters, which begin with a string, `place` and `both` are off by less
    than 0.9 / `length` nats.

    Raises ValueError if `length` or `batch_size` is not a whole number of at least 1, and TypeError if `generator` is
    not a torch.Generator.
    """
    check(generator, length=(length, 1), batch_size=(batch_size, 1))
    tables = _reber_tables(generator.device)
    start = torch.zeros(batch_size, dtype=torch.long, device=generator.device)
    ways = _reber_walk(length + 1, start, generator, tables)
    letters, nodes = tables.letter[ways], ways[1:] // 2  # the node at which each target is drawn
    inputs = torch.nn.functional.one_hot(letters[:-1], len(LETTERS)).float()
    return Reber(inputs, letters[1:], tables.possible[nodes], tables.decisive[nodes], reber_floors())


def reber_strings(count: int, generator: torch.Generator) -> ReberStrings:
    """Draw separate strings of the embedded Reber grammar, of different lengths (at least 9 letters).

    The decisive letter is `string[-2]`, which equals `string[1]`. A model reads `string[:-1]` and predicts `string[1:]`;
    the floors are those of the sum over these, the first letter being given. Divided by `mean_length - 1` they are nats
    a predicted letter, if the mean is taken over the letters of all strings together.

    Raises ValueError if `count` is not a whole number of at least 1, and TypeError if `generator` is not a
    torch.Generator.
    """
    check(generator, count=(count, 1))
    tables = _reber_tables(generator.device)
    start = torch.zeros(count, dtype=torch.long, device=generator.device)
    ways = _reber_walk(16, start, generator, tables)
    while not bool(
        (ends := tables.follow[ways] == 0).any(0).all()
    ):  # on, past the first end of some, till all have one
        ways = torch.cat((ways, _reber_walk(16, tables.follow[ways[-1]], generator, tables)))
    lengths = ends.int().argmax(0) + 1  # up to the first end; what came after it is left
    used = torch.arange(len(ways), device=generator.device) < lengths[:, None]
    strings = tables.letter[ways.T[used]].split(lengths.tolist())
    visits = _reber_visits()
    return ReberStrings(list(strings), _reber_costs({**visits, "start": 0.0}), sum(visits.values()))


def reber_floors() -> ReberFloors:
    """The floors of the continual embedded Reber grammar, in nats a letter: the costs of one string by its length."""
    visits = _reber_visits()
    return ReberFloors(*(cost / sum(visits.values()) for cost in _reber_costs(visits)))


def _reber_visits() -> dict:
    """How often a string is expected to pass each node: v = start + v P, solved for v. Divided by their sum, the mean
    length, they are the stationary distribution of the endless run."""
    nodes = list(EMBEDDED_REBER)
    equations = torch.eye(len(nodes), dtype=torch.float64)
    for column, ways in enumerate(EMBEDDED_REBER.values()):
        for node in set(ways.values()) - {"start"}:
            equations[nodes.index(node), column] -= 1 / len(ways)
    start = torch.zeros(len(nodes), dtype=torch.float64)
    start[0] = 1
    return dict(zip(nodes, torch.linalg.solve(equations, start).tolist(), strict=True))


def _reber_costs(visits: dict) -> ReberFloors:
    """Expected cross-entropy, in nats, of the letters drawn on these visits, for three models that see of a node
    nothing, its place alone, or all: the best prediction is the mixture over the nodes that look the same."""

    def cost(seen) -> float:
        drawn: dict = {}
        for node, ways in EMBEDDED_REBER.items():
            letters = drawn.setdefault(seen(node), dict.fromkeys(LETTERS, 0.0))
            for letter in ways:
                letters[letter] += visits[node] / len(ways)
        return -sum(n * math.log(n / sum(group.values())) for group in drawn.values() for n in group.values() if n > 0)

    return ReberFloors(
        none=cost(lambda node: None),
        place=cost(lambda node: node[1] if isinstance(node, tuple) else node),
        both=cost(lambda node: node),
    )


class _ReberTables(NamedTuple):
    """EMBEDDED_REBER for table look-up. Node n has the ways 2n and 2n + 1, alike where there is only one; a state is
    twice a node, so that adding a fair bit to it gives the way taken."""

    letter: Int[Tensor, " ways"]
    follow: Int[Tensor, " ways"]  # the state to which it leads
    possible: Bool[Tensor, "nodes 7"]
    decisive: Bool[Tensor, " nodes"]


def _reber_tables(device: torch.device) -> _ReberTables:
    nodes = list(EMBEDDED_REBER)
    ways = [way for leave in EMBEDDED_REBER.values() for way in (list(leave.items()) * 2)[:2]]
    return _ReberTables(
        torch.tensor([LETTERS.index(letter) for letter, _ in ways], device=device),
        torch.tensor([2 * nodes.index(node) for _, node in ways], device=device),
        torch.tensor([[letter in leave for letter in LETTERS] for leave in EMBEDDED_REBER.values()], device=device),
        torch.tensor([node in (("T", 7), ("P", 7)) for node in nodes], device=device),
    )


def _reber_walk(
    steps: int, state: Int[Tensor, " batch"], generator: torch.Generator, tables: _ReberTables
) -> Int[Tensor, "steps batch"]:
    """The ways taken from `state` on."""
    ways = torch.randint(2, (steps, len(state)), generator=generator, device=generator.device)
    for way in ways.unbind(0):  # each a view: the fair bits become the ways in place
        state = tables.follow[way.add_(state)]
    return ways


def is_reber(string: Int[Tensor, " letters"]) -> bool:
    """Whether these indices into LETTERS are one whole string of the embedded Reber grammar, from its B to its last E.

    An index that is no letter makes it none, as does a string too short or too long.

    Raises ValueError if `string` is not one-dimensional, and TypeError if it is not a tensor of integers.
    """
    if not isinstance(string, Tensor) or string.is_floating_point() or string.dtype == torch.bool:
        raise TypeError(f"string must be a tensor of integers (got {getattr(string, 'dtype', type(string).__name__)})")
    if string.ndim != 1:
        raise ValueError(f"string must have one dimension (got shape {tuple(string.shape)})")
    node = "start"
    for position, index in enumerate(string.tolist()):
        letter = LETTERS[index] if 0 <= index < len(LETTERS) else None
        if letter not in EMBEDDED_REBER[node] or (node == "start" and position > 0):  # a second string begins
            return False
        node = EMBEDDED_REBER[node][letter]
    return node == "start" and len(string) > 0
