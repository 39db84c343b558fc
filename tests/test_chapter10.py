"""Chapter 10: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import functools
import math

import conftest
import numpy as np
import pytest
import torch

from shared import datasets, stochastic
from shared.exercises import chapter10
from shared.stochastic import (
    OneHot,
    StraightThrough,
    Ternary,
    soft_staircase,
    straight_through,
    ternary_activation,
    to_integers,
)
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("10")[0])
GIVEN = {"math": math, "np": np, "torch": torch, "datasets": datasets, "stochastic": stochastic, "chapter10": chapter10}
GIVEN |= {"OneHot": OneHot, "StraightThrough": StraightThrough, "Ternary": Ternary, "to_integers": to_integers}
GIVEN |= {"soft_staircase": soft_staircase, "straight_through": straight_through}
GIVEN |= {"ternary_activation": ternary_activation, "dataset": "digits", "batch_size": 100, "bits": 48}
LAYERS = {
    "sigmoid": lambda generator: torch.nn.Sigmoid(),
    "binary": lambda generator: StraightThrough(generator=generator),
    "ternary": lambda generator: Ternary(generator=generator),
    "one of k": lambda generator: StraightThrough(neurons=OneHot, generator=generator),
}
GIVEN |= {"LAYERS": LAYERS, "SLOPES": {}, "NETWORKS": {}}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def staircase(x, factor, lowest, highest, shift=0.5, base=True):
    borders = torch.arange(lowest, highest, dtype=x.dtype) + shift
    return base * lowest + (factor * (x[:, None] - borders)).sigmoid().sum(-1)


def gradient(a, g, temperature, probabilities=None, centre="weighted", scale=True):
    p = (a / temperature).softmax(-1) if probabilities is None else probabilities(a)
    means = {"weighted": (p * g).sum(-1, keepdim=True), "plain": g.mean(-1, keepdim=True), "none": 0, "own": p * g}
    return p * (g - means[centre]) / (temperature if scale else 1)


def chosen_only(a, g, temperature):
    p = (a / temperature).softmax(-1)
    best = OneHot.decide(a)
    return p * best * g / temperature


WRONG = [
    ("neighbour", lambda v, u: v.floor() + (u < 1 - (v - v.floor())).to(v.dtype), "the wrong way round"),
    ("neighbour", lambda v, u: v.round(), "that is the nearest"),
    ("neighbour", lambda v, u: v.floor() + (u <= 1).to(v.dtype), "a value that is whole has nothing to draw"),
    ("neighbour", lambda v, u: v.trunc() + (u < (v - v.trunc()).abs()).to(v.dtype), "which is not beside it"),
    ("neighbour", lambda v, u: v + u, "not all of your numbers are whole"),
    ("neighbour", lambda v, u: v.floor() + ((u < 0.5) & (v > v.floor())).to(v.dtype), "but the mean for 0.2 is 0.[45]"),
    ("neighbour", lambda v, u: v.floor() + (1 - u < v - v.floor()).to(v.dtype), "draws differ from equation 10.1"),
    ("neighbour", lambda v, u: v.floor()[0], "should have shape"),
    ("staircase", lambda x, m, low, high: staircase(x, 2 * m, low, high, base=False), "add the lowest number"),
    ("staircase", lambda x, m, low, high: staircase(x, m, low, high), "the factor 2 is missing"),
    ("staircase", lambda x, m, low, high: staircase(x, 2 * m, low, high, shift=0.0), "half-way between them"),
    ("staircase", lambda x, m, low, high: staircase(x, 2 * m, low, high, shift=1.0), "half-way between them"),
    ("staircase", lambda x, m, low, high: soft_staircase(x, m), "it rises by|off by up to"),
    ("staircase", lambda x, m, low, high: low + (high - low) * (m * x).sigmoid(), "off by up to|it rises by"),
    ("one_hot_gradient", functools.partial(gradient, scale=False), "divide by the temperature"),
    (
        "one_hot_gradient",
        functools.partial(gradient, probabilities=lambda a: a.softmax(-1)),
        "depend on the temperature",
    ),
    ("one_hot_gradient", functools.partial(gradient, centre="none"), "the mean of g is missing"),
    ("one_hot_gradient", functools.partial(gradient, centre="own"), "the Jacobian's diagonal alone"),
    ("one_hot_gradient", functools.partial(gradient, centre="plain"), "with the probabilities as weights"),
    ("one_hot_gradient", lambda a, g, temperature: g, "still has to pass the softmax"),
    ("one_hot_gradient", chosen_only, "each neuron's gradient sums to 0"),
    ("one_hot_gradient", lambda a, g, temperature: -gradient(a, g, temperature), "of the largest entry"),
    ("exact_gradient", lambda v, losses: losses[:, 2] - losses[:, 1], "below it the neuron says"),
    ("exact_gradient", lambda v, losses: (losses[:, 2] - losses[:, 0]) / 2, "never draws between those two"),
    (
        "exact_gradient",
        lambda v, losses: torch.where(v > 0, losses[:, 1] - losses[:, 2], losses[:, 0] - losses[:, 1]),
        "the sign is wrong: v raises",
    ),
    (
        "exact_gradient",
        lambda v, losses: torch.where(v > 0, losses[:, 2] - losses[:, 1], losses[:, 0] - losses[:, 1]),
        "the sign is wrong below zero",
    ),
    (
        "exact_gradient",
        lambda v, losses: torch.where(v < 0, losses[:, 2] - losses[:, 1], losses[:, 1] - losses[:, 0]),
        "the two sides of zero are exchanged",
    ),
    (
        "exact_gradient",
        lambda v, losses: torch.where(
            v > 0, (1 - v) * losses[:, 1] + v * losses[:, 2], (1 + v) * losses[:, 1] - v * losses[:, 0]
        ),
        "the expected loss itself",
    ),
    ("exact_gradient", lambda v, losses: v * losses[:, 0], "off by"),
]


def network(kind, k):
    (Network,) = printed("Network")
    layers = {
        "one-hot": lambda: StraightThrough(neurons=OneHot, generator=torch.Generator().manual_seed(0)),
        "ternary": lambda: Ternary(generator=torch.Generator().manual_seed(0)),
        "leave-one-out": lambda: stochastic.LeaveOneOut(neurons=OneHot, generator=torch.Generator().manual_seed(0)),
    }
    torch.manual_seed(0)
    return Network(layers[kind](), 5, 4, k)


X, LABELS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7)


@pytest.mark.parametrize(("kind", "k"), [("one-hot", 3), ("ternary", 1), ("leave-one-out", 3)])
def test_a_networks_loss_is_the_cross_entropy_of_its_readout(kind, k):
    net = network(kind, k).eval()  # where it does not draw
    values = net.layer(net.logits(X))
    right = torch.nn.functional.cross_entropy(net.readout(values.flatten(1)), LABELS, reduction="none")
    torch.testing.assert_close(net.losses(X, LABELS), right)
    assert values.shape == ((7, 4, 3) if k > 1 else (7, 4))
    net.train()
    gradients = torch.autograd.grad(net.losses(X, LABELS).sum(), list(net.parameters()))
    assert all(one.abs().max() > 0 for one in gradients)


def test_an_image_has_its_own_loss_also_for_several_draws():
    net = network("one-hot", 3)
    values = net.layer(net.logits(X).expand(2, 7, 4, 3))
    several = net.judge(values, LABELS)
    assert several.shape == (2, 7)
    torch.testing.assert_close(several[1], net.judge(values[1], LABELS))


def test_parts_are_disjoint_and_complete():
    (part,) = printed("part")
    data = datasets.load("digits")
    (x, labels), (y, more), (z, test) = (part(name) for name in range(3))
    assert (len(x), len(y), len(z)) == (1100, 100, 597)
    assert torch.equal(torch.cat([x, y]), data.train_images.flatten(1))
    assert torch.equal(torch.cat([labels, more]), data.train_labels)
    assert torch.equal(test, data.test_labels)


def test_training_lowers_the_error_for_every_kind_of_neuron():
    (trained,) = printed("trained")
    for kind, k in [("sigmoid", 1), ("binary", 1), ("ternary", 1), ("one of k", 4)]:
        torch.manual_seed(0)
        before, after = (trained(kind, 24, k, 1.0, epochs, 2, seed=0) for epochs in (0, 8))
        assert after["error"] < before["error"] - 30
        assert after["parameters"] == 65 * 24 * k + (24 * k + 1) * 10
        assert 1 <= after["codes"] <= 597
        if kind != "sigmoid":
            torch.testing.assert_close(after["shares"].sum(-1), torch.ones(24))


def test_neurons_are_counted_fairly():
    neurons_for, kinds = printed("neurons_for", "KINDS")
    assert [neurons_for(name, "bits") for name in kinds] == [48, 48, 30, 48, 24, 16, 12]
    assert [neurons_for(name, "weights") for name in kinds] == [96, 96, 96, 48, 24, 12, 6]


def test_shares_and_entropies():
    shares, entropies, used = printed("shares", "entropies", "used")
    values = torch.tensor([[-1.0, 0], [0, 0], [1, 0], [1, 0]])
    assert shares(values, 1).tolist() == [[0.25, 0.25, 0.5], [0, 1, 0]]
    one_hot = OneHot.decide(torch.tensor([[[2.0, 1, 0]], [[0, 1, 0]]]))
    assert shares(one_hot, 3).tolist() == [[0.5, 0.5, 0]]

    class Table:
        shares = (np.array([[0.25, 0.25, 0.5], [0, 1, 0]]),)

    assert entropies(Table) == pytest.approx([0.75])
    assert used(Table) == pytest.approx([4 / 6])


def test_the_family_of_two_tanhs_keeps_its_conditions():
    (two_tanhs,) = printed("two_tanhs")
    for c in (1.5, 3.0, 8.0):
        x = torch.tensor([0.0, 30.0], dtype=torch.float64, requires_grad=True)
        value = two_tanhs(x, c)
        (slope,) = torch.autograd.grad(value.sum(), x)
        assert (value[1].item(), slope[0].item()) == pytest.approx((1, 0))


def test_draws_of_the_chapter_and_of_the_package_are_the_same():
    (draw,) = printed("draw")
    v = torch.randn(300)
    ours = draw(v, torch.rand(300, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(ours, to_integers(v, generator=torch.Generator().manual_seed(5)))


def test_a_codebook_passes_on_the_nearest_vector_and_learns():
    (Codebook,) = printed("Codebook")
    torch.manual_seed(0)
    codebook, z = Codebook(3, 5, 4), torch.randn(20, 3, 4, requires_grad=True)
    e = codebook(z)
    distance = (z[:, :, None] - codebook.vectors).square().sum(-1)
    nearest = torch.stack([codebook.vectors[g, distance.argmin(-1)[:, g]] for g in range(3)], 1)
    torch.testing.assert_close(e, nearest)
    torch.testing.assert_close(codebook.penalty, 1.25 * (z - nearest).square().mean((1, 2)))
    upstream = torch.randn_like(e)
    assert torch.equal(torch.autograd.grad(e, z, upstream, retain_graph=True)[0], upstream)
    of_vectors, of_z = torch.autograd.grad(codebook.penalty.sum(), [codebook.vectors, z])
    torch.testing.assert_close(of_z, 0.5 / 12 * (z - nearest))
    torch.testing.assert_close(of_vectors.sum((1, 2)), 2 / 12 * (nearest - z).sum((0, 2)))


def test_levels_are_equally_spaced_and_let_the_gradient_through():
    (Levels,) = printed("Levels")
    for count in (2, 3, 8):
        levels = Levels(count)(torch.linspace(-4, 4, 1001))
        torch.testing.assert_close(levels.unique(), torch.linspace(-1, 1, count))
    a = torch.randn(10, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(Levels(8)(a).sum(), a)
    torch.testing.assert_close(ours, 1 - a.detach().tanh() ** 2)
