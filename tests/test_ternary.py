"""Ternary neurons: their activations against closed forms and finite differences, their draws against exact means."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from shared.stochastic import Ternary, soft_staircase, ternary_activation, to_integers

X = torch.linspace(-4, 4, 2001, dtype=torch.float64)
ACTIVATIONS = [ternary_activation, soft_staircase]
FINE = torch.finfo(torch.float32).eps


def slopes_at(activation, x, slope=1.0):
    x = torch.as_tensor(x, dtype=torch.float64).clone().requires_grad_()
    return torch.autograd.grad(activation(x, slope).sum(), x)[0]


@pytest.mark.parametrize("slope", [0.3, 1.0, 2.5])
def test_the_activation_is_that_of_the_post(slope):
    m = slope * X
    torch.testing.assert_close(ternary_activation(X, slope), 1.5 * m.tanh() + 0.5 * (-3 * m).tanh())
    derivative = 1.5 * slope * (m.cosh() ** -2 - (3 * m).cosh() ** -2)
    torch.testing.assert_close(slopes_at(ternary_activation, X, slope), derivative)


def test_the_activation_has_the_closed_forms_of_the_chapter():
    half = math.atanh(1 / (math.cbrt(4 + 17**0.5) - math.cbrt(17**0.5 - 4))) if hasattr(math, "cbrt") else 0.7946761
    assert ternary_activation(torch.tensor(half, dtype=torch.float64)).item() == pytest.approx(0.5, abs=1e-7)
    root = (8 + 72**0.5) ** (1 / 3) - (72**0.5 - 8) ** (1 / 3)
    steepest = math.atanh(((root - 1) / 3) ** 0.5)
    assert X[slopes_at(ternary_activation, X).argmax()].abs() == pytest.approx(steepest, abs=0.004)
    assert slopes_at(ternary_activation, [0.0, steepest]).tolist() == pytest.approx([0, 0.918421], abs=1e-6)


def test_one_tanh_is_enough():
    t = (1.4 * X).tanh()
    torch.testing.assert_close(ternary_activation(X, 1.4), 4 * t**3 / (1 + 3 * t**2))


@pytest.mark.parametrize("slope", [0.2, 1.0, 3.0, 8.0])
def test_the_staircase_has_its_closed_forms(slope):
    closed = (2 * slope * X).sinh() / ((2 * slope * X).cosh() + math.cosh(slope))
    torch.testing.assert_close(soft_staircase(X, slope), closed)
    assert slopes_at(soft_staircase, [0.0], slope).item() == pytest.approx(slope / math.cosh(slope / 2) ** 2)
    bits = (2 * slope * (X - 0.5)).sigmoid() + (2 * slope * (X + 0.5)).sigmoid() - 1
    torch.testing.assert_close(soft_staircase(X, slope), bits)


def test_the_staircase_tends_to_rounding_and_a_steep_activation_to_the_sign():
    away = X[((X.abs() - 0.5).abs() > 0.05) & (X.abs() > 0.05)]
    torch.testing.assert_close(soft_staircase(away, 300.0), away.round().clamp(-1, 1))
    torch.testing.assert_close(ternary_activation(away, 300.0), away.sign())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.5, 1.0, 4.0])
def test_activations_are_odd_and_rise_within_their_range(activation, dtype, slope):
    x = torch.linspace(-30, 30, 20_001).to(dtype)
    y = activation(x, slope)
    assert y.dtype == dtype
    assert torch.equal(y, -activation(-x, slope))
    assert (y.min(), y.max()) == (pytest.approx(-1), pytest.approx(1))
    assert y.abs().max() <= 1
    assert y.double().diff().min() >= -8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_finite_differences(activation):
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda one: activation(one, 1.7), x)
    assert torch.autograd.gradgradcheck(lambda one: activation(one, 1.7), x)


@given(value=st.floats(-3, 3, width=32))
@settings(max_examples=200, deadline=None)
def test_draws_are_the_neighbours_and_a_whole_number_stays(value):
    drawn = to_integers(torch.full((50,), value))
    assert torch.equal(drawn, drawn.round())
    assert ((drawn - value).abs() < 1).all()
    assert torch.equal(to_integers(torch.tensor(value), sample=False), torch.tensor(value).round())


def test_the_largest_uniform_number_does_not_lift_a_whole_number(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, 1 - 2**-24))
    whole = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(to_integers(whole), whole)
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape))
    assert torch.equal(to_integers(whole), whole)


def test_draws_have_the_value_as_mean_and_the_least_variance():
    values = torch.linspace(-1, 1, 21, dtype=torch.float64)
    drawn = to_integers(values.expand(40_000, -1), generator=torch.Generator().manual_seed(1))
    fraction = values - values.floor()
    spread = (fraction * (1 - fraction) / len(drawn)).sqrt()
    assert ((drawn.mean(0) - values).abs() <= 4.5 * spread + 1e-12).all()
    torch.testing.assert_close(drawn.var(0), fraction * (1 - fraction), atol=0.01, rtol=0)


def test_the_gradient_is_that_of_the_value():
    values = torch.randn(5, 3, requires_grad=True)
    upstream = torch.randn(5, 3)
    for sample in (True, False):
        (gradient,) = torch.autograd.grad(to_integers(values, sample=sample), values, upstream)
        assert torch.equal(gradient, upstream)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_draws_with_the_mean_and_the_gradient_of_its_activation(activation):
    layer = Ternary(activation=activation, slope=1.3, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    drawn = layer(x.expand(20_000, -1))
    expected = activation(x, 1.3)
    spread = (expected.abs() * (1 - expected.abs()) / len(drawn)).sqrt()
    assert ((drawn.mean(0) - expected).abs() <= 4.5 * spread + FINE).all()
    upstream = torch.randn(9)
    (ours,) = torch.autograd.grad(drawn, x, upstream.expand_as(drawn) / len(drawn))
    (right,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-4)


def test_a_layer_rounds_in_evaluation_and_where_it_is_deterministic():
    x = torch.tensor([-2.0, -0.9, -0.7, 0.0, 0.7, 0.9, 2.0])
    nearest = torch.tensor([-1.0, -1, 0, 0, 0, 1, 1])
    drawn = Ternary(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn(x.repeat(50)), nearest.repeat(50))
    assert torch.equal(drawn.eval()(x), nearest)
    assert torch.equal(Ternary(deterministic=True)(x), nearest)
    with torch.no_grad():  # in training mode it draws as ever
        assert not torch.equal(drawn.train()(x.repeat(50)), nearest.repeat(50))


def test_its_slope_may_change_and_counts_in_value_and_gradient():
    layer, x = Ternary(deterministic=True, activation=soft_staircase), torch.tensor([0.6], requires_grad=True)
    layer.slope = 6.0
    (gradient,) = torch.autograd.grad(layer(x), x)
    torch.testing.assert_close(gradient, slopes_at(soft_staircase, [0.6], 6.0).float())
    assert "soft_staircase, slope=6.0, deterministic=True" in repr(layer)
    for activation in (soft_staircase, lambda x, slope: torch.tanh(slope * x)):  # the second does not look at its slope
        layer = Ternary(activation=activation)
        layer.slope = -1.0
        with pytest.raises(ValueError, match="slope must be a number above 0"):
            layer(x)


def test_one_generator_gives_one_sequence_and_leaves_torchs_own_alone():
    x, state = torch.randn(50), torch.get_rng_state()
    first, second = (Ternary(generator=torch.Generator().manual_seed(3))(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(Ternary(generator=torch.Generator().manual_seed(4))(x), first)


def test_a_layer_trains_in_a_network():
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    goal = (x[:, 0] > 0.5).float() - (x[:, 0] < -0.5).float()
    net = nn.Sequential(nn.Linear(4, 20), Ternary(activation=soft_staircase, slope=2.0), nn.Linear(20, 1))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    losses = []
    for _ in range(150):
        loss = (net(x)[:, 0] - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_empty_batch_and_any_shape_pass():
    for shape in ((0, 3), (), (2, 1, 4)):
        assert Ternary()(torch.zeros(shape)).shape == shape


class Elsewhere:
    """Stands for a generator on a device that this machine does not have."""

    device = torch.device("cuda")


ZERO = torch.zeros(3)
BAD = [
    (lambda: Ternary(slope=0), "slope must be a number above 0 (got 0)"),
    (lambda: ternary_activation(ZERO, -2.0), "slope must be a number above 0 (got -2.0)"),
    (lambda: soft_staircase(ZERO, math.nan), "slope must be a number above 0 (got nan)"),
    (lambda: Ternary()(torch.tensor([math.nan, 1.0])), "inputs must be finite (got 1 NaN and 0 infinite)"),
    (lambda: Ternary()(torch.tensor([math.inf, -math.inf])), "inputs must be finite (got 0 NaN and 2 infinite)"),
    (lambda: Ternary()(torch.zeros(2, dtype=torch.long)), "inputs must be a floating-point tensor (got torch.int64)"),
    (lambda: Ternary()([0.5]), "inputs must be a floating-point tensor (got [0.5])"),
    (lambda: to_integers(torch.tensor([math.inf])), "values must be finite (got 0 NaN and 1 infinite)"),
    (lambda: to_integers(3), "values must be a floating-point tensor (got 3)"),
    (lambda: Ternary(generator=Elsewhere())(ZERO), "generator must be on the device of inputs, cpu (got one on cuda)"),
    (lambda: to_integers(ZERO, generator=Elsewhere()), "generator must be on the device of values, cpu"),
    (
        lambda: Ternary(activation=lambda x, slope: 2 + slope * x)(ZERO),
        "activation must return values from -1 to 1 (got 2.0 in size)",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_large_but_finite_inputs_whose_sum_overflows_are_taken():
    large = torch.full((4,), 3e38)
    assert torch.equal(Ternary(deterministic=True)(large), torch.ones(4))
