"""Checkers for the exercises of chapter 1, backpropagation and gradient descent."""

import numpy as np
import torch

from shared.exercises import Wrong, checker, off

CASES = 20


def _same(ours, right) -> bool:
    return off(ours, right) < 1e-6


@checker("1.1", "The weight, the change and the order of the two updates all match equation 1.5.")
def momentum_step(answer):
    """`answer(w, change, gradient, eta, alpha)` returns the new weights and the new change, all arrays of shape (weights,)."""
    random = np.random.default_rng()
    for _ in range(CASES):
        w, change, gradient = random.normal(size=(3, 4))
        eta, alpha = random.uniform(0.01, 0.5), random.uniform(0.2, 0.95)
        given = w.copy(), change.copy(), gradient.copy()
        result = answer(w, change, gradient, eta, alpha)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise Wrong("return two things, the new weights and the new change.")
        new_w, new_change = result
        for before, after, name in zip(given, (w, change, gradient), ("w", "change", "gradient"), strict=True):
            if not np.array_equal(before, after):
                raise Wrong(f"your function altered its argument `{name}` in place; make new arrays instead.")
        w, change, gradient = given
        if np.shape(new_w) != w.shape or np.shape(new_change) != w.shape:
            raise Wrong(
                f"weights and change should have shape {w.shape}; yours have {np.shape(new_w)} and {np.shape(new_change)}."
            )
        right = alpha * change - (1 - alpha) * eta * gradient
        if not _same(new_change, right):
            if _same(new_change, alpha * change - eta * gradient):
                raise Wrong(
                    f"your gradient term is {1 / (1 - alpha):.3g} times too large at alpha = {alpha:.2f}: that is the usual heavy "
                    "ball; equation 1.5 weighs the gradient by (1 − alpha)."
                )
            if _same(new_change, alpha * change + (1 - alpha) * eta * gradient):
                raise Wrong("your change climbs: the gradient should enter with a minus sign.")
            raise Wrong(f"the new change is off by {off(new_change, right):.0%} of its largest entry.")
        if not _same(new_w, w + right):
            if _same(new_w, w + change):
                raise Wrong("the weights should move by the *new* change; you added the old one.")
            raise Wrong(
                f"the change is right, but the new weights are off by {off(new_w, w + right):.0%}; add the new change to w."
            )


@checker("1.2", "Probabilities minus targets, over the temperature and the number of cases.")
def logit_gradient(answer):
    """`answer(logits, targets, temperature)` returns the gradient of the mean cross-entropy, shape (cases, classes)."""
    for _ in range(CASES):
        n, classes = int(torch.randint(2, 40, ())), int(torch.randint(2, 8, ()))
        logits = (3 * torch.randn(n, classes, dtype=torch.float64)).requires_grad_()
        targets = torch.softmax(torch.randn(n, classes, dtype=torch.float64), 1)
        temperature = float(2 + 6 * torch.rand(()))
        loss = torch.nn.functional.cross_entropy(logits / temperature, targets)
        (right,) = torch.autograd.grad(loss, logits)
        logits = logits.detach()
        ours = torch.as_tensor(answer(logits.clone(), targets.clone(), temperature))
        if ours.shape != right.shape:
            raise Wrong(
                f"the gradient should have the logits' shape {tuple(right.shape)}; yours is {tuple(ours.shape)}."
            )
        if _same(ours, right):
            continue
        if _same(ours, n * right):
            raise Wrong(
                f"your gradient is {n} times too large for {n} cases: did you sum over the batch where the loss takes a mean?"
            )
        if _same(ours, temperature * right):
            raise Wrong(
                f"your gradient is {temperature:.3g} times too large at a temperature of {temperature:.3g}: the chain rule passes "
                "through the division as well."
            )
        if _same(ours, -right):
            raise Wrong("every sign is reversed: it is probabilities minus targets.")
        if _same(ours, (torch.softmax(logits, 1) - targets) / (temperature * n)):
            raise Wrong("the probabilities are those of a temperature of 1: divide the logits before the softmax.")
        if _same(ours, torch.softmax(logits / temperature, 1) / (temperature * n)):
            raise Wrong("you have the probabilities; the targets are not subtracted yet.")
        rows = ours.sum(1).abs().max().item()
        hint = f" Each row should sum to 0, yours reach {rows:.2g}." if rows > 1e-6 else ""
        raise Wrong(f"the gradient is off by {off(ours, right):.0%} of its largest entry.{hint}")
    large, target = torch.tensor([[[1000.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    if not torch.isfinite(torch.as_tensor(answer(large, target, 1.0))).all():
        raise Wrong(
            "right for moderate logits, but a logit of 1000 gives NaN: subtract each row's largest logit before exp."
        )


@checker("1.3", "Both pullbacks are right, and adjoints of repeated values are summed.")
def divide_pullbacks(answer):
    """`answer(a, b, adjoint)` returns the adjoints of a, shape (rows, columns), and of b, shape (1, columns), for c = a / b."""
    random = np.random.default_rng()
    for _ in range(CASES):
        rows, columns = random.integers(2, 6, size=2)
        a, adjoint = random.normal(size=(2, rows, columns))
        b = random.uniform(0.5, 2.0, size=(1, columns)) * random.choice([-1, 1], size=(1, columns))
        result = answer(a.copy(), b.copy(), adjoint.copy())
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise Wrong("return two things, the adjoint of a and the adjoint of b.")
        for_a, for_b = result
        every = -adjoint * a / b**2
        if np.shape(for_a) != a.shape or not _same(for_a, adjoint / b):
            raise Wrong(
                "the adjoint of a is not right yet: c grows by 1/b for each unit of a, so a receives adjoint / b."
            )
        if np.shape(for_b) == a.shape:
            raise Wrong(
                f"b has shape {b.shape} and its adjoint must too; yours is {np.shape(for_b)}. Each entry of b was used {rows} times: "
                "sum over its uses."
            )
        if np.shape(for_b) != b.shape:
            raise Wrong(f"the adjoint of b should have shape {b.shape}; yours has {np.shape(for_b)}.")
        right = every.sum(0, keepdims=True)
        if _same(for_b, -right):
            raise Wrong("the adjoint of b has the wrong sign: a larger divisor makes a positive quotient smaller.")
        if _same(for_b, every.mean(0, keepdims=True)):
            raise Wrong(f"the adjoint of b is {rows} times too small: sum over its uses, do not average.")
        if not _same(for_b, right):
            raise Wrong(f"the adjoint of b is off by {off(for_b, right):.0%}; differentiate a / b with respect to b.")


@checker("1.4", "Within one per cent, from products with the Hessian alone.")
def largest_stable_step(answer):
    """`answer(hessian_product, size)` returns the largest stable step of gradient descent on a quadratic, as a number."""
    random = np.random.default_rng()
    for _ in range(CASES):
        size = int(random.integers(3, 9))
        eigenvalues = np.concatenate([[1.0], random.uniform(0.01, 0.9, size - 1)]) * random.uniform(0.5, 50)
        basis, _r = np.linalg.qr(random.normal(size=(size, size)))
        hessian = basis @ np.diag(eigenvalues) @ basis.T
        right = 2 / eigenvalues.max()
        ours = float(answer(lambda vector, hessian=hessian: hessian @ vector, size))
        if abs(ours / right - 1) < 0.01:
            continue
        for factor, reason in [
            (
                0.5,
                "you return 1/L, the step that is fastest along the steepest direction; steps stay stable up to 2/L.",
            ),
            (eigenvalues.max() ** 2, "you return 2L: the bound is 2 divided by the largest eigenvalue."),
            (eigenvalues.max() ** 2 / 2, "you return the largest eigenvalue itself; the step is 2 divided by it."),
            (
                eigenvalues.max() / eigenvalues.sum(),
                "you divide by the sum of the eigenvalues (the trace), not by the largest.",
            ),
        ]:
            if abs(ours / right / factor - 1) < 0.01:
                raise Wrong(reason)
        raise Wrong(
            f"got {ours:.4g} where the largest stable step is {right:.4g} ({size} weights). If you iterate, repeat until the "
            "estimate settles; some spectra are close together."
        )
