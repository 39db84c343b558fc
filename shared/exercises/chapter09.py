"""Checkers for the exercises of chapter 9, neurons that decide."""

import numpy as np
import torch

from shared.exercises import Wrong, checker, off

CASES = 10


def _logits(rng, units):
    return torch.tensor(rng.uniform(-3, 3, units))


def _loss(rng, units):
    """A loss in which the bits interact, (..., units) -> (...)."""
    pull, pair = torch.tensor(rng.normal(size=units)), torch.tensor(rng.normal(size=(units, units)))
    return lambda bits: bits @ pull + ((bits @ pair) * bits).sum(-1) + 3


def _tensor(ours, shape, what="an estimate for every logit"):
    if not isinstance(ours, torch.Tensor) or ours.shape != shape:
        got = tuple(ours.shape) if isinstance(ours, torch.Tensor) else type(ours).__name__
        raise Wrong(f"return {what}, a tensor of shape {tuple(shape)}; yours is {got}.")


@checker("9.1", "Exactly 0 or 1 on the way forward, and the slope of σ on the way back.")
def bit(answer):
    """`answer(logits, u)` returns 1[u < σ(logits)] with the adjusted straight-through gradient."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        a = _logits(rng, 6).float().requires_grad_()
        u = torch.tensor(rng.random(6)).float()
        ours = answer(a, u)
        _tensor(ours, a.shape, "a bit for every logit")
        p = a.detach().sigmoid()
        right = (u < p).float()
        if (ours.detach() - right).abs().max() > 1e-3:
            raise Wrong("these are not the bits 1[u < σ(a)].")
        if not torch.equal(ours.detach(), right):
            raise Wrong(
                "nearly: some of your bits are off by a rounding error. Add something that is exactly zero, "
                "x − x.detach(), and do not add and take away a probability."
            )
        if not ours.requires_grad:
            raise Wrong("the bits are right, but no gradient goes through them.")
        (slope,) = torch.autograd.grad(ours.sum(), a, allow_unused=True)
        if slope is None:
            raise Wrong("the bits are right, but no gradient goes through them.")
        if off(slope, p * (1 - p)) > 1e-5:
            if off(slope, torch.ones(6)) < 1e-5:
                raise Wrong("that is pass-through, a gradient of one; the adjusted one is the derivative of σ.")
            raise Wrong(f"the bits are right, the gradient is off by {off(slope, p * (1 - p)):.2g} of the largest.")


@checker("9.2", "Its own constant for each neuron, and no estimate is shifted on average.")
def best_baseline(answer):
    """`answer(losses, bits, p)` returns (f − c)(b − p) with the baselines of equation 9.7, means over the samples."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        samples, units = 200, int(rng.integers(1, 5))
        p = _logits(rng, units).sigmoid()
        bits = torch.tensor(rng.random((samples, units))).lt(p).double()
        losses = _loss(rng, units)(bits)
        ours = answer(losses.clone(), bits.clone(), p.clone())
        _tensor(ours, bits.shape, "an estimate for every sample and neuron")
        residual = bits - p
        weight = residual**2
        c = (losses[:, None] * weight).mean(0) / weight.mean(0)
        right = (losses[:, None] - c) * residual
        if off(ours, right) < 1e-9:
            continue
        for wrong, what in (
            (losses[:, None] * residual, "there is no baseline in it yet: that is equation 9.6."),
            (
                (losses - losses.mean())[:, None] * residual,
                "that is the mean loss as baseline. It is good, but the best one counts each sample with the weight (b − p)².",
            ),
            (right.mean(0).expand_as(right), "return an estimate for each sample, not their mean."),
            (
                (losses[:, None] - (losses[:, None] * weight).mean() / weight.mean()) * residual,
                "one constant for all neurons; each neuron has its own.",
            ),
        ):
            if wrong.shape == ours.shape and off(ours, wrong) < 1e-9:
                raise Wrong(what)
        raise Wrong(f"your estimates are off by {off(ours, right):.2g} of the largest one.")


@checker("9.3", "Two fair draws, as unlike each other as they can be, and the right weight.")
def pair(answer):
    """`answer(u, logits, loss_of)` returns the DisARM estimate, equation 9.10, for uniform numbers u, (..., units)."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        units = int(rng.integers(1, 5))
        a, f, u = _logits(rng, units), _loss(rng, units), torch.tensor(rng.random((50, units)))
        ours = answer(u.clone(), a.clone(), f)
        _tensor(ours, u.shape)
        p = a.sigmoid()
        b, other = (1 - u < p).double(), (u < p).double()
        difference = (f(b) - f(other))[:, None]
        right = 0.5 * difference * (b - other) * a.abs().sigmoid()
        if off(ours, right) < 1e-9:
            continue
        for wrong, what in (
            (difference * (u - 0.5), "that is ARM, equation 9.11, which is right on average, but noisier."),
            (2 * right, "the direction is right, but twice as long: where is the one half?"),
            (-right, "the direction is right, but the sign is not: with which of the two bits does the loss go down?"),
            (0.5 * difference * (b - other) * p, "almost: for negative logits the weight is σ(|a|), and not σ(a)."),
            (0.5 * difference * (b - other), "the weight σ(|a|) is missing."),
        ):
            if off(ours, wrong) < 1e-9:
                raise Wrong(what)
        raise Wrong(f"your estimates are off by {off(ours, right):.2g} of the largest one.")


@checker("9.4", "The value of the loss, and whatever gradient you like.")
def carrier(answer):
    """`answer(losses, logits, estimate)` returns the mean loss, with `estimate` as its gradient by the logits."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        batch, units = int(rng.integers(2, 6)), int(rng.integers(1, 5))
        weight = torch.tensor(rng.normal(size=batch), requires_grad=True)  # something inside the loss
        a = torch.tensor(rng.normal(size=(batch, units)), requires_grad=True)
        estimate = torch.tensor(rng.normal(size=(batch, units)))
        losses = weight.exp()
        ours = answer(losses, a, estimate)
        _tensor(ours, (), "one number")
        if abs(ours.item() - losses.mean().item()) > 1e-9:
            raise Wrong(f"its value should be the mean loss, {losses.mean():.4f}; yours is {ours.item():.4f}.")
        by_weight, by_logits = torch.autograd.grad(ours, (weight, a), allow_unused=True)
        if by_logits is None or by_logits.abs().max() == 0:
            raise Wrong("the value is right, but its gradient by the logits is zero.")
        if off(by_logits, estimate) > 1e-9:
            if off(by_logits, estimate / batch) < 1e-9:
                raise Wrong(
                    "its gradient by the logits is the estimate divided by the batch: sum it, and take no mean."
                )
            raise Wrong(f"its gradient by the logits is off by {off(by_logits, estimate):.2g} of the largest.")
        if by_weight is None or off(by_weight, losses.detach() / batch) > 1e-9:
            raise Wrong("the logits get the estimate, but what is inside the loss has lost its own gradient.")
