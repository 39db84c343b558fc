"""Chapter 2: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import collections
import functools
import itertools
import math

import conftest
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import ledger, tasks
from shared.exercises import chapter02
from shared.recurrent import TanhCell, unroll
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("02")[0])
GIVEN = {"np": np, "torch": torch, "math": math, "collections": collections, "itertools": itertools, "tasks": tasks}
GIVEN |= {"TanhCell": TanhCell, "unroll": unroll, "ledger": ledger, "chapter02": chapter02}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def walk(states, W, adjoint, slope=True):
    for h in states[::-1]:
        adjoint = W.T @ ((1 - h**2 if slope else 1) * adjoint)
    return adjoint


def floor(n, shift=0, unit=1.0):
    return sum(tasks.echo_floor(lag for lag in tasks.LAGS if lag + shift <= i) for i in range(n)) / n * unit


def scaled(gradients, factor):
    return [g * factor for g in gradients]


def norm(gradients):
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def in_place(gradients, limit):
    for g in gradients:
        g *= 0.5
    return gradients


WRONG = [
    ("initial_adjoint", lambda hs, W, a: walk(hs, W.T, a), "it is the transpose"),
    ("initial_adjoint", lambda hs, W, a: walk(hs, W, a, slope=False), "slope of tanh"),
    ("initial_adjoint", lambda hs, W, a: walk(hs[1:], W, a), "you stopped at h_1"),
    ("initial_adjoint", lambda hs, W, a: walk(hs[::-1], W, a), "meets the last one first"),
    ("initial_adjoint", lambda hs, W, a: 2 * walk(hs, W, a), "off by 100%"),
    ("initial_adjoint", lambda hs, W, a: W, "should have shape"),
    ("window_floor", lambda n: floor(n, unit=1 / math.log(2)), "in bits"),
    ("window_floor", lambda n: floor(n, shift=1), "a step late"),
    ("window_floor", lambda n: tasks.echo_floor(lag for lag in tasks.LAGS if lag < n), "average over all"),
    ("window_floor", lambda n: 0.5, "it should be"),
    ("clip", lambda gs, c: [g * min(1, c / norm([g])) for g in gs], "its own norm"),
    ("clip", lambda gs, c: scaled(gs, c / norm(gs)), "should stay as it is"),
    ("clip", lambda gs, c: [g.clamp(-c, c) for g in gs], "clipped each entry"),
    ("clip", lambda gs, c: scaled(gs, 0.1), "yours has norm"),
    ("clip", lambda gs, c: gs[:1], "of the shapes"),
    ("clip", in_place, "altered the gradients"),
    ("clip", lambda gs, c: scaled(gs, torch.tensor(c / norm(gs) if norm(gs) else math.nan).clamp(max=1)), "stay zero"),
]


# The 5-gram model of the page is the rival that the network is measured against: it has to be a distribution.

(ngram_bits,) = printed("ngram_bits")


@given(
    st.lists(st.integers(0, 2), min_size=5, max_size=40),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_the_chances_of_all_next_characters_add_up_to_one(train, context, order):
    def bits(text):
        return ngram_bits(torch.tensor(train), torch.tensor(text), order, 3) * (len(text) - 1) if len(text) > 1 else 0.0

    chances = [2 ** -(bits([*context, character]) - bits(context)) for character in range(3)]
    assert min(chances) > 0
    assert abs(sum(chances) - 1) < 1e-9


def test_a_bigram_model_by_hand():
    # Of "aab", 0 follows 0 once and 1 follows it once; unigrams: (2 + 2/3)/5 and (1 + 2/3)/5 and (0 + 2/3)/5.
    bits = ngram_bits(torch.tensor([0, 0, 1]), torch.tensor([0, 1]), 2, 3)
    assert abs(2**-bits - (1 + 2 * (1 + 2 / 3) / 5) / 4) < 1e-12


# The instruments of the echo experiment.


def test_the_shares_of_a_network_that_knows_all_one_or_nothing():
    (shares_found,) = printed("shares_found")
    bits = torch.randint(2, (2, 400, 500), generator=torch.Generator().manual_seed(0)).float()
    for known in itertools.product((0, 1), repeat=2):
        p = tasks.echo_chance(*(b if k else torch.full_like(b, 0.5) for k, b in zip(known, bits, strict=True)))
        logits = torch.stack([torch.zeros_like(p), torch.logit(p.clamp(1e-7, 1 - 1e-7))], -1)
        np.testing.assert_allclose(shares_found(logits, bits), known, atol=0.02)


def test_the_bits_that_come_with_a_batch_are_those_that_its_targets_depend_on():
    (batches,) = printed("batches")
    for window, new_ones in [(5, {0, 1000}), (20, {0, 250, 500, 750, 1000})]:
        drawn = list(batches(window, 1001, torch.Generator().manual_seed(0)))
        assert {k for k, (new, *_) in enumerate(drawn) if new} == new_ones
        _, inputs, targets, (ago_3, ago_8) = drawn[-1]
        assert inputs.shape == (window, 200, 2)
        assert targets.shape == ago_3.shape == (window, 200)
        ones = torch.stack([targets[(ago_3 == a) & (ago_8 == b)].float().mean() for a in (0, 1) for b in (0, 1)])
        assert (ones - torch.tensor([0.5, 0.25, 1.0, 0.75])).abs().max() < 0.15
    torch.testing.assert_close(drawn[1][3][0][3:], drawn[1][1][:-3, :, 1])


# The network.


def test_the_two_ways_to_write_the_network_agree():
    _, forward = printed("states", "forward")
    cell, x, h = TanhCell(3, 5).double(), torch.randn(9, 2, 3).double(), torch.randn(2, 5).double()
    V, c = torch.randn(4, 5).double(), torch.randn(4).double()
    hs, outputs = forward(x, h, cell.U, cell.W, cell.b, V, c)
    torch.testing.assert_close(hs[1:], unroll(cell, x, h)[0])
    torch.testing.assert_close(outputs, hs[1:] @ V.T + c)


def test_clipping_leaves_short_gradients_alone():
    _, clip = printed("end_loss", "clip")
    g = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    torch.testing.assert_close(clip(g, 1.0), torch.tensor([[0.6, 0.3], [0.8, 0.4]]))
