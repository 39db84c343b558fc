"""The tasks: their floors against known numbers and large samples, their draws against their definitions."""

import collections
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import tasks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_floors_are_the_known_numbers():
    # The post gives all but the second.
    floors = tasks.echo_floors()
    assert floors.none == pytest.approx(0.661563, abs=5e-7)
    assert floors.only_8 == pytest.approx(0.627741, abs=5e-7)
    assert floors.only_3 == pytest.approx(0.519167, abs=5e-7)
    assert floors.both == pytest.approx(0.454454, abs=5e-7)
    assert tasks.echo(1, 1, seeded()).floors == floors


def test_a_lag_that_does_not_matter_lowers_nothing():
    assert tasks.echo_floor([1, 5]) == tasks.echo_floor([])
    assert tasks.echo_floor([3, 5]) == tasks.echo_floor([3])


@pytest.mark.parametrize(("bit_3", "bit_8", "chance"), [(0, 0, 0.5), (1, 0, 1.0), (0, 1, 0.25), (1, 1, 0.75)])
def test_targets_have_the_chance_that_the_post_defines(bit_3, bit_8, chance):
    inputs, targets, _ = tasks.echo(2008, 200, seeded())
    x = inputs[..., 1]
    group = (x[5:-3] == bit_3) & (x[:-8] == bit_8)
    n = int(group.sum())
    assert n > 90_000  # about a quarter of 400,000: the inputs are fair and independent
    share = float(targets[8:][group].float().mean())
    assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / n) + 1e-12)


def test_other_lags_tell_nothing():
    inputs, targets, _ = tasks.echo(2020, 200, seeded(1))
    x, y = inputs[..., 1] - 0.5, targets[20:] - targets.float().mean()
    for lag in set(range(20)) - set(tasks.LAGS):
        covariance = float((x[20 - lag : 2020 - lag] * y).mean())
        assert abs(covariance) < 0.002, lag  # at the two lags it is 0.125 and -0.0625


def test_the_first_eight_targets_depend_on_unseen_inputs():
    """Also that these are drawn, not zeros or the end of the sequence: the mean is 0.625 from the first step on."""
    inputs, targets, _ = tasks.echo(8, 100_000, seeded())
    assert float(targets[:3].float().mean()) == pytest.approx(0.625, abs=0.004)
    last = inputs[-3:, :, 1].bool()
    for step in range(3):  # independent of the last inputs, which a wrap-around would use
        gap = targets[step][last[step]].float().mean() - targets[step][~last[step]].float().mean()
        assert abs(float(gap)) < 0.015


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40), batch_size=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_shapes_and_values(length, batch_size, seed):
    inputs, targets, _ = tasks.echo(length, batch_size, seeded(seed))
    assert inputs.shape == (length, batch_size, 2)
    assert inputs.dtype == torch.float32
    assert targets.shape == (length, batch_size)
    assert targets.dtype == torch.int64
    assert set(inputs.unique().tolist()) <= {0.0, 1.0}
    assert bool((inputs.sum(-1) == 1).all())
    assert set(targets.unique().tolist()) <= {0, 1}


def test_the_generator_alone_decides():
    torch.manual_seed(0)
    first = tasks.echo(50, 4, seeded(3))
    torch.manual_seed(1)
    again, other = tasks.echo(50, 4, seeded(3)), tasks.echo(50, 4, seeded(4))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("size", [0, -1, 2.0, "3"])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"length must be .*got {size!r}"):
        tasks.echo(size, 1, seeded())
    with pytest.raises(ValueError, match=f"batch_size must be .*got {size!r}"):
        tasks.echo(1, size, seeded())


@pytest.mark.parametrize("generator", [None, 0])
def test_a_generator_is_needed(generator):
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        tasks.echo(1, 1, generator)


def z(samples: torch.Tensor, expected: float) -> float:
    """How many standard errors the mean of these independent samples is away."""
    return float((samples.mean() - expected) / (samples.std() / len(samples) ** 0.5))


def entropy(symbols: torch.Tensor) -> float:
    """Of the frequencies with which they come, in nats."""
    shares = symbols.flatten().bincount().double() / symbols.numel()
    return float(-torch.xlogy(shares, shares).sum())


@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 40), batch_size=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_adding_marks_one_value_in_each_half(length, batch_size, seed):
    inputs, targets, floors = tasks.adding(length, batch_size, seeded(seed))
    assert inputs.shape == (length, batch_size, 2)
    assert bool(((inputs[..., 0] >= 0) & (inputs[..., 0] < 1)).all())
    for half in (inputs[: length // 2], inputs[length // 2 :]):
        assert sorted(half[..., 1].flatten().unique().tolist()) in ([0, 1], [1])
        assert half[..., 1].sum(0).tolist() == [1] * batch_size
    for row, target in enumerate(targets):
        assert float(target) == float(sum(value for value, mark in inputs[:, row] if mark == 1))
    assert floors == tasks.adding_floors(length)


def test_adding_floors_are_the_losses_of_their_models():
    values, marks = tasks.adding(5, 200_000, seeded())[0].double().unbind(-1)
    targets = (values * marks).sum(0)
    floors = tasks.adding_floors(5)
    assert floors == pytest.approx((1 / 6, (1 / 2 + 2 / 3) / 12, 1 / 12, 0))
    assert abs(z((targets - 1) ** 2, floors.none)) < 4
    assert abs(z((targets - values[:2].mean(0) - values[2:].mean(0)) ** 2, floors.no_marks)) < 4
    for half in (slice(2), slice(2, 5)):
        assert abs(z((targets - (values * marks)[half].sum(0) - 0.5) ** 2, floors.one)) < 4
    for step, chance in enumerate([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]):
        assert abs(z(marks[step], chance)) < 4


@settings(max_examples=30, deadline=None)
@given(
    delay=st.integers(1, 20), batch_size=st.integers(1, 4), symbols=st.integers(1, 9), count=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_copy_repeats_what_was_shown_after_the_cue(delay, batch_size, symbols, count, seed):
    inputs, targets, _ = tasks.copy_memory(delay, batch_size, seeded(seed), symbols, count)
    assert inputs.shape == (delay + 2 * count, batch_size, symbols + 2)
    assert bool((inputs.sum(-1) == 1).all())
    blank, cue = symbols, symbols + 1
    for shown, wanted in zip(inputs.argmax(-1).T.tolist(), targets.T.tolist(), strict=True):
        assert max(shown[:count]) < symbols
        assert shown[count:] == [blank] * (delay - 1) + [cue] + [blank] * count
        assert wanted == [blank] * (count + delay) + shown[:count]


def test_copy_floors_are_the_losses_of_their_models():
    _, targets, floors = tasks.copy_memory(7, 50_000, seeded(), symbols=3, count=2)
    assert floors == tasks.copy_floors(7, 3, 2)
    assert floors.none == pytest.approx(entropy(targets), abs=0.001)
    assert floors.when == pytest.approx(sum(entropy(step) for step in targets) / len(targets), abs=0.001)
    assert floors.both == 0
    published = [tasks.copy_floors(delay).when for delay in (100, 200, 500, 1000)]
    assert published == pytest.approx([0.1733, 0.0945, 0.0400, 0.0204], abs=5e-5)


LOOP = "(?:T*VPX)*T*V(?:V|PS)"  # from the node that P leads to, to the node before E
STRING = re.compile(f"B([TP])B(?:TS*X(?:S|X{LOOP})|P{LOOP})E\\1E")


def spelt(letters: torch.Tensor) -> str:
    return "".join(tasks.LETTERS[i] for i in letters)


@pytest.mark.parametrize("word", ["BTSSXXTVVE", "BPVVE", "BTXXVPSE", "BPVPXVPXVPXVVE", "BTSXXVPSE", "BPTVPSE", "BTXSE"])
def test_the_grammar_has_the_strings_of_the_literature(word):
    node = 0
    for letter in word:
        node = tasks.REBER[node][letter]
    assert node == 7
    assert all(STRING.fullmatch(f"B{fork}{word}{fork}E") for fork in "TP")


def test_reber_streams_are_strings_one_after_another():
    inputs, targets, possible, decisive, _ = tasks.reber(1000, 40, seeded())
    assert inputs.shape == possible.shape == (1000, 40, 7)
    letters = torch.cat((inputs.argmax(-1), targets[-1:]))
    assert torch.equal(letters[1:], targets)
    came, could = collections.defaultdict(list), collections.defaultdict(set)
    for row in range(40):
        text, at, ends = spelt(letters[:, row]), 0, []
        could_row = [spelt(a.nonzero()) for a in possible[:, row]]
        while string := STRING.match(text, at):
            for n in range(
                1, len(string[0]) + (string.end() < len(text))
            ):  # what came next, by all since the last start
                came[string[0][:n]].append(text[at + n])
                could[string[0][:n]].add(could_row[at + n - 1])
            at = string.end()
            ends.append(at - 3)  # here the letter before the decisive one has been read
        assert len(text) - at < 100
        assert set(ends) == set(decisive[: max(at - 2, 0), row].nonzero().flatten().tolist())
    often = [start for start in came if len(came[start]) > 40]
    assert len(often) > 100
    for start in often:
        assert could[start] == {"".join(sorted(set(came[start]), key=tasks.LETTERS.index))}
    assert all(set(came[start]) <= set("".join(could[start])) for start in came)


def test_reber_floors_are_known_numbers_and_those_of_a_long_stream():
    # A string visits nodes 1, 2, 4, 5 and 6 of the grammar once on average and node 3 twice: with B, twelve letters with
    # the four around them, and seven choices, of which one is the second letter; the decisive one would be the eighth.
    floors = tasks.reber_floors()
    assert floors.both == pytest.approx(7 * math.log(2) / 12, rel=1e-12)
    assert floors.place == pytest.approx(8 * math.log(2) / 12, rel=1e-12)
    stream = tasks.reber(1100, 400, seeded(2))
    assert stream.floors == floors
    nats = stream.possible[100:].sum(-1).double().log()  # the first letters are not in the long run yet
    assert abs(z(nats.mean(0), floors.both)) < 4
    assert abs(z((nats + math.log(2) * stream.decisive[100:]).mean(0), floors.place)) < 4
    assert floors.none == pytest.approx(entropy(stream.targets), abs=0.002)
    for pair in ("TP", "SX", "TV", "PV"):  # each of two ways is taken half of the time
        here = (stream.possible == torch.tensor([letter in pair for letter in tasks.LETTERS])).all(-1)
        drawn = stream.targets[here]
        assert abs(z((drawn == tasks.LETTERS.index(pair[0])).double(), 0.5)) < 4


def test_reber_strings_and_their_floors():
    strings, floors, mean_length = tasks.reber_strings(20_000, seeded())
    words = [spelt(string) for string in strings]
    assert all(STRING.fullmatch(word) for word in words)
    lengths = torch.tensor([len(string) for string in strings], dtype=torch.float64)
    assert mean_length == pytest.approx(12, rel=1e-12)
    assert abs(z(lengths, mean_length)) < 4
    assert lengths.min() == 9
    assert floors.place == pytest.approx(8 * math.log(2), rel=1e-12)
    assert floors.both == pytest.approx(7 * math.log(2), rel=1e-12)
    assert floors.none == pytest.approx(11 * entropy(torch.cat([string[1:] for string in strings])), rel=0.003)
    for word in ("BTBTXSETE", "BPBPVVEPE"):  # four choices each
        assert words.count(word) / len(words) == pytest.approx(2**-4, abs=0.007)


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda g, a=9, b=4: tasks.adding(a, b, g), ("length", "batch_size")),
        (lambda g, a=9, b=4, c=3, d=2: tasks.copy_memory(a, b, g, c, d), ("delay", "batch_size", "symbols", "count")),
        (lambda g, a=9, b=4: tasks.reber(a, b, g), ("length", "batch_size")),
        (lambda g, a=9: tasks.reber_strings(a, g), ("count",)),
    ],
)
def test_the_generator_decides_and_bad_arguments_are_named(draw, names):
    torch.manual_seed(0)
    first, other = draw(seeded(3))[0], draw(seeded(4))[0]
    torch.manual_seed(1)
    assert str(draw(seeded(3))[0]) == str(first) != str(other)
    for name, argument in zip(names, "abcd", strict=False):
        for size in (0, -1, 2.0, True, "3"):
            with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least [12] .*got {size!r}"):
                draw(seeded(), **{argument: size})
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        draw(None)
    with pytest.raises(ValueError, match=r"length must be .* at least 2"):
        tasks.adding(1, 1, seeded())


@settings(max_examples=30, deadline=None)
@given(
    most=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    symbols=st.integers(1, 5),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_repeat_copy_says_it_as_often_as_asked(most, batch_size, symbols, count, seed):
    inputs, targets, repeats, floors = tasks.repeat_copy(most, batch_size, seeded(seed), symbols, count)
    time = count + 1 + most * count
    assert inputs.shape == (time, batch_size, symbols + 3)
    assert targets.shape == (time, batch_size)
    assert bool((inputs[..., :-1].sum(-1) == 1).all())
    assert floors == tasks.repeat_copy_floors(most, symbols, count)
    shown, number = inputs[..., :-1].argmax(-1), inputs[..., -1]
    for row in range(batch_size):
        often = int(repeats[row])
        assert 1 <= often <= most
        said = shown[:count, row].tolist()
        assert max(said) < symbols
        assert shown[count:, row].tolist() == [symbols + 1] + [symbols] * (most * count)
        assert targets[:, row].tolist() == [symbols] * (count + 1) + said * often + [symbols] * count * (most - often)
        assert number[count, row] == pytest.approx(often / 10)
        assert float(number[:, row].sum()) == pytest.approx(often / 10)


def test_repeat_copy_draws_all_numbers_and_symbols_alike():
    inputs, _, repeats, _ = tasks.repeat_copy(4, 40_000, seeded(), symbols=3, count=2, least=2)
    shares = repeats.bincount().double() / len(repeats)
    assert shares.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.01)
    assert inputs[:2].mean((0, 1)).tolist() == pytest.approx([1 / 3] * 3 + [0] * 3, abs=0.01)
    assert torch.equal(tasks.repeat_copy(2, 5, seeded(7))[0], tasks.repeat_copy(2, 5, seeded(7))[0])


def test_repeat_copy_floors_are_the_losses_of_their_models():
    """Each model says the frequencies that it has seen, in its own cases."""
    _, targets, _, floors = tasks.repeat_copy(4, 50_000, seeded(), symbols=3, count=2, least=2)
    steps, due = len(targets), targets != 3
    assert entropy(targets) == pytest.approx(floors.none, abs=2e-3)
    assert float(due.double().mean()) * math.log(3) == pytest.approx(floors.when, abs=2e-3)
    assert sum(entropy(row.long()) for row in due) / steps == pytest.approx(floors.what, abs=2e-3)
    assert floors.both == 0
    assert tasks.repeat_copy_floors(3, count=2, least=3).what == 0  # nothing to know


@pytest.mark.parametrize("name", ["most", "batch_size", "symbols", "count", "least"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_bad_sizes_of_repeat_copy_are_named(name, size):
    given = {"most": 3, "batch_size": 2, "symbols": 4, "count": 2, "least": 1} | {name: size}
    with pytest.raises(ValueError, match=f"{name} must be .*got {size!r}"):
        tasks.repeat_copy(generator=seeded(), **given)


def test_repeat_copy_cannot_ask_for_fewer_than_the_least():
    with pytest.raises(ValueError, match=r"most must be .* at least 4 \(got 3\)"):
        tasks.repeat_copy(3, 2, seeded(), least=4)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        tasks.repeat_copy(3, 2, 0)
