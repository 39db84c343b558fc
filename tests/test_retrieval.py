"""Associative retrieval: its floors against every string of digits and large samples, its strings by reading them."""

import collections
import fractions
import functools
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tasks import seeded, z

from shared.tasks import ALPHABET, retrieval, retrieval_floors, to_text


def best_guesser(pairs: int, seen) -> tuple[float, float]:
    """Loss (nats) and error of one who sees `seen(digits)`, by going through all digits, places asked for and answers."""
    groups = collections.defaultdict(collections.Counter)
    for digits in itertools.product(range(10), repeat=pairs):
        groups[seen(digits)].update(digits)  # each place is as likely to be asked for
    total = pairs * 10**pairs
    loss = error = 0.0
    for answers in groups.values():
        here = sum(answers.values())
        loss += sum(n * math.log(here / n) for n in answers.values()) / total
        error += (here - max(answers.values())) / total
    return loss, error


SEES = {  # the digits in their places: the letters, of which nothing is known, could only say which is asked for
    "none": lambda digits: None,
    "one_digit": lambda digits: digits[0],
    "digits": lambda digits: tuple(sorted(digits)),
}


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SEES)
def test_floors_are_those_of_all_strings(pairs, name):
    floor = getattr(retrieval_floors(pairs), name)
    assert tuple(floor) == pytest.approx(best_guesser(pairs, SEES[name]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("pairs", [1, 2, 3, 4])
def test_places_without_letters_are_no_help(pairs):
    assert best_guesser(pairs, tuple) == pytest.approx(tuple(retrieval_floors(pairs).digits), rel=1e-12, abs=1e-12)


def test_floors_by_hand():
    two, four, eight = (retrieval_floors(pairs) for pairs in (2, 4, 8))
    assert two.digits.error == 0.45  # they differ with the chance 9/10, and then it is a coin
    assert two.digits.loss == pytest.approx(0.9 * math.log(2), rel=1e-12)
    assert four.digits.error == 0.6165
    assert four.digits.loss == pytest.approx(1.187, abs=5e-4)
    assert eight.digits.error == pytest.approx(0.700, abs=5e-4)
    assert two.one_digit.error == two.digits.error  # a tie that the loss breaks
    assert two.one_digit.loss > two.digits.loss + 1
    assert four.one_digit.error == 0.675
    for floors in (two, four, eight):
        assert floors.none == (math.log(10), 0.9)
        assert floors.binding == (0, 0)
    assert retrieval_floors(1) == (four.none, (0, 0), (0, 0), (0, 0))


def test_who_knows_more_loses_less_and_more_pairs_are_harder():
    every = [retrieval_floors(pairs) for pairs in range(1, 27)]
    for floors in every:
        for more, less in zip(floors[1:], floors, strict=False):
            assert more.loss <= less.loss
            assert more.error <= less.error
    for field in ("one_digit", "digits"):
        for what in ("loss", "error"):
            along = [getattr(getattr(floors, field), what) for floors in every]
            assert along == sorted(set(along))


@pytest.mark.parametrize("pairs", [10, 20])
def test_floors_where_there_are_too_many_strings_to_go_through(pairs):
    """The expected entropy needs only how often one digit occurs, which is binomial. The error needs how often the most
    frequent one does: that none occurs more than m times has the chance K! [xᴷ] (Σ_{c ≤ m} xᶜ/c!)¹⁰ / 10ᴷ."""
    floor = retrieval_floors(pairs).digits
    chances = [math.comb(pairs, c) * 0.1**c * 0.9 ** (pairs - c) for c in range(pairs + 1)]
    loss = sum(10 * chance * c / pairs * math.log(pairs / c) for c, chance in enumerate(chances) if c)
    assert floor.loss == pytest.approx(loss, rel=1e-12)

    def times(one, other):
        return [sum(one[i] * other[n - i] for i in range(n + 1)) for n in range(pairs + 1)]

    at_most = [0]
    for most in range(1, pairs + 1):
        one = [fractions.Fraction(c <= most, math.factorial(c)) for c in range(pairs + 1)]
        at_most.append(functools.reduce(times, [one] * 10)[pairs] * math.factorial(pairs) / 10**pairs)
    right = sum(m * (at_most[m] - at_most[m - 1]) for m in range(1, pairs + 1)) / pairs
    assert floor.error == pytest.approx(float(1 - right), rel=1e-12)


def test_the_best_guessers_do_on_a_sample_what_the_floors_say():
    pairs = 4
    symbols, targets, answers, floors = retrieval(pairs, 100_000, seeded())
    shown = symbols[1 : 2 * pairs : 2] - 26
    chances = torch.nn.functional.one_hot(shown, 10).sum(0).double() / pairs
    right = chances.argmax(1) == targets
    assert abs(z((~right).double(), floors.digits.error)) < 4
    assert abs(z(-chances.gather(1, targets[:, None]).log()[:, 0], floors.digits.loss)) < 4
    assert abs(z((shown[0] != targets).double(), floors.one_digit.error)) < 4
    known = 1 - floors.one_digit.error
    nats = torch.where(shown[0] == targets, -math.log(known), -math.log((1 - known) / 9))
    assert abs(z(nats.double(), floors.one_digit.loss)) < 4
    assert float((targets.bincount() / len(targets) - 0.1).abs().max()) < 0.005
    assert float((answers.bincount() / len(answers) - 0.25).abs().max()) < 0.007
    assert not bool((shown == shown[0]).all())
    assert floors == retrieval_floors(pairs)


@pytest.mark.parametrize(("pairs", "letters"), [(2, 3), (3, 3), (2, 26)])
def test_all_letters_orders_and_digits_are_equally_likely(pairs, letters):
    symbols, _, answers, _ = retrieval(pairs, 50_000, seeded(1), letters=letters)
    keys = symbols[: 2 * pairs : 2]
    assert int(keys.max()) == letters - 1
    counts = torch.unique(keys, dim=1, return_counts=True)[1]
    orders = math.perm(letters, pairs)
    assert len(counts) == orders
    assert float((counts - 50_000 / orders).abs().max()) < 5 * math.sqrt(50_000 / orders)
    digits = symbols[1 : 2 * pairs : 2] - 26
    for a, b in itertools.combinations([*digits, keys[0], answers], 2):  # nothing tells anything of another
        centred = [row - row.double().mean() for row in (a, b)]
        assert abs(z(centred[0] * centred[1], 0)) < 4


@settings(max_examples=30, deadline=None)
@given(data=st.data(), count=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_a_string_is_what_it_should_be(data, count, seed):
    letters = data.draw(st.integers(1, 26))
    pairs = data.draw(st.integers(1, letters))
    symbols, targets, answers, _ = retrieval(pairs, count, seeded(seed), letters=letters)
    assert symbols.shape == (2 * pairs + 3, count)
    assert targets.shape == answers.shape == (count,)
    assert symbols.dtype == targets.dtype == answers.dtype == torch.int64
    for column, target, answer in zip(symbols.T, targets.tolist(), answers.tolist(), strict=True):
        text = to_text(column)
        assert [ALPHABET.index(symbol) for symbol in text] == column.tolist()
        found = re.fullmatch(r"((?:[a-z][0-9])+)\?\?([a-z])", text)
        table = dict(re.findall("([a-z])([0-9])", found[1]))
        assert len(table) == pairs  # so the letters are different
        assert max(table) <= ALPHABET[letters - 1]
        assert table[found[2]] == str(target)
        assert list(table)[answer] == found[2]


def test_the_alphabet():
    assert len(set(ALPHABET)) == len(ALPHABET) == 37
    example = torch.tensor([ALPHABET.index(symbol) for symbol in "c9k8j3f1??c"])
    assert to_text(example) == to_text(example.to(torch.uint8)) == "c9k8j3f1??c"
    assert example.tolist() == [2, 35, 10, 34, 9, 29, 5, 27, 36, 36, 2]
    assert to_text(example[:0]) == ""


def test_the_generator_alone_decides():
    torch.manual_seed(0)
    first = retrieval(4, 50, seeded(3))
    torch.manual_seed(1)
    again, other = retrieval(4, 50, seeded(3)), retrieval(4, 50, seeded(4))
    for one, same, different in zip(first[:3], again, other, strict=False):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


@pytest.mark.parametrize("size", [0, -1, 27, 2.0, True, "3", None])
def test_bad_pairs_and_letters_are_named(size):
    got = re.escape(f"(got {size!r})")
    for use in (retrieval_floors, lambda pairs: retrieval(pairs, 1, seeded())):
        with pytest.raises(ValueError, match=f"^pairs must be a whole number from 1 to 26 {got}$"):
            use(size)
    with pytest.raises(ValueError, match=f"^letters must be a whole number from 1 to 26 {got}$"):
        retrieval(1, 1, seeded(), letters=size)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"^pairs must be a whole number from 1 to 3 \(got 4\)$"):
        retrieval(4, 1, seeded(), letters=3)
    for count in (0, 1.0, True, "3"):
        with pytest.raises(ValueError, match=f"^count must be a whole number of at least 1 .*got {count!r}"):
            retrieval(1, count, seeded())
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator"):
        retrieval(1, 1, None)
    with pytest.raises(
        ValueError, match=r"^symbols must have one dimension, as one column has \(got shape \(5, 2\)\)$"
    ):
        to_text(retrieval(1, 2, seeded()).symbols)
    for stranger in (-1, 37):
        with pytest.raises(ValueError, match=rf"^symbols must be from 0 to 36 \(got {stranger}\)$"):
            to_text(torch.tensor([0, stranger]))
    for kind, got in ((torch.zeros(2), r"torch\.float32"), (torch.ones(2).bool(), r"torch\.bool"), ("c9??c", "str")):
        with pytest.raises(TypeError, match=rf"^symbols must be a tensor of integers \(got {got}\)$"):
            to_text(kind)
