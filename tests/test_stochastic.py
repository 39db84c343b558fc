"""Estimators against the sum over all states: bias by z-tests, formulae on known draws, variances in closed form.

Expectations are tested on many rows that are copies of one example: each row's gradient is one draw of the estimator.
"""

import copy
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.stochastic import (
    Arm,
    Binary,
    Concrete,
    DisArm,
    Enumeration,
    Geometric,
    LeaveOneOut,
    Linear,
    OneHot,
    Rebar,
    Reinforce,
    RunningBaseline,
    StraightThrough,
    straight_through,
)
from shared.stochastic.estimators import _relaxed_pair
from shared.stochastic.neurons import uniform

UNITS = 3
# Examples of three units: probabilities from 0.05 to 0.95, and one half.
LOGITS = torch.tensor([[0.0, 0.4, -0.7], [2.0, -2.9, 1.1], [-1.5, 2.9, 0.0]], dtype=torch.float64)
CATEGORIES = torch.tensor([[[0.3, -1.2, 1.0], [0.0, 2.0, -0.5]], [[-2.0, 0.1, 0.4], [1.0, 1.0, -1.0]]]).double()
COUPLING = torch.tensor([[1.1, -0.6, 0.8], [0.7, 1.3, -0.9], [-1.0, 0.5, 1.2]], dtype=torch.float64)

UNBIASED = {
    "reinforce": Reinforce,
    "reinforce, 3 samples": lambda **options: Reinforce(samples=3, **options),
    "running baseline": lambda **options: RunningBaseline(UNITS, **options),
    "running baseline, 2 samples": lambda **options: RunningBaseline(UNITS, samples=2, **options),
    "leave one out": LeaveOneOut,
    "leave one out, 4 samples": lambda **options: LeaveOneOut(samples=4, **options),
    "arm": Arm,
    "arm, 2 samples": lambda **options: Arm(samples=2, **options),
    "disarm": DisArm,
    "disarm, 2 samples": lambda **options: DisArm(samples=2, **options),
    "rebar": lambda **options: Rebar(UNITS, **options),
    "rebar, 2 samples": lambda **options: Rebar(UNITS, samples=2, temperature=1.5, **options),
}
BIASED = {
    "adjusted": StraightThrough,
    "pass-through": lambda **options: StraightThrough(adjusted=False, **options),
    "soft": Concrete,
    "hard": lambda **options: Concrete(hard=True, **options),
}
# None of these takes a generator or a number of samples.
EXACT = {"enumeration": lambda generator=None, **options: Enumeration(**options)}
EVERY = {**UNBIASED, **BIASED, **EXACT}
CATEGORICAL = {
    "reinforce": Reinforce,
    "leave one out": LeaveOneOut,
    "leave one out, 4 samples": lambda **options: LeaveOneOut(samples=4, **options),
    "running baseline": lambda **options: RunningBaseline((2, 3), **options),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds(table: dict):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


def curved(values):
    """A loss of all units together that is neither linear nor quadratic in any of them, nor of mean zero."""
    mixed = values @ COUPLING.to(values.dtype)
    return mixed.sin().sum(-1) + (mixed.sum(-1) - 0.4) ** 2 + 0.5


def curved_of_categories(values):
    """The same of (*batch, 2 units, 3 categories), in which both units matter to each other."""
    first, second = values.unbind(-2)
    return curved(first + 0.7 * second.roll(1, -1)) + (first @ COUPLING * second).sum(-1)


class Recorder:
    """A loss that keeps what it was asked and what it answered."""

    def __init__(self, loss_of=curved):
        self.loss_of, self.values, self.losses = loss_of, [], []

    def __call__(self, values):
        losses = self.loss_of(values)
        self.values.append(values.detach())
        self.losses.append(losses.detach())
        return losses


def gradient(estimator, logits, loss_of=curved):
    """One estimate for each example, of the shape of the logits."""
    logits = logits.detach().clone().requires_grad_()
    estimator.expectation(logits, loss_of).sum().backward()
    return logits.grad


def rows(logits, count: int):
    return logits.expand(count, *logits.shape)


def draws(estimator, logits, loss_of=curved, count: int = 20_000):
    """(count, *logits) independent estimates; running means are first given something to go by."""
    if isinstance(estimator, RunningBaseline | Rebar):
        for _ in range(60):
            gradient(estimator, rows(logits, 50), loss_of)
    return gradient(estimator, rows(logits, count), loss_of)


def z_scores(found, expected):
    """Deviations of the mean over rows from what is expected, in standard errors."""
    error = found.std(0) / math.sqrt(len(found))
    return ((found.mean(0) - expected) / error.clamp(min=1e-12)).abs()


# Bias


@kinds(UNBIASED)
@pytest.mark.parametrize("slope", [1.0, 1.7])
def test_unbiased(make, slope):
    exact = gradient(Enumeration(slope=slope), LOGITS)
    found = draws(make(slope=slope, generator=seeded(1)), LOGITS)
    assert found.shape == (20_000, *LOGITS.shape)
    assert z_scores(found, exact).max() < 4


@kinds(BIASED)
def test_biased_estimators_are_found_out(make):
    found = draws(make(generator=seeded(2)), LOGITS)
    scores = z_scores(found, gradient(Enumeration(), LOGITS))
    assert scores.max() > 20
    assert scores.amax(-1)[1:].min() > 8  # in both examples far from one half, near which less is wrong


def test_straight_through_is_exact_for_linear_losses_if_adjusted():
    def linear(values):
        return (values @ COUPLING).sum(-1)

    exact = gradient(Enumeration(), LOGITS, linear)
    adjusted = gradient(StraightThrough(generator=seeded()), LOGITS, linear)
    torch.testing.assert_close(adjusted, exact, rtol=1e-12, atol=1e-12)  # without any variance
    assert (gradient(StraightThrough(adjusted=False), LOGITS, linear) - exact).abs().min() > 0.1
    soft = draws(Concrete(generator=seeded(3)), LOGITS, linear)
    assert z_scores(soft, exact).max() > 8

    weights = torch.randn(2, 3, generator=seeded(4)).double()

    def linear_in_categories(values):
        return (values * weights).sum((-1, -2))

    exact = gradient(Enumeration(neurons=OneHot), CATEGORIES, linear_in_categories)
    adjusted = gradient(StraightThrough(neurons=OneHot), CATEGORIES, linear_in_categories)
    torch.testing.assert_close(adjusted, exact, rtol=1e-12, atol=1e-12)


def test_straight_through_is_exact_for_a_quadratic_loss_of_one_even_bit_only():
    def quadratic(values):
        return (values[..., 0] - 0.45) ** 2

    for logit, biased in ((0.0, False), (0.5, True)):
        logits = torch.tensor([logit], dtype=torch.float64)
        found = draws(StraightThrough(generator=seeded(5)), logits, quadratic)
        score = z_scores(found, gradient(Enumeration(), logits, quadratic))
        assert (score > 8) == biased
        assert biased or score < 4


@kinds(CATEGORICAL)
def test_unbiased_of_categories(make):
    exact = gradient(Enumeration(neurons=OneHot), CATEGORIES, curved_of_categories)
    found = draws(make(neurons=OneHot, generator=seeded(6)), CATEGORIES, curved_of_categories)
    assert z_scores(found, exact).max() < 4


@kinds(BIASED)
def test_biased_of_categories(make):
    exact = gradient(Enumeration(neurons=OneHot), CATEGORIES, curved_of_categories)
    found = draws(make(neurons=OneHot, generator=seeded(7)), CATEGORIES, curved_of_categories)
    assert z_scores(found, exact).amax((-1, -2)).min() > 8


@kinds(EVERY)
def test_the_value_of_an_expectation_is_that_of_the_loss(make):
    """And the surrogate that carries the gradient adds nothing to it."""
    loss = Recorder()
    logits = rows(LOGITS, 50).clone().requires_grad_()
    estimator = make(generator=seeded(8))
    value = estimator.expectation(logits, loss)
    assert value.shape == logits.shape[:-1]
    if not isinstance(estimator, Enumeration):
        mean = loss.losses[0][: len(loss.losses[0]) // (3 if isinstance(estimator, Rebar) else 1)].mean(0)
        torch.testing.assert_close(value, mean, rtol=0, atol=0)
    if isinstance(estimator, Concrete) and not estimator.hard:
        return
    with torch.no_grad():
        value = make(generator=seeded(9)).expectation(rows(LOGITS, 20_000), curved)
        exact = Enumeration().expectation(LOGITS, curved)
    assert z_scores(value, exact).max() < 4


# The exact gradient


def test_enumeration_in_closed_form():
    logits = torch.tensor([[-3.0], [0.0], [1.2]], dtype=torch.float64, requires_grad=True)
    value = Enumeration().expectation(logits, lambda b: (b[..., 0] - 0.45) ** 2)
    p = logits.detach().sigmoid()[:, 0]
    torch.testing.assert_close(value, p * 0.55**2 + (1 - p) * 0.45**2)
    value.sum().backward()
    torch.testing.assert_close(logits.grad[:, 0], p * (1 - p) * (0.55**2 - 0.45**2))

    logits = LOGITS.clone().requires_grad_()
    value = Enumeration(slope=2.5).expectation(logits, lambda b: b.prod(-1))  # all fire
    q = (2.5 * LOGITS).sigmoid()
    torch.testing.assert_close(value, q.prod(-1))
    value.sum().backward()
    torch.testing.assert_close(logits.grad, 2.5 * (1 - q) * q.prod(-1, keepdim=True))

    costs = torch.tensor([[1.0, 5.0, -2.0], [0.3, 0.1, 4.0]], dtype=torch.float64)
    logits = CATEGORIES.clone().requires_grad_()
    value = Enumeration(neurons=OneHot).expectation(logits, lambda b: (b * costs).sum((-1, -2)))
    p = CATEGORIES.softmax(-1)
    torch.testing.assert_close(value, (p * costs).sum((-1, -2)))
    value.sum().backward()
    torch.testing.assert_close(logits.grad, p * (costs - (p * costs).sum(-1, keepdim=True)))


def test_enumeration_passes_gradcheck_with_parameters_in_the_loss():
    def expected(logits, weight):
        return Enumeration(slope=1.3).expectation(logits, lambda b: (b @ weight).tanh().square().sum(-1))

    logits, weight = LOGITS.clone().requires_grad_(), COUPLING.clone().requires_grad_()
    assert torch.autograd.gradcheck(expected, (logits, weight))
    assert torch.autograd.gradgradcheck(expected, (logits, weight))

    def expected_of_categories(logits, weight):
        enumeration = Enumeration(neurons=OneHot)
        return enumeration.expectation(logits, lambda b: (b @ weight).prod(-2).sin().sum(-1))

    assert torch.autograd.gradcheck(expected_of_categories, (CATEGORIES.clone().requires_grad_(), weight))


def test_enumeration_asks_once_about_every_state():
    loss = Recorder()
    Enumeration().expectation(rows(LOGITS, 2), loss)
    (states,) = loss.values
    assert states.shape == (8, 2, 3, 3)
    assert len({tuple(state) for state in states[:, 1, 2].tolist()}) == 8

    loss = Recorder(lambda b: b[..., 0, 0])
    Enumeration(neurons=OneHot).expectation(CATEGORIES, loss)
    assert loss.values[0].shape == (9, *CATEGORIES.shape)
    assert len({tuple(state.flatten().tolist()) for state in loss.values[0][:, 0]}) == 9


@pytest.mark.parametrize(("neurons", "shape"), [(Binary, (12,)), (OneHot, (6, 4))])
def test_enumeration_has_a_limit_of_states(neurons, shape):
    logits, loss = torch.zeros(shape), Recorder(lambda b: b.flatten(1).sum(-1))
    value = Enumeration(neurons=neurons).expectation(logits, loss)
    assert len(loss.values[0]) == 4096
    torch.testing.assert_close(value, torch.tensor(6.0))
    more = torch.zeros(shape[0] + 1, *shape[1:])
    with pytest.raises(ValueError, match=re.escape("at most 4096 states (got")):
        Enumeration(neurons=neurons).expectation(more, loss)
    assert len(loss.values) == 1


# One bit, whose means and variances are known


def reinforce(p, d, t):
    return d * p * (1 - p), (1 - t) ** 4 * (1 - p) ** 2 * p + t**4 * p**2 * (1 - p) - (d * p * (1 - p)) ** 2


def leave_one_out(p, d, t):  # of two, d/2 if they differ
    v = p * (1 - p)
    return d * v, d**2 * v * (0.5 - v)


def arm(p, d, t):  # the integral of d² (u − 1/2)² over the u at which the two bits differ
    q = min(p, 1 - p)
    return d * p * (1 - p), d**2 * 2 / 3 * (1 / 8 - (1 / 2 - q) ** 3) - (d * p * (1 - p)) ** 2


def disarm(p, d, t):  # d (1 − q)/2 with probability 2q
    q = min(p, 1 - p)
    return d * p * (1 - p), d**2 * (1 - q) ** 2 * q * (0.5 - q)


def pass_through(p, d, t):
    return 2 * (p - t), 4 * p * (1 - p)


def adjusted(p, d, t):
    return 2 * p * (1 - p) * (p - t), 4 * (p * (1 - p)) ** 3


def relaxed(p, d, t, tau=0.5):
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    s = ((math.log(p / (1 - p)) + u.logit()) / tau).sigmoid()
    slopes = 2 * (s - t) * s * (1 - s) / tau
    return slopes.mean().item(), slopes.var().item()


ONE_BIT = {  # with the variances, or for the biased the means, at the three settings
    "reinforce": (Reinforce, reinforce, 1, (0.016, 0.016, 0.0048)),
    "leave one out": (LeaveOneOut, leave_one_out, 1, (6.3e-4, 2.5e-7, 4.2e-4)),
    "arm": (Arm, arm, 1, (2.1e-4, 8.3e-8, 3.6e-4)),
    "disarm": (DisArm, disarm, 1, (0, 0, 3.5e-4)),
    "pass-through": (BIASED["pass-through"], pass_through, 0, (0.1, 0.002, 0.861)),
    "adjusted": (StraightThrough, adjusted, 0, (0.025, 0.0005, 0.0904)),
    "soft": (Concrete, relaxed, 0, (0.0215, 0.0004, 0.0452)),
}
SETTINGS = [(0.5, 0.45), (0.5, 0.499), (0.881, 0.45)]


def of_one_bit(make, p, t, count=200_000):
    logits = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    return gradient(make(generator=seeded(10)), rows(logits, count), lambda b: (b[..., 0] - t) ** 2)


@kinds(ONE_BIT)
def test_one_bit_in_closed_form(make):
    make, closed, column, table = make
    for (p, t), stated in zip(SETTINGS, table, strict=True):
        mean, variance = closed(p, (1 - t) ** 2 - t**2, t)
        assert (mean, variance)[column] == pytest.approx(stated, rel=0.03 if stated > 0.001 else 0.12, abs=1e-9)
        found = of_one_bit(make, p, t)
        assert found.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / len(found)) + 1e-12)
        assert found.var().item() == pytest.approx(variance, rel=0.03, abs=1e-20)


def test_order_of_variances():
    for p, t in SETTINGS:
        variances = [of_one_bit(make, p, t, 50_000).var() for make in (DisArm, Arm, LeaveOneOut, Reinforce)]
        assert variances == sorted(variances)
        assert all(low < high for low, high in itertools.pairwise(variances))


@pytest.mark.parametrize("logits", LOGITS, ids=["even", "far apart", "mixed"])
def test_order_of_variances_unit_by_unit(logits):
    """A running regression is of least variance in each unit, but only if all examples are the same one."""
    found = {name: draws(UNBIASED[name](generator=seeded(11)), logits).var(0) for name in UNBIASED}
    for better, worse in (
        ("disarm", "arm"),
        ("leave one out, 4 samples", "leave one out"),
        ("running baseline", "reinforce"),
        ("rebar", "reinforce"),
    ):
        assert (found[better] < 1.05 * found[worse]).all(), (better, worse)
        assert found[better].sum() < 0.98 * found[worse].sum(), (better, worse)
    for one, several, count in (
        ("reinforce", "reinforce, 3 samples", 3),
        ("arm", "arm, 2 samples", 2),
        ("disarm", "disarm, 2 samples", 2),
    ):
        torch.testing.assert_close(found[one], count * found[several], rtol=0.12, atol=0)


# Formulae, from the bits that the loss received


def recorded(make, logits=LOGITS, loss_of=curved, **options):
    """An estimator's estimate, the bits it drew and their losses, with the axes of the units."""
    loss, estimator = Recorder(loss_of), make(generator=seeded(12), **options)
    estimate = gradient(estimator, logits, loss)
    assert len(loss.values) == 1
    axes = [None] * estimator.neurons.event_dims
    return estimate, loss.values[0], loss.losses[0][(..., *axes)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("slope", [1.0, 0.6])
def test_score_function_formulae(slope):
    logits, p = rows(LOGITS, 7), (slope * LOGITS).sigmoid()
    estimate, b, f = recorded(Reinforce, logits, samples=3, slope=slope)
    assert b.shape == (3, 7, 3, 3)
    close(estimate, slope * sum(f[i] * (b[i] - p) for i in range(3)) / 3)

    for k in (2, 5):
        estimate, b, f = recorded(LeaveOneOut, logits, samples=k, slope=slope)
        others = [sum(f[j] for j in range(k) if j != i) / (k - 1) for i in range(k)]
        close(estimate, slope * sum((f[i] - others[i]) * (b[i] - p) for i in range(k)) / k)


def test_score_function_formulae_of_categories():
    p = CATEGORIES.softmax(-1)
    estimate, b, f = recorded(Reinforce, CATEGORIES, curved_of_categories, samples=4, neurons=OneHot)
    close(estimate, (f * (b - p)).mean(0))
    estimate, b, f = recorded(LeaveOneOut, CATEGORIES, curved_of_categories, samples=2, neurons=OneHot)
    close(estimate, (f[0] - f[1]) * (b[0] - b[1]) / 2)


@pytest.mark.parametrize(("samples", "decay"), [(1, 0.9), (2, 0.0)])
def test_running_baseline_formula(samples, decay):
    """A baseline comes from earlier calls only: at first there is none."""
    estimator = RunningBaseline(UNITS, samples=samples, decay=decay, generator=seeded(13)).double()
    product = square = torch.zeros(UNITS, dtype=torch.float64)
    p = LOGITS.sigmoid()
    for call in range(4):
        loss = Recorder()
        estimate = gradient(estimator, LOGITS, loss)
        b, f = loss.values[0], loss.losses[0][..., None]
        baseline = product / square if call else 0
        close(estimate, ((f - baseline) * (b - p)).mean(0))
        product = decay * product + (1 - decay) * (f * (b - p) ** 2).mean((0, 1))
        square = decay * square + (1 - decay) * ((b - p) ** 2).mean((0, 1))
    close(estimator.baseline.product, product)
    close(estimator.baseline.square, square)


def test_running_baseline_finds_that_of_least_variance():
    logits = LOGITS[1]
    p, states = logits.sigmoid(), Binary.states(logits)
    weights = Binary.log_probability(states, logits).exp()[:, None]
    squares = weights * (states - p) ** 2
    best = (squares * curved(states)[:, None]).sum(0) / squares.sum(0)
    estimator = RunningBaseline(UNITS, decay=0.9, generator=seeded(14)).double()
    for _ in range(100):
        gradient(estimator, rows(logits, 1000))
    torch.testing.assert_close(estimator.baseline.coefficient, best, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("slope", [1.0, 1.4])
def test_arm_and_disarm_formulae(slope):
    logits, p = rows(LOGITS, 40), (slope * LOGITS).sigmoid()
    u = uniform(rows(logits, 2), seeded(12))
    estimate, pair, f = recorded(Arm, logits, samples=2, slope=slope)
    b, antithetic = pair.chunk(2)
    assert torch.equal(b, (u > 1 - p).double())
    assert torch.equal(antithetic, (u < p).double())
    first, second = f.chunk(2)
    close(estimate, slope * ((first - second) * (u - 0.5)).mean(0))

    estimate, again, f = recorded(DisArm, logits, samples=2, slope=slope)
    assert torch.equal(again, pair)
    differ = torch.where(b != antithetic, torch.where(antithetic > 0, -1.0, 1.0), 0.0)
    close(estimate, slope * (0.5 * (first - second) * differ * torch.maximum(p, 1 - p)).mean(0))


def test_disarm_is_arm_averaged_over_what_the_bits_leave_open():
    logits = torch.tensor([0.8, -1.7], dtype=torch.float64)

    def of_two(values):
        return (values @ COUPLING[:2]).sin().sum(-1) + values.prod(-1)

    arm, pair, _ = recorded(Arm, rows(logits, 60_000), of_two)
    disarm, same, _ = recorded(DisArm, rows(logits, 60_000), of_two)
    assert torch.equal(pair, same)
    patterns = pair.transpose(0, 1).flatten(1)  # (rows, 4): both bits of the one, and of the other
    seen = patterns.unique(dim=0)
    assert len(seen) == 9  # of each unit: differ, or both 1 if its logit is above 0, or else both 0; and by which
    for pattern in seen:
        of_pattern = (patterns == pattern).all(-1)
        given = disarm[of_pattern]
        assert (given == given[0]).all()
        assert z_scores(arm[of_pattern], given[0]).max() < 4


def test_rebar_formula_and_scale():
    """From the three evaluations, finite differences in place of the derivatives, and known draws."""
    temperature, step = 0.7, 1e-6
    estimator = Rebar(UNITS, temperature=temperature, decay=0.8, samples=2, generator=seeded(15)).double()
    product = square = torch.zeros(UNITS, dtype=torch.float64)
    p, source = LOGITS.sigmoid(), seeded(15)
    for call in range(3):
        loss, state = Recorder(), source.get_state()
        estimate = gradient(estimator, LOGITS, loss)
        assert len(loss.values) == 1

        def pair(logits, state=state):
            source.set_state(state)
            return _relaxed_pair(rows(logits, 2), source)

        b, z, z_given_b = pair(LOGITS)
        close(loss.values[0], torch.cat([b, (z / temperature).sigmoid(), (z_given_b / temperature).sigmoid()]))
        slopes = torch.zeros_like(b)
        for unit in range(UNITS):
            shift = torch.zeros(UNITS, dtype=torch.float64)
            shift[unit] = step
            for sign in (-1, 1):
                _, z, z_given_b = pair(LOGITS + sign * shift)
                change = curved((z / temperature).sigmoid()) - curved((z_given_b / temperature).sigmoid())
                slopes[..., unit] += sign * change / (2 * step)
        f, _, at_z_given_b = loss.losses[0][..., None].chunk(3)
        score, control = f * (b - p), at_z_given_b * (b - p) - slopes
        scale = product / square if call else 0
        torch.testing.assert_close(estimate, (score - scale * control).mean(0), rtol=1e-6, atol=1e-7)
        product = 0.8 * product + 0.2 * (score * control).mean((0, 1))
        square = 0.8 * square + 0.2 * (control * control).mean((0, 1))
    torch.testing.assert_close(estimator.scale.coefficient, product / square, rtol=1e-6, atol=1e-7)


def test_rebar_control_has_mean_zero_and_the_pair_its_distribution():
    count, a = 40_000, torch.tensor([-2.5, -0.3, 0.0, 1.8], dtype=torch.float64)
    b, z, z_given_b = _relaxed_pair(rows(a, count), seeded(16))
    assert torch.equal(z > 0, b > 0)
    assert torch.equal(z_given_b > 0, b > 0)
    assert z_scores(b, a.sigmoid()).max() < 4
    at = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    for drawn in (z, z_given_b):  # both are logistic around a: Kolmogorov and Smirnov's distance, at the level 0.001
        assert ((drawn.sort(0).values - a).sigmoid() - at).abs().max() < 1.95 / math.sqrt(count)
    for bit in (0, 1):  # and also given the bit, where a second draw of z knows nothing of the first
        for unit in range(len(a)):
            chosen = b[:, unit] == bit
            n = int(chosen.sum())
            u = (z_given_b[chosen, unit] - a[unit]).sigmoid().sort().values
            below = 1 - a[unit].sigmoid()
            u = (u - below) / (1 - below) if bit else u / below
            assert (u - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / math.sqrt(n)
            both = torch.stack([z[chosen, unit], z_given_b[chosen, unit]])
            assert both.corrcoef()[0, 1].abs() < 4 / math.sqrt(n)


def test_rebar_pair_is_as_defined_and_finite_where_the_definition_is_not():
    a = torch.linspace(-6, 6, 25, dtype=torch.float64).expand(200, -1)
    b, _, z_given_b = _relaxed_pair(a, seeded(17))
    source = seeded(17)
    uniform(a, source)
    v, p = uniform(a, source), a.sigmoid()
    conditioned = torch.where(b > 0, v * p + 1 - p, v * (1 - p))
    torch.testing.assert_close(z_given_b, p.logit() + conditioned.logit(), rtol=1e-7, atol=1e-9)

    a = torch.tensor([-40.0, 40.0, 0.0]).expand(20_000, -1).clone().requires_grad_()
    b, z, z_given_b = _relaxed_pair(a, seeded(18))
    assert z.isfinite().all()
    assert z_given_b.isfinite().all()
    assert torch.equal(z_given_b > 0, b > 0)
    assert torch.autograd.grad((z + z_given_b).sum(), a)[0].isfinite().all()
    assert gradient(Rebar(UNITS, generator=seeded()), a, curved).isfinite().all()


@kinds(EVERY)
def test_extreme_logits_give_finite_gradients(make):
    logits = torch.tensor([[-80.0, 80.0, 0.0], [-1e4, 1e4, 3e38]]).expand(50, 2, 3)
    for _ in range(2):
        assert gradient(make(generator=seeded(19)), logits).isfinite().all()


# What lies below and inside


@kinds(EVERY)
def test_the_layer_below_is_trained(make):
    """A score-function estimator whose loss is detached together with its layer trains nothing below."""
    torch.manual_seed(0)
    below, estimator = nn.Linear(4, UNITS).double(), make(generator=seeded(20))
    inputs = torch.randn(64, 4, generator=seeded(21)).double()
    targets = (inputs[:, :UNITS] > 0).double()

    def loss_of(bits):
        return (bits - targets).square().sum(-1) + 0.3 * (bits.sum(-1) - targets.sum(-1)) ** 2

    def exact():
        with torch.no_grad():
            return Enumeration().expectation(below(inputs), loss_of).mean().item()

    optimizer, before = torch.optim.SGD(below.parameters(), lr=0.3), exact()
    for _ in range(15):
        optimizer.zero_grad()
        estimator.expectation(below(inputs), loss_of).mean().backward()
        assert below.weight.grad.abs().min() > 0
        assert below.bias.grad.abs().min() > 0
        optimizer.step()
    assert exact() < before - 0.2


@kinds(EVERY)
def test_parameters_inside_the_loss_get_the_ordinary_gradient(make):
    count = 20_000

    def weighted(weight):
        return lambda values: ((values * weight).sum(-1) + 0.3).sin() + (values[..., 0] * weight[..., 1]).exp()

    def grads(estimator, weight):
        weight, loss = weight.clone().requires_grad_(), None
        loss = Recorder(weighted(weight))
        logits = rows(LOGITS, len(weight)).clone().requires_grad_()
        estimator.expectation(logits, loss).sum().backward()
        return weight.grad, loss.values[0]

    estimator, weight = make(generator=seeded(22)), torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
    weight = weight.expand(count, *LOGITS.shape)
    found, values = grads(estimator, weight)
    exact, _ = grads(Enumeration(), weight[:1])
    if not isinstance(estimator, Enumeration):  # the mean over the evaluations, of bits only
        values = values[: len(values) // 3] if isinstance(estimator, Rebar) else values
        again = weight.clone().requires_grad_()
        weighted(again)(values).mean(0).sum().backward()
        close(found, again.grad)
    if not (isinstance(estimator, Concrete) and not estimator.hard):
        assert z_scores(found, exact[0]).max() < 4


NESTED = [
    ("reinforce", "leave one out"),
    ("running baseline", "disarm"),
    ("leave one out", "arm"),
    ("arm", "rebar"),
    ("disarm", "disarm, 2 samples"),
    ("rebar", "reinforce"),
    ("rebar", "rebar"),
    ("enumeration", "disarm"),
    ("disarm", "enumeration"),
]


@pytest.mark.parametrize(("outer", "inner"), NESTED)
def test_two_layers_are_unbiased(outer, inner):
    everything = {**UNBIASED, **EXACT}
    first, second = (everything[name](generator=seeded(seed)) for seed, name in enumerate((outer, inner), 23))

    def grads(first, second, count):
        """Of each row's own logits, weights and biases."""
        given = (LOGITS[2], COUPLING, torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64))
        logits, weight, bias = leaves = [rows(one, count).clone().requires_grad_() for one in given]

        def upper(values):
            logits = (values[..., None, :] @ weight).squeeze(-2) + bias
            return second.expectation(logits, lambda upmost: curved(upmost) + 0.5 * curved(values + upmost))

        value = first.expectation(logits, upper)
        assert value.shape == (count,)
        value.sum().backward()
        return torch.cat([leaf.grad.flatten(1) for leaf in leaves], 1)

    exact = grads(Enumeration(), Enumeration(), 1)[0]
    for _ in range(20):
        grads(first, second, 20)
    assert z_scores(grads(first, second, 20_000), exact).max() < 4.2


def test_a_straight_through_layer_below_passes_on_what_one_above_estimates():
    """With a loss linear in the lower bits both the sum over all and the straight-through layer are exact."""
    logits = rows(LOGITS, 20_000)

    def upper(estimator):
        bias = torch.tensor([0.3, -0.8, 1.0], dtype=torch.float64)
        return lambda values: estimator.expectation(bias + 0 * values, lambda b: curved(b) * (values @ bias))

    exact = gradient(Enumeration(), LOGITS, upper(Enumeration()))
    found = gradient(StraightThrough(generator=seeded(24)), logits, upper(DisArm(generator=seeded(25))))
    assert z_scores(found, exact).max() < 4


EVALUATIONS = {
    "reinforce, 3 samples": 3,
    "running baseline, 2 samples": 2,
    "leave one out": 2,
    "leave one out, 4 samples": 4,
    "arm": 2,
    "arm, 2 samples": 4,
    "disarm, 2 samples": 4,
    "rebar": 3,
    "rebar, 2 samples": 6,
    "adjusted": 1,
    "soft": 1,
    "enumeration": 8,
}


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)], ids=str)
def test_the_loss_is_asked_once_with_the_evaluations_in_front(batch):
    logits = torch.zeros(*batch, UNITS, dtype=torch.float64)
    for name, evaluations in EVALUATIONS.items():
        loss = Recorder()
        value = EVERY[name](generator=seeded()).expectation(logits.requires_grad_(), loss)
        assert [values.shape for values in loss.values] == [(evaluations, *batch, UNITS)]
        assert value.shape == batch
    for make in (StraightThrough, Concrete):
        loss = Recorder()
        make(samples=4).expectation(logits, loss)
        assert [values.shape for values in loss.values] == [(4, *batch, UNITS)]
    with torch.no_grad():  # no derivatives, no evaluations between the decisions
        loss = Recorder()
        Rebar(UNITS, samples=4).expectation(logits, loss)
        assert [values.shape for values in loss.values] == [(4, *batch, UNITS)]


def test_several_samples_are_independent():
    loss = Recorder(lambda b: b.sum(-1))
    Reinforce(samples=2, generator=seeded(26)).expectation(torch.zeros(4000, 1), loss)
    first, second = loss.values[0][..., 0]
    assert abs((first == second).float().mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)


# Use as a layer


ALL_CATEGORICAL = {**CATEGORICAL, **BIASED, **EXACT}
DETERMINISTIC = {"deterministic": lambda **options: StraightThrough(deterministic=True, **options)}
OF_BITS = [(make, LOGITS, (LOGITS > 0).double(), curved, {}) for make in {**EVERY, **DETERMINISTIC}.values()]
MOST = torch.zeros_like(CATEGORIES).scatter_(-1, CATEGORIES.argmax(-1, keepdim=True), 1)
OF_CATEGORIES = [
    (make, CATEGORIES, MOST, curved_of_categories, {"neurons": OneHot}) for make in ALL_CATEGORICAL.values()
]


@pytest.mark.parametrize(("make", "logits", "most", "loss_of", "options"), OF_BITS + OF_CATEGORIES)
def test_evaluation_mode_decides_and_draws_nothing(make, logits, most, loss_of, options):
    """The more probable value: for bits 0 at a tie, for categories the first of them."""
    source, loss = seeded(27), Recorder(loss_of)
    estimator = make(generator=source, **options).eval()
    state, world = source.get_state(), torch.get_rng_state()
    assert torch.equal(estimator(logits.clone().requires_grad_()), most)
    value = estimator.expectation(logits, loss)
    assert torch.equal(loss.values[0], most[None])
    assert torch.equal(value, loss.losses[0][0])
    assert torch.equal(source.get_state(), state)
    assert torch.equal(torch.get_rng_state(), world)
    assert all(not buffer.any() for buffer in estimator.buffers())


@kinds(EVERY)
def test_without_gradients_neurons_draw(make):
    estimator, logits = make(generator=seeded(28)), rows(LOGITS, 4000).clone().requires_grad_()
    with torch.no_grad():
        values = estimator(logits)
    assert not values.requires_grad
    if not (isinstance(estimator, Concrete) and not estimator.hard):
        assert set(values.unique().tolist()) == {0.0, 1.0}
        assert z_scores(values, LOGITS.sigmoid()).max() < 4
    with torch.no_grad():
        estimator.expectation(logits, curved)
    assert all(not buffer.any() for buffer in estimator.buffers())


def test_deterministic_straight_through_draws_nothing_and_has_the_same_gradient():
    world = torch.get_rng_state()
    for adjusted in (True, False):
        logits = LOGITS.clone().requires_grad_()
        values = StraightThrough(adjusted=adjusted, deterministic=True)(logits)
        assert torch.equal(values, (LOGITS > 0).double())
        (values * COUPLING).sum().backward()
        p = LOGITS.sigmoid()
        close(logits.grad, COUPLING * (p * (1 - p) if adjusted else 1))
    assert torch.equal(torch.get_rng_state(), world)


def test_straight_through_in_a_sequence_of_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), StraightThrough(generator=seeded(29)), nn.Linear(6, 2)).double()
    inputs = torch.randn(8, 5, generator=seeded(30)).double()
    net(inputs).square().sum().backward()
    assert all(one.grad.abs().sum() > 0 for one in net.parameters())
    net.eval()
    assert torch.equal(net(inputs), net(inputs))
    assert torch.equal(net[1](net[0](inputs)), (net[0](inputs) > 0).double())
    net.train()
    assert not torch.equal(net(inputs), net(inputs))
    assert "StraightThrough(neurons=Binary, samples=1, slope=1.0)" in repr(net)


def test_straight_through_gives_the_value_and_the_surrogates_gradient():
    value, surrogate = torch.randn(4, 3, generator=seeded(31)).double(), LOGITS[0].expand(4, 3).clone()

    def of_bits(logits):
        return straight_through((logits > 0).double(), logits.sin())

    surrogate.requires_grad_()
    found = straight_through(value, surrogate.sin())
    assert torch.equal(found, value)
    assert torch.equal(straight_through(1e-30 * value, 1e30 * surrogate), 1e-30 * value)  # to the last digit
    (slopes,) = torch.autograd.grad(found.square().sum(), surrogate)
    close(slopes, 2 * value * surrogate.detach().cos())
    wanted = value.clone().requires_grad_()
    straight_through(wanted, surrogate.sin()).sum().backward()
    assert wanted.grad is None

    logits = torch.randn(6, 3, generator=seeded(32)).double()
    each = torch.stack([of_bits(one) for one in logits])
    assert torch.equal(torch.vmap(of_bits)(logits), each)
    by_row = torch.func.vmap(torch.func.grad(lambda one: (of_bits(one) * COUPLING[0]).sum()))(logits)
    close(by_row, COUPLING[0] * logits.cos())
    value, tangent = torch.func.jvp(of_bits, (logits,), (torch.ones_like(logits),))
    assert torch.equal(value, each)
    close(tangent, logits.cos())
    close(torch.func.vmap(torch.func.jacrev(of_bits))(logits), torch.diag_embed(logits.cos()))

    for other in (torch.zeros(3, 1), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="value must have the shape and dtype of surrogate"):
            straight_through(torch.zeros(3), other)


def copied(estimator):
    """A copy of the estimator. Torch before 2.4 cannot copy a generator: there, the copy is given one in the same state."""
    try:
        return copy.deepcopy(estimator)
    except TypeError:
        generator = torch.Generator().set_state(estimator.generator.get_state())
        return copy.deepcopy(estimator, {id(estimator.generator): generator})


def test_running_means_are_saved_and_copied():
    for make in (UNBIASED["running baseline"], UNBIASED["rebar"]):
        estimator = make(generator=seeded(33))
        assert [buffer.tolist() for buffer in estimator.buffers()] == [[0.0] * UNITS] * 2
        gradient(estimator, LOGITS)
        state = estimator.state_dict()
        assert sorted(key.split(".")[1] for key in state) == ["product", "square"]
        assert all(one.abs().min() > 0 for one in state.values())

        clone = copied(estimator)
        fresh = make(generator=seeded(33))
        fresh.load_state_dict(state)
        fresh.generator.set_state(estimator.generator.get_state())
        wanted = gradient(estimator, LOGITS)
        assert torch.equal(gradient(clone, LOGITS), wanted)
        assert torch.equal(gradient(fresh, LOGITS), wanted)
        assert torch.equal(estimator.state_dict()[key := next(iter(state))], clone.state_dict()[key])
        gradient(clone, LOGITS)  # moves on alone
        assert not torch.equal(estimator.state_dict()[key], clone.state_dict()[key])


# Slope, temperature and schedules


@kinds(EVERY)
@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_the_slope_follows_the_chain_rule(make, slope):
    with_slope = gradient(make(slope=slope, generator=seeded(34)), LOGITS)
    close(with_slope, slope * gradient(make(generator=seeded(34)), slope * LOGITS))
    changed = make(generator=seeded(34))
    changed.slope = slope
    assert torch.equal(gradient(changed, LOGITS), with_slope)
    with torch.no_grad():  # enumeration has no generator of its own, and draws from torch's
        torch.manual_seed(35)
        values = make(slope=slope, generator=seeded(35))(LOGITS)
        torch.manual_seed(35)
        assert torch.equal(values, make(generator=seeded(35))(slope * LOGITS))


def test_a_steep_slope_is_the_threshold_and_a_cold_relaxation_is_a_bit():
    logits = LOGITS[LOGITS != 0]
    with torch.no_grad():
        for make in EVERY.values():
            estimator = make(slope=1e6, generator=seeded(36))
            if isinstance(estimator, RunningBaseline | Rebar):
                continue  # of another number of units
            assert torch.equal(estimator(rows(logits, 50)).round(), rows((logits > 0).double(), 50))
    for neurons, logits in ((Binary, LOGITS), (OneHot, CATEGORIES)):
        cold, hard, warm = (
            Concrete(temperature=temperature, hard=hard, neurons=neurons, generator=seeded(37))(rows(logits, 500))
            for temperature, hard in ((1e-4, False), (0.5, True), (0.5, False))
        )
        assert ((cold - hard).abs() < 1e-6).double().mean() > 0.995
        assert torch.equal(cold.round(), hard)
        assert 0.02 < (warm - hard).abs().mean() < 0.5


@pytest.mark.parametrize(("neurons", "logits"), [(Binary, LOGITS), (OneHot, CATEGORIES)])
def test_a_hard_relaxation_is_a_sample_with_the_gradient_of_the_soft(neurons, logits):
    weight, grads = torch.randn(logits.shape, generator=seeded(38)).double(), []
    for hard in (True, False):
        leaf = rows(logits, 20_000).clone().requires_grad_()
        values = Concrete(hard=hard, temperature=0.8, neurons=neurons, generator=seeded(39))(leaf)
        (values * weight).sum().backward()
        grads.append(leaf.grad)
        if hard:
            assert set(values.unique().tolist()) == {0.0, 1.0}
            assert z_scores(values.detach(), neurons.probabilities(logits)).max() < 4
    assert torch.equal(*grads)


@kinds(BIASED)
def test_the_temperature_may_change(make):
    estimator = make(generator=seeded(40))
    if isinstance(estimator, Concrete):
        estimator.temperature = Geometric(1.0, 0.9, limit=0.5)(3)
        again = Concrete(temperature=0.9**3, hard=estimator.hard, generator=seeded(40))
        assert torch.equal(gradient(estimator, LOGITS), gradient(again, LOGITS))


def test_schedules():
    assert Geometric(1.0, 1.1)(20) == pytest.approx(6.7275, abs=1e-4)
    assert Geometric(2.0, 0.9)(0) == 2.0
    assert [Geometric(1.0, 2.0, limit=5.0)(epoch) for epoch in range(5)] == [1, 2, 4, 5, 5]
    assert [Geometric(1.0, 0.5, limit=0.2)(epoch) for epoch in range(5)] == [1, 0.5, 0.25, 0.2, 0.2]
    assert [Linear(1.0, 0.04)(epoch) for epoch in (0, 1, 25)] == pytest.approx([1, 1.04, 2])
    assert Linear(1.0, 0.04, limit=5.0)(1000) == 5.0
    assert [Linear(1.0, -0.25, limit=0.5)(epoch) for epoch in range(4)] == [1, 0.75, 0.5, 0.5]
    assert Linear(1.0, 0.5)(2.5) == 2.25  # between epochs
    assert Geometric(1.0, 1.1) == Geometric(1.0, 1.1)
    estimator = StraightThrough(slope=Geometric(1.0, 1.1)(1))
    assert estimator.slope == pytest.approx(1.1)


# Randomness and precision


@kinds(EVERY)
def test_reproducible_from_the_generator_alone(make):
    world = torch.get_rng_state()
    first, again = (Recorder() for _ in range(2))
    grads = [gradient(make(generator=seeded(41)), rows(LOGITS, 30), loss) for loss in (first, again)]
    assert torch.equal(*grads)
    assert torch.equal(first.values[0], again.values[0])
    other = Recorder()
    gradient(make(generator=seeded(42)), rows(LOGITS, 30), other)
    assert torch.equal(torch.get_rng_state(), world)
    if make is not EXACT["enumeration"]:
        assert not torch.equal(first.values[0], other.values[0])
        torch.manual_seed(41)
        own = Recorder()
        gradient(make(), rows(LOGITS, 30), own)
        assert torch.equal(own.values[0], first.values[0])
        assert not torch.equal(torch.get_rng_state(), world)
    torch.set_rng_state(world)


@kinds(EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_have_the_dtype_of_the_logits(make, dtype):
    loss, estimator = Recorder(), make(generator=seeded(43))
    grads = gradient(estimator, rows(LOGITS, 40).to(dtype), loss)
    assert grads.dtype == dtype
    assert loss.values[0].dtype == dtype
    bits = loss.values[0][:1]  # the first of REBAR's are bits too
    if not (isinstance(estimator, Concrete) and not estimator.hard):
        assert set(bits.unique().tolist()) <= {0.0, 1.0}


def test_single_and_double_precision_agree_where_nothing_is_drawn(monkeypatch):
    found = [gradient(Enumeration(), LOGITS.to(dtype)).double() for dtype in (torch.float32, torch.float64)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    # and given the draws:
    u = iter(torch.rand(200, 3, 3, generator=seeded(44), dtype=torch.float64).clamp(0.001, 0.999).split(2))
    kept = list(u)

    def dealt(to):
        cards = iter(kept)
        return lambda like, generator: next(cards).reshape(like.shape).to(to)

    for name in ("arm, 2 samples", "disarm, 2 samples", "rebar, 2 samples"):
        found = []
        for dtype in (torch.float32, torch.float64):
            monkeypatch.setattr("shared.stochastic.estimators.uniform", dealt(dtype))
            estimator = UNBIASED[name]()
            gradient(estimator, LOGITS.to(dtype))
            found.append(gradient(estimator, LOGITS.to(dtype)).double())
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=SHAPES, units=st.integers(1, 5), seed=st.integers(0, 2**31), data=st.data())
def test_bits_fire_as_often_as_their_probabilities_say(batch, units, seed, data):
    logit = st.floats(-3, 3, width=32)
    count = math.prod(batch) * units
    logits = torch.tensor(data.draw(st.lists(logit, min_size=count, max_size=count))).reshape(*batch, units)
    with torch.no_grad():
        bits = Reinforce(generator=seeded(seed))(rows(logits, 3000))
    assert bits.shape == (3000, *logits.shape)
    assert ((bits == 0) | (bits == 1)).all()
    p = logits.sigmoid()
    assert ((bits.mean(0) - p).abs() <= 4.5 * (p * (1 - p) / 3000).sqrt()).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=SHAPES, units=st.integers(1, 3), k=st.integers(2, 6), seed=st.integers(0, 2**31), scale=st.floats(0, 3))
def test_categories_are_taken_as_often_as_their_probabilities_say(batch, units, k, seed, scale):
    logits = scale * torch.randn(*batch, units, k, generator=seeded(seed))
    for make in (Reinforce, StraightThrough, BIASED["hard"]):
        with torch.no_grad():
            values = make(neurons=OneHot, generator=seeded(seed + 1))(rows(logits, 2000))
        assert values.shape == (2000, *logits.shape)
        assert (values.sum(-1) == 1).all()
        assert ((values == 0) | (values == 1)).all()
        p = logits.softmax(-1)
        # Of rare ones there are none more often than the normal law has it, and one more:
        assert ((values.mean(0) - p).abs() <= 4.5 * (p * (1 - p) / 2000).sqrt() + 1 / 2000).all()


def test_what_has_no_probability_never_happens():
    with torch.no_grad():
        bits = Reinforce(generator=seeded(45))(torch.tensor([-200.0, 200.0]).expand(100_000, 2))
        assert bits.sum(0).tolist() == [0, 100_000]
        logits = torch.tensor([[-200.0, 0.0, -200.0, 0.0]]).expand(50_000, 1, 4)
        values = Reinforce(neurons=OneHot, generator=seeded(46))(logits)
    assert (values.sum((0, 1)) > 0).tolist() == [False, True, False, True]


def test_uniform_numbers_lie_between_0_and_1(monkeypatch):
    u = uniform(torch.zeros(1000), seeded())
    assert u.shape == (1000,)
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12_000)
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, dtype=options["dtype"]))
    for dtype in (torch.float32, torch.float64):
        smallest = uniform(torch.zeros(3, dtype=dtype), None)
        assert (smallest > 0).all()
        assert smallest.logit().isfinite().all()


# What is refused


@kinds(EVERY)
def test_bad_logits(make):
    estimator = make(generator=seeded(47))
    state = seeded(47).get_state()
    bad = LOGITS.clone()
    bad[0, 0], bad[1, 1:] = math.nan, math.inf
    integers = torch.zeros(2, 3, dtype=torch.long)
    refused = {
        "logits must be finite (got 1 NaN and 2 infinite)": bad,
        "logits must be a tensor (*batch, units) of float32 or float64 (got (2, 3), torch.int64)": integers,
        "logits must be a tensor (*batch, units) of float32 or float64 (got ()": torch.tensor(0.5),
        "logits must be a tensor (*batch, units) of float32 or float64 (got [0.5": [0.5, 0.5, 0.5],
    }
    for training in (True, False):
        estimator.train(training)
        for message, logits in refused.items():
            for call in (estimator, lambda logits: estimator.expectation(logits, curved)):
                with pytest.raises(ValueError, match=re.escape(message)):
                    call(logits)
    if estimator.generator is not None:
        assert torch.equal(estimator.generator.get_state(), state)
        for call in (estimator, lambda logits: estimator.expectation(logits, curved)):
            with pytest.raises(ValueError, match="generator must be on the device of the logits, meta"):
                call(torch.zeros(2, 3, device="meta"))
    assert all(not buffer.any() for buffer in estimator.buffers())


def test_logits_whose_sum_overflows_are_finite():
    logits = torch.full((2, 3), 3e38)
    assert Reinforce().eval()(logits).tolist() == [[1.0] * 3] * 2


def test_bad_logits_of_categories():
    for make in (Reinforce, Enumeration, StraightThrough, Concrete):
        estimator = make(neurons=OneHot)
        with pytest.raises(ValueError, match=re.escape("at least 2 categories (got shape (4, 2, 1))")):
            estimator.expectation(torch.zeros(4, 2, 1), lambda b: b.sum((-1, -2)))
        with pytest.raises(
            ValueError, match=re.escape("(*batch, units, categories) of float32 or float64 (got (3,), torch.float32)")
        ):
            estimator(torch.zeros(3))


@pytest.mark.parametrize("units", [1, UNITS + 1, (2, UNITS)], ids=str)
def test_another_number_of_units_is_refused(units):
    """A running mean of one unit would broadcast, and one of more units would make the gradient a multiple."""
    for make in (RunningBaseline, Rebar):
        estimator = make(units, generator=seeded(48))
        for call in (estimator.eval(), lambda logits: estimator.train().expectation(logits, curved)):  # noqa: B023
            with pytest.raises(ValueError, match=re.escape("units must be the last axes of the logits, (")):
                call(LOGITS)
        assert torch.equal(estimator.generator.get_state(), seeded(48).get_state())
    logits = torch.zeros(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match="units"):
        RunningBaseline(UNITS).expectation(logits, lambda b: b.sum(-1))
    with pytest.raises(ValueError, match=re.escape("2, 3) (got (3,))")):
        RunningBaseline(3, neurons=OneHot).expectation(CATEGORIES, curved_of_categories)


BAD_NUMBERS = [0, 0.0, -1.0, math.nan, math.inf, -math.inf, True, "1", None, torch.tensor(1.0)]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
def test_bad_slopes_and_temperatures(value):
    for make in EVERY.values():
        with pytest.raises(ValueError, match="slope must be a number above 0"):
            make(slope=value)
        estimator = make(generator=seeded(49))
        estimator.slope = value
        for call in (estimator, lambda logits: estimator.expectation(logits, curved)):  # noqa: B023
            with pytest.raises(ValueError, match="slope must be a number above 0"):
                call(LOGITS)
    for make in (Concrete, lambda **options: Rebar(UNITS, **options)):
        with pytest.raises(ValueError, match="temperature must be a number above 0"):
            make(temperature=value)
        estimator = make(generator=seeded(49))
        estimator.temperature = value
        with pytest.raises(ValueError, match="temperature must be a number above 0"):
            gradient(estimator, LOGITS)
        assert torch.equal(estimator.generator.get_state(), seeded(49).get_state())
    for name in ("start", "factor", "limit"):
        if (name, value) != ("limit", None):
            with pytest.raises(ValueError, match=f"{name} must be a number above 0"):
                Geometric(**{"start": 1.0, "factor": 1.1, name: value})
            with pytest.raises(ValueError, match="must be a number above 0"):
                Linear(**{"start": 1.0, "step": 0.1, "limit" if name == "limit" else "start": value})


def test_bad_options():
    for samples in (0, -1, 1.5, "2", None):
        for make in (Reinforce, LeaveOneOut, Arm, DisArm, StraightThrough, Concrete):
            with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
                make(samples=samples)
    with pytest.raises(ValueError, match="samples must be at least 2"):
        LeaveOneOut(samples=1)
    for decay in (1, 1.0, -0.1, math.nan, math.inf):
        for make in (RunningBaseline, Rebar):
            with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
                make(UNITS, decay=decay)
    for make in (Arm, DisArm):
        with pytest.raises(TypeError, match="neurons"):
            make(neurons=OneHot)
    for schedule in (Geometric(1.0, 1.1), Linear(1.0, 0.1)):
        with pytest.raises(ValueError, match="epoch must be at least 0"):
            schedule(-1)
    with pytest.raises(ValueError, match="the value of the schedule must be a number above 0"):
        Linear(1.0, -0.5)(2)


@kinds(UNBIASED)
def test_without_the_loss_there_is_no_gradient(make):
    estimator = make(generator=seeded(50))
    with pytest.raises(ValueError, match=re.escape("needs the loss to give a gradient: call expectation(")):
        estimator(LOGITS.clone().requires_grad_())
    assert torch.equal(estimator.generator.get_state(), seeded(50).get_state())
    assert estimator(LOGITS).shape == LOGITS.shape  # none is wanted


@kinds(EVERY)
def test_bad_losses_change_no_running_mean(make):
    logits = rows(LOGITS, 2).clone().requires_grad_()
    for training in (True, False):
        estimator = make(generator=seeded(51)).train(training)
        for loss_of in (None, 3.0, LOGITS):
            with pytest.raises(TypeError, match="loss_of must be a function"):
                estimator.expectation(logits, loss_of)
        if estimator.generator is not None:
            assert torch.equal(estimator.generator.get_state(), seeded(51).get_state())
        for loss_of, got in (
            (lambda b: b.mean(), r"(got ())"),
            (lambda b: b.mean((-1, 0)), r"(got (2, 3))"),
            (lambda b: b, "(got ("),
            (lambda b: b.sum(-1)[:, :1], "1, 3))"),  # which would broadcast
            (lambda b: b.sum(-1).tolist(), "(got list)"),
            (lambda b: None, "(got NoneType)"),
        ):
            with pytest.raises(ValueError, match="one loss for each example, of shape") as error:
                estimator.expectation(logits, loss_of)
            assert got in str(error.value)
        assert all(not buffer.any() for buffer in estimator.buffers())


def test_networks_side_by_side_have_running_means_of_their_own():
    """Logits (batch, networks, units), the second network with losses a hundred times as large."""
    logits = torch.zeros(200, 2, UNITS, requires_grad=True)
    for make in (RunningBaseline, Rebar):
        estimator = make((2, UNITS), generator=seeded(60))
        estimator.expectation(logits, lambda bits: curved(bits) * torch.tensor([1.0, 100.0])).sum().backward()
        product = (estimator.baseline if make is RunningBaseline else estimator.scale).product
        assert product.shape == (2, UNITS)
        assert (product[1].abs() > 20 * product[0].abs()).all()


def test_running_means_rest_where_no_gradient_is_wanted():
    estimator = RunningBaseline(UNITS, generator=seeded(61))
    estimator.expectation(torch.zeros(9, UNITS), curved)
    assert not estimator.baseline.square.any()


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="of float32 or float64"):
        StraightThrough()(torch.zeros(2, 3, dtype=torch.bfloat16))
