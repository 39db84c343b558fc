"""Chapter 9: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import functools
import itertools
import math

import conftest
import numpy as np
import pandas as pd
import pytest
import torch

from shared import datasets, stochastic
from shared.exercises import chapter09
from shared.stochastic import Enumeration, LeaveOneOut, Reinforce, RunningBaseline, StraightThrough
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("09")[0])
GIVEN = {"np": np, "torch": torch, "pd": pd, "math": math, "itertools": itertools, "functools": functools}
GIVEN |= {name: getattr(stochastic, name) for name in stochastic.__all__}
GIVEN |= {"stochastic": stochastic, "datasets": datasets, "chapter09": chapter09}
GIVEN |= {"draws": 4000, "batch": 10, "hidden": 5, "rates": [0.1, 1.0], "EXPERTS": 16, "WIDTH": 4}
GIVEN |= {"dataset": "digits"}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def antithetic(u, logits):
    p = logits.sigmoid()
    return (1 - u < p).to(u.dtype), (u < p).to(u.dtype)


def pair(u, logits, loss_of, weight):
    b, other = antithetic(u, logits)
    return (loss_of(b) - loss_of(other))[..., None] * weight(u, b, other, logits)


def score(losses, bits, p, baseline):
    return (losses[:, None] - baseline(losses[:, None], (bits - p) ** 2)) * (bits - p)


def passed(logits, u, forward, backward):
    return forward + (backward - backward.detach())


WRONG = [
    ("bit", lambda a, u: (u < a.sigmoid()).float(), "no gradient goes through"),
    ("bit", lambda a, u: (u < a.sigmoid()).float() + a - a.detach(), "(pass-through)|(rounding error)"),
    ("bit", lambda a, u: passed(a, u, (u < a.sigmoid()).float(), a), "that is pass-through"),
    ("bit", lambda a, u: a.sigmoid(), "not the bits"),
    ("bit", lambda a, u: passed(a, u, (u < a.sigmoid()).float(), 2 * a.sigmoid()), "the gradient is off"),
    ("bit", lambda a, u: (1 + 1e-6) * passed(a, u, (u < a.sigmoid()).float(), a.sigmoid()), "rounding error"),
    ("bit", lambda a, u: 1.0, "a bit for every logit"),
    ("best_baseline", lambda f, b, p: score(f, b, p, lambda f, w: 0), "no baseline in it yet"),
    ("best_baseline", lambda f, b, p: score(f, b, p, lambda f, w: f.mean()), "the mean loss as baseline"),
    (
        "best_baseline",
        lambda f, b, p: score(f, b, p, lambda f, w: (f * w).mean(0) / w.mean(0)).mean(0),
        "for every sample",
    ),
    ("best_baseline", lambda f, b, p: score(f, b, p, lambda f, w: 2 * (f * w).mean(0) / w.mean(0)), "are off by"),
    ("pair", lambda u, a, f: pair(u, a, f, lambda u, b, o, a: u - 0.5), "that is ARM"),
    ("pair", lambda u, a, f: pair(u, a, f, lambda u, b, o, a: (b - o) * a.abs().sigmoid()), "twice as long"),
    ("pair", lambda u, a, f: pair(u, a, f, lambda u, b, o, a: 0.5 * (o - b) * a.abs().sigmoid()), "the sign is not"),
    ("pair", lambda u, a, f: pair(u, a, f, lambda u, b, o, a: 0.5 * (b - o)), "is missing"),
    ("pair", lambda u, a, f: pair(u, a, f, lambda u, b, o, a: (b - o) * a), "are off by"),
    ("pair", lambda u, a, f: f(u), "an estimate for every logit"),
    ("carrier", lambda f, a, g: f.mean(), "by the logits is zero"),
    ("carrier", lambda f, a, g: f.mean() + (a * g).sum(), "its value should be"),
    ("carrier", lambda f, a, g: f.mean() + (a - a.detach()).mul(g).sum(-1).mean(), "take no mean"),
    ("carrier", lambda f, a, g: f.mean().detach() + (a - a.detach()).mul(g).sum(), "lost its own gradient"),
    ("carrier", lambda f, a, g: f, "one number"),
]


def test_the_expected_loss_is_enumeration_and_so_is_with_and_without():
    judge, expected_loss, with_and_without = printed("judge", "expected_loss", "with_and_without")
    for units in (1, 4):
        logits, loss_of = judge(units, seed=units)
        a = logits.clone().requires_grad_()
        loss = expected_loss(a, loss_of)
        torch.testing.assert_close(loss, Enumeration().expectation(logits, loss_of))
        (exact,) = torch.autograd.grad(loss, a)
        ours = torch.stack([with_and_without(logits, loss_of, i) for i in range(units)])
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize(("p", "t"), [(0.3, 0.45), (0.9, -1.0)])
def test_one_neuron_is_enumeration_and_the_mean_of_two_tangents(p, t):
    (one_neuron,) = printed("one_neuron")
    a = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    truth, adjusted, passed_through = one_neuron(p, t)
    Enumeration().expectation(a, lambda b: (b[..., 0] - t) ** 2).backward()
    assert a.grad.item() == pytest.approx(truth)
    for estimator, mean in ((StraightThrough(), adjusted), (StraightThrough(adjusted=False), passed_through)):
        rows = a.detach().expand(200_000, 1).clone().requires_grad_()
        estimator.generator = torch.Generator().manual_seed(0)
        estimator.expectation(rows, lambda b: (b[..., 0] - t) ** 2).sum().backward()
        assert rows.grad.mean().item() == pytest.approx(mean, rel=0.02)


def test_the_judge_finds_no_bias_in_what_is_exact_and_that_of_a_shifted_gradient():
    judge, bias_and_noise = printed("judge", "bias_and_noise")
    logits, loss_of = judge(3)
    found = bias_and_noise(Enumeration(), logits, loss_of, 0)
    assert abs(found["squared_bias"]) < 1e-9
    assert found["noise"] < 1e-6
    found = bias_and_noise(Reinforce(), logits, loss_of, 0)
    assert found["squared_bias"] < 0.04
    assert found["z"] < 4

    class Twice(Reinforce):
        def _score(self, losses, residuals):
            return 2 * super()._score(losses, residuals)

    assert bias_and_noise(Twice(), logits, loss_of, 0)["squared_bias"] == pytest.approx(1, abs=0.3)


def test_networks_side_by_side_are_networks_one_by_one():
    errors, losses, first_weights = printed("errors", "losses", "first_weights")
    weights = first_weights((6, 5, 4, 3), 2, torch.Generator().manual_seed(0))
    images, labels = torch.rand(7, 6), torch.arange(7) % 3
    ours = losses([None, None], weights, images[:, None], labels[:, None])
    assert ours.shape == (7, 2)
    for k in range(2):
        h = images
        for W, b in weights[:-1]:
            h = (h @ W[k] + b[k]).sigmoid()
        outputs = h @ weights[-1][0][k] + weights[-1][1][k]
        expected = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
        torch.testing.assert_close(ours[:, k], expected)
        wrong = losses([None, None], weights, images[:, None], labels[:, None], errors)[:, k]
        assert wrong.tolist() == (outputs.argmax(-1) != labels).float().tolist()


def test_a_running_baseline_is_each_networks_own():
    losses, first_weights = printed("losses", "first_weights")
    weights = first_weights((6, 5, 3), 2, torch.Generator().manual_seed(0))
    weights[1][0][1] *= 30  # the second network has far larger losses
    weights = [[one.requires_grad_() for one in pair] for pair in weights]
    estimator = RunningBaseline((2, 5))
    losses([estimator], weights, torch.rand(50, 1, 6), (torch.arange(50) % 3)[:, None])
    first, second = estimator.baseline.coefficient
    assert second.min() > 2 * first.max()


def test_descent_stops_a_network_that_runs_away_and_leaves_the_others_alone():
    descend, first_weights, losses = printed("descend", "first_weights", "losses")
    images, labels = torch.rand(40, 6), torch.arange(40) % 3

    def trained(steps):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        weights = [[one[: len(steps)] for one in pair] for pair in first_weights((6, 5, 3), 2, generator)]
        for _ in descend([None], weights, images, labels, torch.tensor([steps]), 3, torch.Generator().manual_seed(1)):
            pass
        return weights

    alone, beside = trained([0.5]), trained([0.5, 1e30])
    for one, other in zip(alone, beside, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(theirs[:1], ours)
            assert theirs.isfinite().all()
    before = losses([None], trained([0.0]), images[:, None], labels[:, None]).mean()
    assert losses([None], alone, images[:, None], labels[:, None]).mean() < before


def test_the_nearly_exact_gradient_is_that_of_enumeration():
    (nearly_exact,) = printed("nearly_exact")
    torch.manual_seed(0)
    logits, W, b, labels = torch.randn(3, 5), torch.randn(5, 4), torch.randn(4), torch.tensor([0, 3, 1])
    a = logits.clone().requires_grad_()

    def loss_of(bits):
        chosen = labels.expand(bits.shape[:-1])[..., None]
        return -(bits @ W + b).log_softmax(-1).gather(-1, chosen)[..., 0]

    Enumeration().expectation(a, loss_of).sum().backward()
    halves = nearly_exact(logits, W, b, labels, each=2000)
    torch.testing.assert_close(halves.mean(0), a.grad, atol=0.01, rtol=0.05)
    assert 0 < (halves[0] - halves[1]).abs().max() < 0.02


def test_skipping_computes_what_computing_all_does_and_its_loss_counts_the_experts():
    Experts, skipping, computing_all = printed("Experts", "skipping", "computing_all")
    torch.manual_seed(0)
    model, images, labels = Experts(6, LeaveOneOut(samples=3)), torch.rand(20, 6), torch.arange(20) % 10
    outputs, bits = skipping(model, images)
    torch.testing.assert_close(outputs, computing_all(model, images))
    assert 0 < bits.float().mean() < 1
    model.eval()
    expected = torch.nn.functional.cross_entropy(outputs, labels, reduction="none") + 0.7 * bits.float().mean(1)
    torch.testing.assert_close(model.losses(images, labels, 0.7), expected)


def test_counting_bits_is_multiplying():
    BitNetwork, packed_agrees = printed("BitNetwork", "packed_agrees")
    torch.manual_seed(0)
    model = BitNetwork(12, True, width=24)
    model(torch.rand(30, 12))
    model.eval()
    assert packed_agrees(model, torch.rand(9, 12))


def test_signs_let_gradients_through_where_the_hard_tanh_does():
    (sign,) = printed("sign")
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    sign(x).sum().backward()
    assert sign(x).tolist() == [-1, -1, 1, 1, 1]
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
