"""The echo task: its floors against known numbers, its draws against their chances."""

import math

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
