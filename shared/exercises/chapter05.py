"""Checkers for the exercises of chapter 5, the LSTM derived."""

import numpy as np

from shared.exercises import Wrong, checker, off

CASES = 20
NAMES = ("input gate i", "forget gate f", "candidate", "output gate o")


def _logistic(z):
    return 1 / (1 + np.exp(-z))


def _step(x, h, c, U, W, b, order=(0, 1, 2, 3)):
    rows = np.split(x @ U.T + h @ W.T + b, 4, axis=1)
    i, f, candidate, o = (rows[k] for k in order)
    c = _logistic(f) * c + _logistic(i) * np.tanh(candidate)
    return _logistic(o) * np.tanh(c), c


@checker("5.1", "One product for all four parts, and the output read after the write.")
def lstm_step(answer):
    """`answer(x, h, c, U, W, b)` returns the new h and c of equation 5.8."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        batch, d_in, d = (int(rng.integers(low, 6)) for low in (1, 1, 2))
        given = tuple(
            rng.normal(size=shape)
            for shape in ((batch, d_in), (batch, d), (batch, d), (4 * d, d_in), (4 * d, d), (4 * d,))
        )
        x, h, c, U, W, b = given
        result = answer(*(one.copy() for one in given))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("return the new h and the new c, in this order.")
        new_h, new_c = (np.asarray(one) for one in result)
        right_h, right_c = _step(*given)
        if new_h.shape != h.shape or new_c.shape != c.shape:
            raise Wrong(f"h and c should have shape {h.shape} (got {new_h.shape} and {new_c.shape}).")
        if off(new_c, right_c) > 1e-6:
            if off(new_c, right_h) < 1e-6:
                raise Wrong("h and c have changed places: h comes first.")
            if off(new_c, _step(*given, order=(1, 0, 2, 3))[1]) < 1e-6:
                raise Wrong("the input gate and the forget gate have changed places: the rows are those of i, f, c̃, o.")
            if off(new_c, _step(*given, order=(0, 1, 3, 2))[1]) < 1e-6:
                raise Wrong("the candidate and the output gate have changed places: the rows are those of i, f, c̃, o.")
            raise Wrong(f"your c is off by {off(new_c, right_c):.0%} of its largest value.")
        if off(new_h, right_h) > 1e-6:
            o = _logistic(np.split(x @ U.T + h @ W.T + b, 4, axis=1)[3])
            if off(new_h, o * np.tanh(c)) < 1e-6:
                raise Wrong("c is right, but h is read from the old cell: the LSTM reads after it writes.")
            if off(new_h, o * right_c) < 1e-6:
                raise Wrong("c is right, but h is read without squashing: h = o ⊙ φ(c).")
            raise Wrong(f"c is right, but your h is off by {off(new_h, right_h):.0%} of its largest value.")


def _backward(h_bar, c_bar, c_before, i, f, candidate, o):
    phi = np.tanh(f * c_before + i * candidate)
    c_bar = c_bar + h_bar * o * (1 - phi**2)
    parts = (
        c_bar * candidate * i * (1 - i),
        c_bar * c_before * f * (1 - f),
        c_bar * i * (1 - candidate**2),
        h_bar * phi * o * (1 - o),
    )
    return parts, f * c_bar


@checker("5.2", "Three lines of equation 5.10, and the way through h has not been forgotten.")
def lstm_backward_step(answer):
    """`answer(h_bar, c_bar, c_before, i, f, candidate, o)` returns δ_t and the cell's adjoint for the step before."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        shape = (int(rng.integers(1, 5)), int(rng.integers(2, 6)))
        h_bar, c_bar, c_before = rng.normal(size=(3, *shape))
        i, f, o = _logistic(rng.normal(size=(3, *shape)))
        given = (h_bar, c_bar, c_before, i, f, np.tanh(rng.normal(size=shape)), o)
        result = answer(*(one.copy() for one in given))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("return δ and the adjoint that is handed to the step before.")
        delta, handed = (np.asarray(one) for one in result)
        parts, right = _backward(*given)
        if delta.shape != (shape[0], 4 * shape[1]) or handed.shape != shape:
            wanted = (shape[0], 4 * shape[1])
            raise Wrong(f"δ should have shape {wanted} and the adjoint {shape} (got {delta.shape} and {handed.shape}).")
        if off(handed, right) > 1e-6:
            if off(handed, f * c_bar) < 1e-6:
                raise Wrong("the cell's adjoint lacks the way through h_t = o ⊙ φ(c_t).")
            if off(handed, right / f) < 1e-6:
                raise Wrong("what is handed to the step before must pass the forget gate.")
            raise Wrong(f"the adjoint for the step before is off by {off(handed, right):.0%} of its largest value.")
        for name, ours, part in zip(NAMES, np.split(delta, 4, axis=1), parts, strict=True):
            if off(ours, part) > 1e-6:
                raise Wrong(f"the rows of the {name} in δ are off by {off(ours, part):.0%} of their largest value.")


@checker("5.3", "A geometric sum; with i = 1 − f it is 1 − f^T, which never reaches one.")
def largest_state(answer):
    """`answer(f, i, T)` returns the largest state after T steps with gates that stand still."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        f, i, T = float(rng.uniform(0.1, 0.98)), float(rng.uniform(0.1, 1)), int(rng.integers(2, 40))
        ours, right = float(answer(f, i, T)), sum(i * f**k for k in range(T))
        if abs(ours - right) < 1e-6 * right:
            continue
        case = f"f = {f:.2f}, i = {i:.2f}, T = {T}"
        if abs(ours - i / (1 - f)) < 1e-6 * right:
            raise Wrong(f"for {case} yours is the limit after infinitely many steps; after T it is {right:.4f}.")
        if abs(ours - i * T) < 1e-6 * right:
            raise Wrong(f"for {case} you add up what is written, but some of it is lost again at every step.")
        if abs(ours - sum(i * f**k for k in range(T + 1))) < 1e-6 * right:
            raise Wrong(f"for {case} you count one step too many.")
        raise Wrong(f"for {case} the largest state is {right:.4f}, and your answer is {ours:.4f}.")


@checker("5.4", "The bias is the logarithm of the odds of keeping.")
def bias_for(answer):
    """`answer(steps, share)` returns the bias with which the share is left of a state after so many steps."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        steps, share = int(rng.integers(2, 300)), float(rng.uniform(0.05, 0.9))
        ours = float(answer(steps, share))
        f = share ** (1 / steps)
        right = np.log(f / (1 - f))
        if abs(ours - right) < 1e-6 * max(1, abs(right)):
            continue
        left = _logistic(ours) ** steps
        if abs(ours + right) < 1e-6 * max(1, abs(right)):
            raise Wrong("your bias has the wrong sign: a gate with it forgets what it should keep.")
        if abs(ours - f) < 1e-6:
            raise Wrong("that is the value of the gate; which bias gives it?")
        raise Wrong(
            f"with your bias {left:.3f} of the state is left after {steps} steps, where {share:.3f} was asked for."
        )
