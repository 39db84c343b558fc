"""Checkers for the exercises of chapter 2, unrolling a recurrent network."""

import math

import numpy as np
import torch

from shared import tasks
from shared.exercises import Wrong, checker, off

CASES = 20


@checker("2.1", "One factor for every step, and the matrix transposed.")
def initial_adjoint(answer):
    """`answer(hs, W, last_adjoint)` returns the adjoint of h_0, shape (hidden,), for states hs, shape (time, hidden)."""
    rng = np.random.default_rng()
    for case in range(CASES):
        steps, hidden = (1 if case == 0 else int(rng.integers(2, 7))), int(rng.integers(2, 6))
        hs, W = np.tanh(rng.normal(size=(steps, hidden))), rng.normal(size=(hidden, hidden))
        last = rng.normal(size=hidden)

        def walk(states, W, adjoint=last, slope=True):
            for h in states[::-1]:
                adjoint = W.T @ ((1 - h**2 if slope else 1) * adjoint)
            return adjoint

        right, ours = walk(hs, W), np.asarray(answer(hs.copy(), W.copy(), last.copy()))
        if ours.shape != right.shape:
            raise Wrong(f"the adjoint should have shape {right.shape}; yours has {ours.shape}.")
        if off(ours, right) < 1e-6:
            continue
        if off(ours, walk(hs, W.T)) < 1e-6:
            raise Wrong("you went forwards through W: on the way back it is the transpose.")
        if off(ours, walk(hs, W, slope=False)) < 1e-6:
            raise Wrong("the slope of tanh, 1 − h², is missing from every step.")
        if off(ours, walk(hs[1:], W)) < 1e-6:
            raise Wrong(f"you stopped at h_1: from h_{steps} to h_0 there are {steps} factors.")
        if off(ours, walk(hs[::-1], W)) < 1e-6:
            raise Wrong("you met the states in the order of time: the error meets the last one first.")
        raise Wrong(f"the adjoint is off by {off(ours, right):.0%} of its largest entry, for {steps} steps.")


@checker("2.2", "Three steps know nothing, the next five know one input, and only then can both be known.")
def window_floor(answer):
    """`answer(n)` returns the least possible mean loss on the echo task in windows of n steps from a zero state, in nats."""
    for n in [1, 3, 4, 5, 8, 9, 10, 50]:
        right = sum(tasks.echo_floor(lag for lag in tasks.LAGS if lag <= i) for i in range(n)) / n
        ours = float(answer(n))
        if abs(ours - right) < 1e-6:
            continue
        if abs(ours * math.log(2) - right) < 1e-6 or abs(ours - right / math.log(2)) < 1e-6:
            raise Wrong("that is in bits: use the natural logarithm for nats.")
        late = sum(tasks.echo_floor(lag for lag in tasks.LAGS if lag < i) for i in range(n)) / n
        if abs(ours - late) < 1e-6:
            raise Wrong(
                f"for n = {n} you are a step late: at step i = 3 the input three steps back is the window's first."
            )
        if abs(ours - tasks.echo_floor(lag for lag in tasks.LAGS if lag < n)) < 1e-6:
            raise Wrong(f"for n = {n} that is the floor of the last step alone: average over all {n} steps.")
        raise Wrong(f"for n = {n} your floor is {ours:.4f} nats, and it should be {right:.4f}.")


@checker("2.3", "One norm for all, and the direction is kept.")
def clip(answer):
    """`answer(gradients, limit)` returns the list of tensors scaled so that their joint norm is at most `limit`."""
    for case in range(CASES):
        shapes = [(3, 2), (4,), (1, 5)]
        gradients = [torch.randn(shape, dtype=torch.float64) * 0.01 ** (case % 2) for shape in shapes]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        limit = norm * (0.3 if case < CASES // 2 else 2.0)
        before = [g.clone() for g in gradients]
        ours = list(answer(gradients, limit))
        if not all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True)):
            raise Wrong("your function altered the gradients it was given; return new tensors.")
        if [tuple(g.shape) for g in ours] != shapes:
            raise Wrong(
                f"return a list of tensors of the shapes {shapes}; yours have {[tuple(g.shape) for g in ours]}."
            )
        right = [g * min(1.0, limit / norm) for g in before]
        if all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(ours, right, strict=True)):
            continue
        if all(
            torch.allclose(a, g * min(1.0, limit / g.norm().item()), rtol=1e-4)
            for a, g in zip(ours, before, strict=True)
        ):
            raise Wrong(
                "you clipped each tensor by its own norm, which changes the direction: use the norm of all together."
            )
        if all(torch.allclose(a, g * limit / norm, rtol=1e-4) for a, g in zip(ours, before, strict=True)):
            raise Wrong("a gradient shorter than the limit became longer: it should stay as it is.")
        if all(torch.allclose(a, g.clamp(-limit, limit), rtol=1e-4) for a, g in zip(ours, before, strict=True)):
            raise Wrong("you clipped each entry, which changes the direction: scale all entries by the same factor.")
        got = math.sqrt(sum(g.square().sum().item() for g in ours))
        raise Wrong(f"for a norm of {norm:.3g} and a limit of {limit:.3g} yours has norm {got:.3g}.")
    zero = [torch.zeros(2, dtype=torch.float64)]
    if not torch.equal(torch.as_tensor(answer(zero, 1.0)[0]), zero[0]):
        raise Wrong("a gradient of zero should stay zero: do not divide by its norm.")
