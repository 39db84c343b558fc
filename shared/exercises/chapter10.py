"""Checkers for the exercises of chapter 10, ternary and one-hot neurons."""

import numpy as np
import torch

from shared.exercises import Wrong, checker, off

CASES = 20
TINY = 1e-6


def _same_shape(ours, right):
    ours = torch.as_tensor(ours)
    if ours.shape != right.shape:
        raise Wrong(f"the result should have shape {tuple(right.shape)} (got {tuple(ours.shape)}).")
    return ours.detach().to(right.dtype)


@checker("10.1", "Only neighbours, the right mean, and a whole number stays what it is.")
def neighbour(answer):
    """`answer(values, u)` returns the lower neighbour of each value, or the upper one where u is below the fraction."""
    for _ in range(CASES):
        values, u = 2.5 * torch.randn(4, 50, dtype=torch.float64), torch.rand(4, 50, dtype=torch.float64)
        values[0, :5] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
        lower = values.floor()
        fraction = values - lower
        right = lower + (u < fraction).double()
        ours = _same_shape(answer(values.clone(), u.clone()), right)
        if torch.equal(ours, right):
            continue
        if not torch.equal(ours, ours.round()):
            raise Wrong("not all of your numbers are whole.")
        if torch.equal(ours, lower + (u < 1 - fraction).double()):
            raise Wrong("the wrong way round: it is the upper number whose probability is the fractional part.")
        if torch.equal(ours, values.round()):
            raise Wrong("that is the nearest whole number, whatever u is.")
        whole = fraction == 0
        if not torch.equal(ours[whole], values[whole]):
            raise Wrong("a value that is whole has nothing to draw: it must stay.")
        far = (ours - values).abs() >= 1
        if far.any():
            one = values[far][0].item()
            raise Wrong(
                f"for {one:.2f} you return {ours[far][0]:.0f}, which is not beside it: is it the floor you take?"
            )
        # From one set of uniform numbers to the mean over many.
        many = torch.rand(20_000, 1, dtype=torch.float64)
        mean = torch.as_tensor(answer(torch.full_like(many, 0.2), many)).double().mean().item()
        if abs(mean - 0.2) > 0.05:
            raise Wrong(f"neighbours all, but the mean for 0.2 is {mean:.2f}.")
        raise Wrong(f"{int((ours != right).sum())} of {ours.numel()} draws differ from equation 10.1 with these u.")


def _steps(x, factor, lowest, highest, shift):
    """A logistic step, `shift` above each of the whole numbers from `lowest` to below `highest`."""
    borders = torch.arange(lowest, highest, dtype=x.dtype) + shift
    return lowest + (factor * (x[:, None] - borders)).sigmoid().sum(-1)


@checker("10.2", "A step about each border, and every border stays where it is, whatever the slope.")
def staircase(answer):
    """`answer(x, slope, lowest, highest)` returns the soft rounding to whole numbers from `lowest` to `highest`."""
    rng = np.random.default_rng()
    for case in range(CASES):
        lowest = int(rng.integers(-3, 1))
        highest = lowest + int(rng.integers(1, 5))
        if case < 2:
            lowest, highest = [(0, 1), (-1, 1)][case]
        slope = float(rng.uniform(0.5, 4.5))
        x = torch.linspace(lowest - 2, highest + 2, 63, dtype=torch.float64)
        right = _steps(x, 2 * slope, lowest, highest, 0.5)
        ours = _same_shape(answer(x.clone(), slope, lowest, highest), right)
        if (ours - right).abs().max() < TINY:
            continue
        where = f"from {lowest} to {highest} with slope {slope:.1f}"
        if (ours + lowest - right).abs().max() < TINY:
            raise Wrong(f"{where}: add the lowest number; yours begins at 0.")
        if (ours - _steps(x, slope, lowest, highest, 0.5)).abs().max() < TINY:
            raise Wrong(f"{where}: the factor 2 is missing in the slope of each step.")
        moved = [_steps(x, 2 * slope, lowest, highest, shift) for shift in (0, 1)]
        if min((ours - one).abs().max() for one in moved) < TINY:
            raise Wrong(f"{where}: your steps are at the whole numbers; they belong half-way between them.")
        rise = (ours[-1] - ours[0]).item()
        if abs(rise - (right[-1] - right[0]).item()) > 0.3:
            raise Wrong(
                f"{where}: it rises by {rise:.2f}, and should by about {highest - lowest}: a step for each border."
            )
        raise Wrong(f"{where}: off by up to {(ours - right).abs().max():.2g}.")


@checker("10.3", "Every entry of the gradient counts, those of categories that were not taken too.")
def one_hot_gradient(answer):
    """`answer(a, g, temperature)` returns the straight-through gradient of the logits, equation 10.14."""
    for case in range(CASES):
        k, temperature = 2 + case % 4, 0.3 + 2 * torch.rand(()).item()
        a, g = torch.randn(5, 3, k, dtype=torch.float64), torch.randn(5, 3, k, dtype=torch.float64)
        leaf = a.clone().requires_grad_()
        (right,) = torch.autograd.grad((leaf / temperature).softmax(-1), leaf, g)
        ours = _same_shape(answer(a.clone(), g.clone(), temperature), right)
        if off(ours, right) < TINY:
            continue
        if off(ours, right * temperature) < TINY:
            raise Wrong(f"divide by the temperature: yours is {temperature:.2f} times too large.")
        p, cold = (a / temperature).softmax(-1), a.softmax(-1)
        if off(ours, cold * (g - (cold * g).sum(-1, keepdim=True)) / temperature) < TINY:
            raise Wrong("the probabilities depend on the temperature too.")
        if off(ours, p * g / temperature) < TINY or off(ours, p * g) < TINY:
            raise Wrong("the mean of g is missing: raising one probability lowers all the others.")
        if off(ours, p * (1 - p) * g / temperature) < TINY or off(ours, p * (1 - p) * g) < TINY:
            raise Wrong("that is the Jacobian's diagonal alone; the other entries are −p_i p_j.")
        if off(ours, g) < TINY:
            raise Wrong("that is the gradient that arrives; it still has to pass the softmax.")
        if off(ours, p * (g - g.mean(-1, keepdim=True)) / temperature) < TINY:
            raise Wrong("the mean of g is to be taken with the probabilities as weights.")
        total = ours.sum(-1).abs().max().item()
        if total > 1e-3:
            raise Wrong(
                f"adding the same to all logits changes nothing, so each neuron's gradient sums to 0 (yours to {total:.2g})."
            )
        raise Wrong(f"off by {off(ours, right):.2g} of the largest entry.")


@checker("10.4", "It says one of two things, so that the derivative is the difference of two losses.")
def exact_gradient(answer):
    """`answer(v, losses)` returns the derivative of the expected loss of a ternary neuron, exactly."""
    for _ in range(CASES):
        v = torch.rand(12, dtype=torch.float64) * 1.9 - 0.95
        v = torch.where(v.abs() < 0.02, 0.3, v)
        losses = torch.randn(12, 3, dtype=torch.float64)
        against, neither, favour = losses.unbind(-1)
        right = torch.where(v > 0, favour - neither, neither - against)
        ours = _same_shape(answer(v.clone(), losses.clone()), right)
        if off(ours, right) < TINY:
            continue
        for wrong, what in (
            (-right, "the sign is wrong: v raises the probability of the larger number."),
            (
                (favour - against) / 2,
                "that is half the difference between 1 and −1: the neuron never draws between those two.",
            ),
            (torch.where(v > 0, neither - against, favour - neither), "the two sides of zero are exchanged."),
            (favour - neither, "right above zero; below it the neuron says −1 or 0."),
            (
                right * v.sign(),
                "the sign is wrong below zero: there, too, v raises the probability of the larger number.",
            ),
        ):
            if off(ours, wrong) < TINY:
                raise Wrong(what)
        expected = torch.where(v > 0, (1 - v) * neither + v * favour, (1 + v) * neither - v * against)
        if off(ours, expected) < TINY:
            raise Wrong("that is the expected loss itself; its derivative is asked for.")
        i = int((ours - right).abs().argmax())
        side = "above" if v[i] > 0 else "below"
        raise Wrong(f"off by {off(ours, right):.2g} of the largest, most for v = {v[i]:.2f}, {side} zero.")
