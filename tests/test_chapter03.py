"""Chapter 3: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import functools
import itertools
import math

import conftest
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import ledger, tasks
from shared.exercises import chapter03
from shared.recurrent import TanhCell, unroll
from shared.truncation import truncated_backward
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("03")[0])
GIVEN = {"np": np, "torch": torch, "math": math, "itertools": itertools, "tasks": tasks, "ledger": ledger}
GIVEN |= {"TanhCell": TanhCell, "unroll": unroll, "truncated_backward": truncated_backward, "chapter03": chapter03}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def journeys(T, h, stride, n):
    return sum(t - max(1, -(-t // stride) * stride - h + 1) + 1 >= n for t in range(1, T + 1))


def sums(e, W, n):
    S, e = e.copy(), e.copy()
    for _ in range(1, min(n, len(e))):
        e = e[1:] @ W
        S[: len(e)] += e
    return S


def in_place(e, W, n):
    e *= 2
    return e


def products(open_, weights):
    return np.append(np.cumprod(np.where(open_, weights, 0.0)[::-1])[::-1], 1.0)


WRONG = [
    ("full_journeys", lambda T, h, s, n: journeys(T, h, s, n) - (s == 1), "one too few"),
    ("full_journeys", lambda T, h, s, n: journeys(-(-T // s) * s, h, s, n), "the last block may be short"),
    ("full_journeys", lambda T, h, s, n: sum(min(t, h) >= n for t in range(1, T + 1)), "as with a stride of 1"),
    ("full_journeys", lambda T, h, s, n: -3, "your answer is -3"),
    ("distance_sums", lambda e, W, n: sums(e, W.T, n), "it is the transpose"),
    ("distance_sums", lambda e, W, n: sums(e, W, n + 1), "one step too far"),
    ("distance_sums", lambda e, W, n: sums(e, W, n - 1) if n > 1 else sums(e, W, 1), "one step too early"),
    ("distance_sums", lambda e, W, n: sums(e, W, len(e)), "full backpropagation|one step too far"),
    ("distance_sums", lambda e, W, n: sums(e, W, n)[:-1], "should have shape"),
    ("distance_sums", lambda e, W, n: 2 * sums(e, W, n), "off by 100%"),
    ("distance_sums", in_place, "altered the errors"),
    ("arrival_factors", lambda o, c: products(o, np.ones_like(c)), "must be enlarged"),
    ("arrival_factors", lambda o, c: products(o, 1 / c), "divide by that"),
    ("arrival_factors", lambda o, c: np.append(np.where(o, 1 / (1 - c), 0), 1.0), "between multiply"),
    ("arrival_factors", lambda o, c: np.append(1.0, np.cumprod(np.where(o, 1 / (1 - c), 0))), "starts at the last one"),
    ("arrival_factors", lambda o, c: products(o, 1 / (1 - c))[:-1], "one for each step"),
    ("arrival_factors", lambda o, c: 3 * products(o, 1 / (1 - c)), "off by 200%"),
]


sizes = st.integers(1, 12)


@given(sizes, sizes, sizes)
def test_the_picture_and_the_definition_agree(T, h, stride):
    """Equation 3.1 against the process it describes: a pass at the end of each block, over the last h steps."""
    h = max(h, stride)
    (reached,) = printed("reached")
    picture = np.zeros((T, T), bool)
    for end in range(stride, T + stride, stride):
        block = range(max(1, end - stride + 1), min(end, T) + 1)
        for t, s in itertools.product(block, range(max(1, end - h + 1), T + 1)):
            picture[t - 1, s - 1] |= s <= t
    np.testing.assert_array_equal(reached(T, h, stride), picture)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_windows_one_pass_and_the_engine_agree(T, depth, stride):
    stride = min(stride, depth)
    window_gradients, by_distance = printed("window_gradients", "gradients_by_distance")
    cell, x, v = TanhCell(3, 4).double(), torch.randn(T, 2, 3).double(), torch.randn(T, 2, 4).double()
    state = torch.randn(2, 4).double()
    right = window_gradients(cell, x, lambda t, y: (y * v[t - 1]).sum(), state, depth, stride)
    truncated_backward(cell, x, lambda y: (y * v).sum(), state, depth=depth, stride=stride)
    torch.testing.assert_close([p.grad for p in cell.parameters()], right)
    if stride == 1:
        hs = torch.cat([state[None], unroll(cell, x, state)[0]]).detach()
        torch.testing.assert_close([*by_distance(hs, x, v, cell.W.detach(), depth)], right)


def test_the_targets_of_the_delayed_difference_are_those_of_equation_3_7():
    delayed_difference, lag = printed("delayed_difference", "LAG")
    windows = [(x[:, :, 1].long(), y) for x, y in delayed_difference(3, 0)]
    x, y = (torch.cat(parts) for parts in zip(*windows, strict=True))
    torch.testing.assert_close(y[lag:], x[:-lag] ^ x[1 : 1 - lag])


def test_randomised_truncation_without_cuts_is_the_full_gradient_and_with_them_has_its_mean():
    setting, randomised, forward_mode = printed("setting", "randomised", "forward_mode")
    hs, e, W = setting(1.0, 3, T=6, d=3)
    full, generator = forward_mode(hs, e, W), torch.Generator().manual_seed(0)
    torch.testing.assert_close(randomised(hs, e, W, 0.0, 2, generator), full.expand(2, 3, 3))
    draws = randomised(hs, e, W, 0.3, 40_000, generator)
    error = draws.std(0) / 200 + 1e-12
    assert ((draws.mean(0) - full) / error).abs().max() < 5
    assert ((draws.mean(0) - 0.9 * full) / error).abs().max() > 5  # a bias of a tenth would be seen


def test_the_full_pass_of_the_price_list_is_full():
    setting, full_backward, forward_mode = printed("setting", "full_backward", "forward_mode")
    for seed in range(3):
        hs, e, W = setting(0.9, seed, T=7, d=4)
        torch.testing.assert_close(full_backward(hs, e, W), forward_mode(hs, e, W))


def test_the_copied_recipe_goes_wrong_at_the_third_loss_and_the_repaired_one_does_not():
    (contributions,) = printed("contributions")
    np.testing.assert_allclose(contributions(clear=True), [0.9, 0.36, 0.108], rtol=1e-5)
    np.testing.assert_allclose(contributions(clear=False), [0.9, 0.36, 0.288], rtol=1e-5)
