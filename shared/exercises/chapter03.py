"""Checkers for the exercises of chapter 3, styles of truncated backpropagation."""

import numpy as np

from shared.exercises import Wrong, checker, off

CASES = 30


def _journeys(T, h, stride, n):
    ends = [-(-t // stride) * stride for t in range(1, T + 1)]
    return sum(t - max(1, end - h + 1) + 1 >= n for t, end in enumerate(ends, 1))


@checker("3.1", "Counted block by block, with the short last block and the start of the sequence taken care of.")
def full_journeys(answer):
    """`answer(T, h, stride, n)` returns how many of T errors pass through n steps or more in BPTT(h; stride)."""
    rng = np.random.default_rng()
    cases = [(49, 7, 7, 7), (49, 7, 1, 7), (5, 9, 3, 6), (12, 4, 2, 3)]
    for _ in range(CASES):
        stride = int(rng.integers(1, 6))
        h = stride + int(rng.integers(0, 6))
        cases.append((int(rng.integers(1, 30)), h, stride, int(rng.integers(stride, h + 1))))
    for T, h, stride, n in cases:
        ours, right = answer(T, h, stride, n), _journeys(T, h, stride, n)
        if ours == right:
            continue
        case = f"BPTT({h}; {stride}) over {T} steps with n = {n}"
        if stride == 1 and ours == right - 1:
            raise Wrong(f"for {case} you have one too few: the error of step {n} itself passes through {n} steps.")
        if ours == _journeys(-(-T // stride) * stride, h, stride, n):
            raise Wrong(f"for {case} you count errors after step {T}: the last block may be short.")
        if ours == sum(min(t, h) >= n for t in range(1, T + 1)):
            raise Wrong(f"for {case} you let every error go back {h} steps, as with a stride of 1.")
        raise Wrong(f"for {case} there are {right} such errors, and your answer is {ours}.")


@checker("3.2", "Each distance once, and all steps at a time.")
def distance_sums(answer):
    """`answer(e, W, n)` returns S_t of equation 3.4 for a linear network, for errors e, shape (time, hidden)."""
    rng = np.random.default_rng()
    for case in range(CASES):
        T, d = int(rng.integers(1, 9)), int(rng.integers(2, 5))
        n = 1 if case == 0 else int(rng.integers(1, T + 3))
        e, W = rng.normal(size=(T, d)), rng.normal(size=(d, d))

        def sums(n, W=W, e=e, T=T):
            powers = [np.linalg.matrix_power(W.T, j) for j in range(max(n, 1))]
            return np.array([sum(powers[j] @ e[t + j] for j in range(n) if t + j < T) + 0 * e[t] for t in range(T)])

        given = e.copy()
        ours, right = np.asarray(answer(given, W.copy(), n)), sums(n)
        if not np.array_equal(given, e):
            raise Wrong("your function altered the errors it was given; work on a copy.")
        if ours.shape != right.shape:
            raise Wrong(f"the sums should have shape {right.shape}; yours have {ours.shape}.")
        if off(ours, right) < 1e-6:
            continue
        if off(ours, sums(n, W.T)) < 1e-6:
            raise Wrong("you went forwards through W: on the way back it is the transpose.")
        if off(ours, sums(n + 1)) < 1e-6:
            raise Wrong(f"for n = {n} your errors go one step too far: n counts the step where the error arises.")
        if n > 1 and off(ours, sums(n - 1)) < 1e-6:
            raise Wrong(f"for n = {n} your errors stop one step too early: at distances 0 to n − 1 there are n terms.")
        if off(ours, sums(T)) < 1e-6:
            raise Wrong(f"that is full backpropagation: an error must stop after {n} steps.")
        raise Wrong(f"your sums are off by {off(ours, right):.0%} of the largest entry, for T = {T} and n = {n}.")


@checker("3.3", "Every factor has the mean one, whatever the chances.")
def arrival_factors(answer):
    """`answer(open, chances)` returns the factors of the last step's error at steps 1 … T, shape (T,)."""
    rng = np.random.default_rng()
    for case in range(CASES):
        ways = int(rng.integers(1, 8))
        chances = rng.uniform(0.05, 0.6, ways)
        open_ = rng.random(ways) >= (0.0 if case % 2 else 0.3)

        def factors(weight, open_=open_, chances=chances):
            steps = np.where(open_, weight(chances), 0.0)
            return np.append(np.cumprod(steps[::-1])[::-1], 1.0)

        ours, right = np.asarray(answer(open_.copy(), chances.copy()), dtype=float), factors(lambda c: 1 / (1 - c))
        if ours.shape != right.shape:
            raise Wrong(f"there should be {len(right)} factors, one for each step; yours have shape {ours.shape}.")
        if off(ours, right) < 1e-6:
            continue
        if off(ours, factors(np.ones_like)) < 1e-6:
            raise Wrong("an error that gets through must be enlarged, or the mean of its factor is below one.")
        if off(ours, factors(lambda c: 1 / c)) < 1e-6:
            raise Wrong("c is the chance of a cut, so a way stays open with chance 1 − c: divide by that.")
        if off(ours, np.append(np.where(open_, 1 / (1 - chances), 0.0), 1.0)) < 1e-6:
            raise Wrong(
                "the factors of all ways between multiply: the error of step T must pass them one after another."
            )
        if off(ours, np.append(1.0, np.cumprod(np.where(open_, 1 / (1 - chances), 0.0)))) < 1e-6:
            raise Wrong("you multiplied from the first step on: the error starts at the last one.")
        raise Wrong(f"your factors are off by {off(ours, right):.0%} of the largest.")
