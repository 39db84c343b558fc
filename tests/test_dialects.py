"""The dialects: their floors against every short string and large samples, their posteriors against the automaton."""

import collections
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tasks import STRING, seeded, spelt, z

from shared import tasks
from shared.tasks import EMBEDDED_REBER, LETTERS, dialect_floors, is_reber, reber_dialects

MILD = (0.1, 0.2, 0.25)  # with which hardly any string has more letters than are gone through below
DEPTH = 21  # letters


def chance(node, letter: str, habit: float) -> float:
    """Of this letter at this node, in the dialect with this habit."""
    ways = list(EMBEDDED_REBER[node])
    if len(ways) == 1 or node == "fork":
        return 1 / len(ways)
    return habit if letter == ways[0] else 1 - habit


def starts(habits):
    """For 1, 2, … DEPTH letters, all ways in which strings begin: the node that is next, and the chance of each dialect
    and this beginning together. A whole string is a beginning, which leads to the node "start", but no longer one."""
    found = [("start", [1 / len(habits)] * len(habits))]
    for length in range(1, DEPTH + 1):
        found = [
            (after, [p * chance(node, letter, habit) for p, habit in zip(joint, habits, strict=True)])
            for node, joint in found
            if node != "start" or length == 1
            for letter, after in EMBEDDED_REBER[node].items()
        ]
        yield found


def tally(joints) -> tuple[float, float, float]:
    """Of these strings: the chance that it is one of them, that also the best guess is right, and the expected nats."""
    if not joints:
        return 0, 0, 0
    joints = torch.tensor(joints, dtype=torch.float64)
    posterior = joints / joints.sum(1, keepdim=True)
    return float(joints.sum()), float(joints.amax(1).sum()), float(-torch.xlogy(joints, posterior).sum())


def mean_length(habit: float) -> float:
    """Σ_n (Pⁿ)[start, all] over the nodes, with P the chances to go from one to another before the string ends."""
    nodes = list(EMBEDDED_REBER)
    P = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for row, node in enumerate(nodes):
        for letter, after in EMBEDDED_REBER[node].items():
            if after != "start":
                P[row, nodes.index(after)] += chance(node, letter, habit)
    return float(torch.linalg.inv(torch.eye(len(nodes), dtype=torch.float64) - P)[0].sum())


@pytest.mark.parametrize("habits", [MILD, (0.15, 0.05), (0.05, 0.1, 0.2, 0.3)])
def test_floors_are_those_of_all_strings(habits):
    floors = dialect_floors(habits)
    wholes, passed = [], []
    for length, found in enumerate(starts(habits), 1):
        passed.append(tally([joint for _, joint in found]))
        share, right, _ = passed[-1]
        assert float(floors.accuracy_after[length - 1]) == pytest.approx(right / share, rel=1e-12)
        wholes.append(tally([joint for node, joint in found if node == "start"]))
        if length < 9:
            assert wholes[-1] == (0, 0, 0)
            assert length not in floors.accuracy_at_length
        else:
            share, right, _ = wholes[-1]
            assert floors.accuracy_at_length[length] == pytest.approx(right / share, rel=1e-12)

    # What is longer can add to the right guesses and the nats, but no more than all and the entropy of the labels.
    def between(value, least, more):
        return least - 1e-12 < value < least + more + 1e-12

    share, right, nats = map(sum, zip(*wholes, strict=True))
    assert 1 - share < 0.001
    assert between(floors.accuracy, right, 1 - share)
    assert between(floors.loss, nats, (1 - share) * math.log(len(habits)))
    steps, right, nats = map(sum, zip(*passed, strict=True))
    mean = sum(map(mean_length, habits)) / len(habits)
    assert mean - steps < 0.003
    assert between(floors.step_accuracy, right / mean, (mean - steps) / mean)
    assert between(floors.step_loss, nats / mean, (mean - steps) / mean * math.log(len(habits)))


def test_floors_by_hand():
    # There are two of nine letters for each fork: with TXS, of which only T is listed first, and with PVV.
    p, q = torch.tensor(tasks.HABITS, dtype=torch.float64), 1 - torch.tensor(tasks.HABITS, dtype=torch.float64)
    shortest = torch.stack((p * q * q, q * q * q))
    floors = dialect_floors()
    assert floors.accuracy_at_length[9] == pytest.approx(float(shortest.amax(1).sum() / shortest.sum()), rel=1e-12)
    assert floors.accuracy_after[:3].tolist() == pytest.approx([1 / 3] * 3)
    assert float(floors.accuracy_after[3]) == pytest.approx((0.7 + 0.7) / 3)
    assert 0.5 < floors.accuracy < 0.75
    assert floors.accuracy == pytest.approx(0.58030, abs=5e-6)
    assert floors.loss == pytest.approx(0.84763, abs=5e-6)
    assert floors.step_accuracy == pytest.approx(0.55023, abs=5e-6)
    assert floors.step_loss == pytest.approx(0.86095, abs=5e-6)


def test_dialects_that_hardly_differ_cannot_be_told_apart_and_the_order_of_habits_does_not_matter():
    floors = dialect_floors((0.5, 0.5 + 1e-9))
    assert floors.loss == pytest.approx(math.log(2), abs=1e-9)
    assert floors.step_accuracy == pytest.approx(0.5, abs=1e-8)
    one, other = dialect_floors((0.2, 0.6, 0.4)), dialect_floors([0.6, 0.4, 0.2])
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert one.step_accuracy == pytest.approx(other.step_accuracy, rel=1e-12)
    assert len(dialect_floors((0.1, 0.9)).accuracy_after) > 1000  # the wildest habit there can be


@pytest.fixture(scope="module", params=[tasks.HABITS, (0.15, 0.6)], ids=str)
def drawn(request):
    return request.param, reber_dialects(10_000, seeded(), request.param)


def test_strings_are_those_of_the_dialects(drawn):
    habits, (strings, labels, _, _) = drawn
    words = [spelt(string) for string in strings]
    assert all(STRING.fullmatch(word) for word in words)
    assert all(map(is_reber, strings))
    lengths = torch.tensor([len(word) for word in words], dtype=torch.float64)
    assert int(lengths.min()) == 9
    assert labels.dtype == torch.int64
    taken = collections.defaultdict(list)
    for word, label in zip(words, labels.tolist(), strict=True):
        node = "start"
        for letter in word:
            taken[label, node if isinstance(node, str) else node[1]].append(letter)
            node = EMBEDDED_REBER[node][letter]
    for d, habit in enumerate(habits):
        here = labels == d
        assert abs(z(here.double(), 1 / len(habits))) < 4
        assert abs(z(lengths[here], mean_length(habit))) < 4
        for node in range(1, 6):
            first = [letter == next(iter(tasks.REBER[node])) for letter in taken[d, node]]
            assert abs(z(torch.tensor(first).double(), habit)) < 4
        assert abs(z(torch.tensor([letter == "T" for letter in taken[d, "fork"]]).double(), 0.5)) < 4


def test_log_posteriors_are_those_of_the_automaton(drawn):
    habits, (strings, _, log_posteriors, _) = drawn
    assert len(strings) == len(log_posteriors) == 10_000
    for string, rows in zip(strings[:300], log_posteriors, strict=False):
        node, chances = "start", [1.0] * len(habits)
        assert rows.shape == (len(string), len(habits))
        assert rows.dtype == torch.float32
        for letter, row in zip(spelt(string), rows, strict=True):
            chances = [p * chance(node, letter, habit) for p, habit in zip(chances, habits, strict=True)]
            expected = [math.log(p / sum(chances)) for p in chances]
            assert row.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
            node = EMBEDDED_REBER[node][letter]


def test_a_large_sample_has_the_floors_and_its_posteriors_keep_their_word(drawn):
    habits, (strings, labels, log_posteriors, floors) = drawn
    assert str(floors) == str(dialect_floors(habits))
    lengths = torch.tensor([len(string) for string in strings])
    last = torch.stack([rows[-1] for rows in log_posteriors]).double()
    right, nats = (last.argmax(1) == labels).double(), -last[torch.arange(len(labels)), labels]
    assert abs(z(right, floors.accuracy)) < 4
    assert abs(z(last.exp().amax(1), floors.accuracy)) < 4
    assert abs(z(nats, floors.loss)) < 4
    for d in range(len(habits)):  # calibrated: the label comes as often as its posterior says
        assert abs(z((labels == d).double() - last[:, d].exp(), 0.0)) < 4
    for length in (9, 11, 14):
        assert abs(z(right[lengths == length], floors.accuracy_at_length[length])) < 4
    for step in (3, 4, 6, 8, 10):
        row = torch.stack([rows[step] for rows in log_posteriors if len(rows) > step])
        expected = float(floors.accuracy_after[step])
        assert abs(z((row.argmax(1) == labels[lengths > step]).double(), expected)) < 4
        assert float(row.exp().amax(1).mean()) == pytest.approx(expected, abs=0.01)
    # A mean over all steps of all strings: the sum of what a string has, less the floor for each of its steps, has mean 0.
    each = [
        (
            float((rows.argmax(1) == label).double().sum()) - floors.step_accuracy * len(rows),
            float(-rows[:, label].sum()) - floors.step_loss * len(rows),
        )
        for rows, label in zip(log_posteriors, labels.tolist(), strict=True)
    ]
    for column in torch.tensor(each, dtype=torch.float64).unbind(1):
        assert abs(z(column, 0.0)) < 4


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 999), at=st.integers(0, 30), index=st.integers(0, 6), change=st.sampled_from("idrct"))
def test_is_reber_knows_the_strings_of_the_grammar(seed, at, index, change):
    string = tasks.reber_strings(1, seeded(seed)).strings[0]
    assert is_reber(string)
    letters = string.tolist()
    at %= len(letters)
    if change == "i":
        letters.insert(at, index)
    elif change == "d":
        del letters[at]
    elif change == "r":
        letters[at] = index
    elif change == "c":
        del letters[at:]
    else:
        letters += letters
    assert is_reber(torch.tensor(letters, dtype=torch.long)) == bool(
        STRING.fullmatch("".join(LETTERS[i] for i in letters))
    )


def test_is_reber_and_what_is_no_string():
    def spell(word):
        return torch.tensor([LETTERS.index(letter) for letter in word], dtype=torch.uint8)

    assert is_reber(spell("BTBTXSETE"))
    assert is_reber(spell("BPBPTTVPXVVEPE"))
    assert not is_reber(spell("BTBTXSEPE"))  # the other fork
    assert not is_reber(spell("BTXSE"))  # not embedded
    assert not is_reber(torch.tensor([], dtype=torch.long))
    for stranger in (-7, -1, 7, 100):  # -7 would be the B of LETTERS, counted from its end
        assert not is_reber(torch.tensor([stranger, *spell("TBTXSETE").tolist()]))
        assert not is_reber(torch.tensor([*spell("BTBTXSET").tolist(), stranger]))
    with pytest.raises(ValueError, match=r"^string must have one dimension \(got shape \(1, 2\)\)$"):
        is_reber(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(TypeError, match=r"^string must be a tensor of integers \(got torch\.float32\)$"):
        is_reber(torch.zeros(3))
    with pytest.raises(TypeError, match=r"^string must be a tensor of integers \(got str\)$"):
        is_reber("BTXSE")


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_the_generator_alone_decides(count, seed):
    torch.manual_seed(0)
    first = reber_dialects(count, seeded(seed))
    torch.manual_seed(1)
    assert str(reber_dialects(count, seeded(seed))) == str(first)
    assert len(first.strings) == len(first.labels) == len(first.log_posteriors) == count
    other = reber_dialects(50, seeded(seed + 1))
    assert str(other.strings) != str(reber_dialects(50, seeded(seed)).strings)


def test_floors_are_nobody_elses():
    floors = dialect_floors()
    floors.accuracy_after.zero_()
    floors.accuracy_at_length.clear()
    again = reber_dialects(1, seeded()).floors
    assert float(again.accuracy_after.min()) > 0.3
    assert again.accuracy_at_length


HABITS_ARE = "habits must be at least two different numbers above 0 and at most 0.9 (got "


@pytest.mark.parametrize(
    "habits",
    [(), (0.5,), (0.5, 0.3, 0.5), (0.0, 0.5), (0.5, 0.91), (0.5, 1.0), (-0.1, 0.5), (0.5, math.nan), (0.5, "3")],
)
def test_bad_habits_are_named(habits):
    for use in (dialect_floors, lambda habits: reber_dialects(1, seeded(), habits)):
        with pytest.raises(ValueError, match=f"^{re.escape(HABITS_ARE + str(habits))}\\)$"):
            use(habits)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_bad_counts_and_generators_are_named(count):
    with pytest.raises(ValueError, match=f"^count must be a whole number of at least 1 .*got {count!r}"):
        reber_dialects(count, seeded())
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator"):
        reber_dialects(1, None)
