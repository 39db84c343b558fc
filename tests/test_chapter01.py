"""Chapter 1: wrong answers to its exercises, and the engine and gradients printed in it are right on more than its own cases."""

import functools
import itertools
import math

import conftest
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import ledger
from shared.exercises import chapter01
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("01")[0])
GIVEN = {"np": np, "torch": torch, "itertools": itertools, "math": math, "ledger": ledger, "chapter01": chapter01}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def in_place(w, change, gradient, eta, alpha):
    change *= alpha
    change -= (1 - alpha) * eta * gradient
    return w + change, change


def power_too_short(product, size):
    v = np.ones(size)
    for _ in range(2):
        v = product(v) / np.linalg.norm(product(v))
    return 2 / (v @ product(v))


def eigenvalues(product, size):
    return np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(size)]))


def softmax_gradient(a, p, tau):
    return (torch.softmax(a / tau, 1) - p) / (tau * len(a))


def no_shift(a, p, tau):
    q = torch.exp(a / tau) / torch.exp(a / tau).sum(1, keepdim=True)
    return (q - p) / (tau * len(a))


WRONG = [
    ("momentum_step", lambda w, c, g, eta, a: (w + a * c - eta * g, a * c - eta * g), "times too large at alpha"),
    ("momentum_step", lambda w, c, g, eta, a: (w + c, a * c - (1 - a) * eta * g), "added the old one"),
    ("momentum_step", lambda w, c, g, eta, a: (w, a * c + (1 - a) * eta * g), "climbs"),
    ("momentum_step", in_place, "altered its argument `change`"),
    ("momentum_step", lambda w, c, g, eta, a: w - eta * g, "return two things"),
    ("momentum_step", lambda w, c, g, eta, a: (w, 0.5 * c), "off by"),
    ("logit_gradient", lambda a, p, tau: len(a) * softmax_gradient(a, p, tau), "did you sum over the batch"),
    ("logit_gradient", lambda a, p, tau: tau * softmax_gradient(a, p, tau), "the chain rule passes"),
    ("logit_gradient", lambda a, p, tau: -softmax_gradient(a, p, tau), "every sign is reversed"),
    ("logit_gradient", lambda a, p, tau: softmax_gradient(a, p, 1) / tau, "a temperature of 1"),
    ("logit_gradient", lambda a, p, tau: softmax_gradient(a, 0, tau), "the targets are not subtracted"),
    ("logit_gradient", no_shift, "a logit of 1000 gives NaN"),
    ("logit_gradient", lambda a, p, tau: a / len(a), "off by"),
    ("logit_gradient", lambda a, p, tau: a.sum(0), "logits' shape"),
    ("divide_pullbacks", lambda a, b, g: (g / b, -g * a / b**2), "sum over its uses"),
    ("divide_pullbacks", lambda a, b, g: (g / b, (g * a / b**2).sum(0, keepdims=True)), "wrong sign"),
    ("divide_pullbacks", lambda a, b, g: (g / b, (-g * a / b**2).mean(0, keepdims=True)), "times too small"),
    ("divide_pullbacks", lambda a, b, g: (g * b, (-g * a / b**2).sum(0, keepdims=True)), "receives adjoint / b"),
    ("divide_pullbacks", lambda a, b, g: (g / b, (-g * a / b).sum(0, keepdims=True)), "off by"),
    ("divide_pullbacks", lambda a, b, g: (g / b, (-g * a / b**2).sum(0)), "should have shape"),
    ("largest_stable_step", lambda product, n: 1 / eigenvalues(product, n)[-1], "1/L"),
    ("largest_stable_step", lambda product, n: 2 * eigenvalues(product, n)[-1], "2L"),
    ("largest_stable_step", lambda product, n: eigenvalues(product, n)[-1], "the largest eigenvalue itself"),
    # a trace that happens to be twice the largest eigenvalue makes this the other mistake
    ("largest_stable_step", lambda product, n: 2 / eigenvalues(product, n).sum(), "the trace|1/L"),
    ("largest_stable_step", power_too_short, "repeat until the estimate settles"),
]


def test_an_answer_that_stops_is_reported(capsys):
    chapter01.logit_gradient(lambda a, p, tau: 1 / 0)
    assert (
        capsys.readouterr().out == "Exercise 1.2: not yet: your code stopped with ZeroDivisionError: division by zero\n"
    )


# The engine, beyond the graphs of the chapter.

Node, shrink, tanh, softplus, mean, random_graph = printed("Node", "shrink", "tanh", "softplus", "mean", "random_graph")
shapes = st.sampled_from([(), (1,), (4,), (1, 4), (3, 1), (3, 4), (1, 1)])


@given(shapes, shapes, st.sampled_from(["+", "*", "-"]), st.integers(0, 2**32 - 1))
def test_broadcast_operations_agree_with_torch(left, right, sign, seed):
    random = np.random.default_rng(seed)
    values = [random.normal(size=shape) for shape in (left, right)]
    apply = {"+": lambda a, b: a + b, "*": lambda a, b: a * b, "-": lambda a, b: a - b}[sign]
    ours, theirs = [Node(x) for x in values], [torch.tensor(x, requires_grad=True) for x in values]
    mean(tanh(apply(*ours))).backward()
    torch.tanh(apply(*theirs)).mean().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.adjoint.shape == tuple(b.shape)
        np.testing.assert_allclose(a.adjoint, b.grad.numpy(), atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_random_graphs_agree_with_torch(seed, operations):
    arrays = np.random.default_rng(seed).normal(size=(3, 3, 3))
    ours, theirs = [Node(x) for x in arrays], [torch.tensor(x, requires_grad=True) for x in arrays]
    mean(softplus(random_graph(ours, tanh, seed, operations))).backward()
    loss = torch.nn.functional.softplus(random_graph(theirs, torch.tanh, seed, operations)).mean()
    for a, b in zip(ours, torch.autograd.grad(loss, theirs, materialize_grads=True), strict=True):
        np.testing.assert_allclose(a.adjoint, b.numpy(), atol=1e-10)


def test_backward_twice_does_not_add_up():
    x = Node(2.0)
    y = x * x
    y.backward()
    y.backward()
    assert x.adjoint == 4


def test_a_deep_chain_does_not_exhaust_the_stack():
    x = y = Node(0.0)
    for _ in range(5000):
        y = y + 1.0
    y.backward()
    assert x.adjoint == 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(1, 5), st.integers(0, 1000))
def test_the_hand_gradients_pass_gradcheck_and_float32(sizes, cases, seed):
    _, forward, backward = printed("logistic", "forward", "backward")
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    layers = [(draw(a, b), draw(b)) for a, b in itertools.pairwise(sizes)]
    x, t = draw(cases, sizes[0]), draw(cases, sizes[-1])

    class Error(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *parts):
            pairs = list(zip(parts[::2], parts[1::2], strict=True))
            outputs = forward(pairs, x)
            ctx.gradients = [part for pair in backward(pairs, outputs, t) for part in pair]
            return (t - outputs[-1]).square().sum() / 2

        @staticmethod
        def backward(ctx, adjoint):
            return tuple(adjoint * part for part in ctx.gradients)

    assert torch.autograd.gradcheck(Error.apply, [part.requires_grad_() for pair in layers for part in pair])
    single = [(W.detach().float(), b.detach().float()) for W, b in layers]
    double = [(W.detach(), b.detach()) for W, b in layers]
    for ours, reference in zip(
        backward(single, forward(single, x.float()), t.float()), backward(double, forward(double, x), t), strict=True
    ):
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
