"""Mistakes found in the book's sources, each shown in a few lines: see errata.yaml, which names these tests."""

import math

import pytest
import torch

from shared.recurrent import Cell, TanhCell, unroll
from shared.stochastic import to_integers
from shared.truncation import truncated_backward


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_one_case_gives_a_trough_and_a_second_a_bowl():
    def error(w, *inputs):
        return sum((w @ x) ** 2 / 2 for x in inputs)

    def curvatures(*inputs):
        return torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda w: error(w, *inputs), double(3, -2)))

    torch.testing.assert_close(curvatures(double(1, 1)), double(0, 2))
    assert curvatures(double(1, 1), double(1, -0.5)).min() > 0.1


@pytest.mark.parametrize(("alpha", "crosses"), [(0.0, False), (0.9, False), (0.99, True)])
def test_a_short_memory_does_not_cross_the_flat_place(alpha, crosses):
    x, change = -1.0, 0.0
    for _ in range(10_000):
        change = -(1 - alpha) * 0.001 * (4 * x**3 - 9 * x**2) + alpha * change
        x += change
    assert x == pytest.approx(9 / 4) if crosses else -0.05 < x < 0


def test_a_norm_above_one_need_not_explode():
    """A random orthogonal matrix times 1.2, without the tanh a factor of 1.2 a step in every direction."""
    cell, generator = TanhCell(8, 64).double(), torch.Generator().manual_seed(0)
    norms = []
    for scale in (1.2, 1.5):
        with torch.no_grad():
            cell.W.copy_(scale * torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q)
        states, _ = unroll(cell, torch.randn(60, 1, 8, generator=generator, dtype=torch.float64))
        product = torch.eye(64, dtype=torch.float64)
        for h in states[10:, 0]:
            product = (1 - h**2)[:, None] * cell.W @ product
        norms.append(torch.linalg.matrix_norm(product, 2))
        assert norms[-1] < scale**50  # the bound
    assert norms[0] < 1


class SumCell(Cell):
    """h_t = h_(t−1) + x_t: an error reaches an input if and only if it travels that far."""

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 1, dtype=torch.float64)

    def step(self, x_t, state):
        return state + x_t, state + x_t


@pytest.mark.parametrize(("stride", "full"), [(1, 43), (7, 7)])
def test_full_journeys_of_49_errors(stride, full):
    count = 0
    for t in range(49):
        inputs = torch.zeros(49, 1, 1, dtype=torch.float64, requires_grad=True)
        truncated_backward(SumCell(1, 1), inputs, lambda outputs, t=t: outputs[t].sum(), depth=7, stride=stride)
        count += int(inputs.grad.count_nonzero()) == 7
    assert count == full


def test_slips_in_the_sum_over_past_states():
    """A(t) = λ A(t−1) + η h hᵀ, as the paper writes it, and read after the newest state has been written."""
    decay, rate, generator = 0.9, 0.5, torch.Generator().manual_seed(0)
    h = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    q, A = h.new_ones(4), h.new_zeros(4, 4)
    for state in h:
        before, A = A, decay * A + rate * torch.outer(state, state)
    ages = torch.arange(5, -1, -1)
    weights = rate * decay**ages * (h @ q)
    torch.testing.assert_close(weights @ h, A @ q)
    torch.testing.assert_close(weights[:-1] / decay @ h[:-1], before @ q)  # right, and one step late
    torch.testing.assert_close(weights / decay @ h, A @ q / decay)  # a larger rate would do the same
    assert not torch.allclose(weights[:-1] @ h[:-1], A @ q)


def test_the_upper_number_is_drawn_with_the_fractional_part():
    """The mean of what is drawn is then the activation; after the comment it would be as far off as it can be."""
    v = double(-0.8, 0.2, 0.7).expand(50_000, 3)
    drawn = to_integers(v, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), v[0], atol=0.01, rtol=0)
    fraction = v[0] - v[0].floor()
    by_the_comment = v[0].floor() * fraction + (v[0].floor() + 1) * (1 - fraction)
    assert ((by_the_comment - v[0]).abs() > 0.3).all()


def test_bits_without_their_log_probability_train_nothing_below():
    torch.manual_seed(0)
    below, readout, x = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), torch.randn(16, 4)
    labels = torch.arange(16) % 3
    p = below(x).sigmoid()
    bits = torch.bernoulli(p)  # as autograd has it, a constant
    losses = torch.nn.functional.cross_entropy(readout(bits), labels, reduction="none")

    def gradients(loss):
        return torch.autograd.grad(loss, [below.weight, readout.weight], retain_graph=True, materialize_grads=True)

    frozen, trained = gradients(losses.mean())
    assert not frozen.any()
    assert trained.any()
    log_probability = torch.where(bits > 0, p, 1 - p).log().sum(1)
    assert gradients((losses.detach() * log_probability).mean())[0].any()


def test_a_gradient_times_the_output_is_short_by_the_probability():
    p = double(0.1, 0.5, 0.9)
    logits = p.logit().expand(200_000, 3).clone().requires_grad_()
    probabilities = logits.sigmoid()
    bits = torch.bernoulli(probabilities.detach(), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, passed in (("straight through", probabilities), ("times the output", bits * probabilities)):
        (gradient,) = torch.autograd.grad(passed.sum(), logits, retain_graph=True)
        found[name] = gradient.mean(0)
    torch.testing.assert_close(found["straight through"], p * (1 - p))
    torch.testing.assert_close(found["times the output"], p * found["straight through"], rtol=0.03, atol=0)


@pytest.mark.parametrize("batch", [4, 64])
def test_a_sum_over_the_number_of_layers_grows_with_the_batch(batch):
    """The same error for every example: its mean has the same gradient for every batch, the scaled sum has not."""
    said, target = torch.zeros(2, batch, 5, requires_grad=True), torch.ones(2, batch, 5)
    bias = torch.zeros(5, requires_grad=True)
    residual = said + bias - target
    (mean,) = torch.autograd.grad(residual.square().mean(), bias, retain_graph=True)
    (scaled,) = torch.autograd.grad(residual.square().sum() / len(said), bias)
    torch.testing.assert_close(mean, torch.full((5,), -2 / 5))
    torch.testing.assert_close(scaled, torch.full((5,), -2.0 * batch))
    assert math.isclose(float(scaled[0] / mean[0]), 5 * batch, rel_tol=1e-6)
