"""Fast weights: the cell against its equations as loops, and the chunked form against the cell in every way gradients can take."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import CLOSELY, EXACTLY, all_close, close_to_the_largest
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.functional import layer_norm

from benchmarks._measure import mean_square, megabytes
from benchmarks.fast_weights import stacked_states
from shared.fast_weights import FastWeightsCell, chunked_unroll
from shared.recurrent import unroll

TIME, BATCH, INPUT, HIDDEN = 7, 3, 2, 5
NEARLY = {"rtol": 1e-10, "atol": 1e-10}


def example(time=TIME, batch=BATCH, sizes=(INPUT, HIDDEN), dtype=torch.float64, from_zero=False, scale=0.3, **options):
    """A cell, inputs and a state, all drawn and all wanting gradients; no state if it is to begin from zero."""
    torch.manual_seed(0)
    cell = FastWeightsCell(*sizes, **options).to(dtype)
    with torch.no_grad():
        for one in cell.parameters():
            one.add_(scale * torch.randn_like(one))
    inputs = torch.randn(time, batch, sizes[0], dtype=dtype, requires_grad=True)
    state = tuple((scale * torch.randn_like(one)).requires_grad_() for one in cell.initial_state(batch))
    return cell, inputs, None if from_zero else state


def leaves(cell, inputs, state):
    return [inputs, *(state or ()), *cell.parameters()]


def everything(run, drawn, of=(1.0, 1.0, 1.0)):
    """Outputs, last h and A, and the gradients of all that wants one, for a loss that weighs every number differently."""
    outputs, (h, A) = run(*drawn)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in (outputs, h, A))
    terms = [(one.tanh() * weight.to(one.dtype)).sum() for one, weight in zip((outputs, h, A), weights, strict=True)]
    loss = sum(share * term for share, term in zip(of, terms, strict=True) if share)
    return [outputs, h, A, *torch.autograd.grad(loss, leaves(*drawn), materialize_grads=True)]


def in_chunks(chunk):
    return lambda cell, inputs, state: chunked_unroll(cell, inputs, state, chunk=chunk)


def by_the_equations(cell, inputs, state):
    """The equations with a loop for every index, in numpy."""
    U, W, bias = (one.detach().numpy() for one in (cell.U, cell.W, cell.bias))
    gain = None if cell.gain is None else cell.gain.detach().numpy()
    phi = {"relu": lambda z: max(z, 0.0), "tanh": math.tanh}[cell.nonlinearity]
    units, (steps, batch, features) = range(len(bias)), inputs.shape
    x, (h, A) = inputs.detach().numpy(), (one.detach().numpy().copy() for one in state)
    outputs = np.zeros((steps, batch, len(bias)))
    for b in range(batch):
        for t in range(steps):
            z = [
                sum(U[i, k] * x[t, b, k] for k in range(features)) + sum(W[i, j] * h[b, j] for j in units)
                for i in units
            ]
            now = [phi(z[i]) for i in units]
            for _ in range(cell.inner_steps):
                sums = [z[i] + sum(A[b, i, j] * now[j] for j in units) for i in units]
                if gain is not None:
                    mean = sum(sums) / len(units)
                    deviation = math.sqrt(sum((one - mean) ** 2 for one in sums) / len(units) + 1e-5)
                    sums = [gain[i] * (sums[i] - mean) / deviation for i in units]
                now = [phi(sums[i] + bias[i]) for i in units]
            for i in units:
                for j in units:
                    A[b, i, j] = cell.decay * A[b, i, j] + cell.rate * now[i] * now[j]
            h[b] = outputs[t, b] = now
    return [torch.from_numpy(one) for one in (outputs, h, A)]


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("inner_steps", [1, 2, 3])
def test_the_cell_is_its_equations(inner_steps, normalised, nonlinearity):
    options = {"inner_steps": inner_steps, "layer_norm": normalised, "nonlinearity": nonlinearity}
    cell, inputs, state = example(**options, decay=0.9, rate=0.4 if normalised else 0.02)
    outputs, (h, A) = unroll(cell, inputs, state)
    all_close([outputs, h, A], by_the_equations(cell, inputs, state), **CLOSELY)


def test_the_cell_starts_as_the_paper_has_it():
    torch.manual_seed(0)
    cell = FastWeightsCell(50, 20)
    assert (cell.inner_steps, cell.decay, cell.rate, cell.nonlinearity) == (1, 0.95, 0.5, "relu")
    assert {name: tuple(one.shape) for name, one in cell.named_parameters()} == {
        **{"U": (20, 50), "W": (20, 20), "gain": (20,), "bias": (20,)}
    }
    all_close([cell.W, cell.gain, cell.bias], [0.05 * torch.eye(20), torch.ones(20), torch.zeros(20)], **EXACTLY)
    assert 0.99 * 20**-0.5 < cell.U.abs().max() <= 20**-0.5
    assert cell.U.std().item() == pytest.approx((20 * 3) ** -0.5, rel=0.05)
    h, A = cell.initial_state(3)
    all_close([h, A], [torch.zeros(3, 20), torch.zeros(3, 20, 20)], **EXACTLY)
    assert FastWeightsCell(50, 20, layer_norm=False).gain is None


DRAWN = {
    "time": st.integers(1, 12),
    "batch": st.integers(0, 3),
    "sizes": st.tuples(st.integers(1, 3), st.integers(1, 5)),
    "inner_steps": st.integers(1, 3),
    "decay": st.sampled_from([0, 0.5, 0.95, 1]) | st.floats(0, 1),
    "rate": st.sampled_from([0, 0.5, -0.5]) | st.floats(-0.6, 0.6),
    "nonlinearity": st.sampled_from(["relu", "tanh"]),
    "layer_norm": st.booleans(),
    "from_zero": st.booleans(),
}


@given(drawn=st.fixed_dictionaries(DRAWN), chunk=st.none() | st.integers(1, 14))
@settings(max_examples=150, deadline=None)
def test_chunks_give_what_unroll_gives(drawn, chunk):
    if not drawn["layer_norm"]:
        drawn["rate"] /= 50  # or else states grow beyond all bounds within a few steps
    drawn = example(**drawn, scale=0.2)
    all_close(everything(in_chunks(chunk), drawn), everything(unroll, drawn), **NEARLY)


@pytest.mark.parametrize("of", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_gradients_come_through_outputs_alone_and_through_either_last_state_alone(chunk, from_zero, of):
    drawn = example(from_zero=from_zero, inner_steps=2)
    all_close(everything(in_chunks(chunk), drawn, of), everything(unroll, drawn, of), **NEARLY)


@pytest.mark.parametrize("only", ["inputs", "h", "A", "U", "W", "gain", "bias"])
def test_gradients_of_one_thing_alone(only):
    cell, inputs, (h, A) = example()
    for one in leaves(cell, inputs, (h, A)):
        one.requires_grad_(False)
    wanted = {"inputs": inputs, "h": h, "A": A, **dict(cell.named_parameters())}[only].requires_grad_()
    found = [torch.autograd.grad(mean_square(run(cell, inputs, (h, A))[0]), wanted) for run in (in_chunks(3), unroll)]
    all_close(*found, **NEARLY)


@given(drawn=st.fixed_dictionaries(DRAWN | {"batch": st.integers(1, 3)}), chunk=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_in_single_precision(drawn, chunk):
    drawn |= {
        "rate": drawn["rate"] / 50,
        "nonlinearity": "tanh",
        "layer_norm": False,
    }  # which no rounding throws across a kink
    found = everything(in_chunks(chunk), example(**drawn, dtype=torch.float32, scale=0.1))
    assert all(one.dtype == torch.float32 for one in found)
    cell, inputs, state = example(**drawn, dtype=torch.float32, scale=0.1)
    doubled = [one.detach().double().requires_grad_() for one in (inputs, *(state or ()))]
    expected = everything(unroll, (cell.double(), doubled[0], tuple(doubled[1:]) or None))
    close_to_the_largest(found, expected, 1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"inner_steps": 2, "layer_norm": False, "rate": 0.1}, {"from_zero": True}])
def test_finite_differences_agree_once_and_twice(options, chunk):
    cell, inputs, state = example(time=3, batch=2, sizes=(1, 2), nonlinearity="tanh", **options)
    names, values = zip(*cell.named_parameters(), strict=True)

    def run(inputs, *rest):
        weights = dict(zip(names, rest[-len(names) :], strict=True))
        outputs, last = functional_call(
            Through(cell),
            {f"cell.{name}": one for name, one in weights.items()},
            (inputs, rest[: -len(names)] or None, chunk),
        )
        return outputs, *last

    given = (inputs, *(state or ()), *values)
    assert gradcheck(run, given)
    assert gradgradcheck(run, given)


class Through(nn.Module):
    """A sequence as one call, which `functional_call` can be given; by `unroll` where there is no chunk."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, inputs, state=None, chunk=None):
        return chunked_unroll(self.cell, inputs, state, chunk=chunk) if chunk else unroll(self.cell, inputs, state)


@pytest.mark.parametrize("chunk", [None, 3])
def test_functional_calls_leave_the_cell_as_it_is(chunk):
    cell, inputs, state = example()
    before = unroll(cell, inputs, state)[0]
    double = {name: 2 * one for name, one in Through(cell).named_parameters()}
    found, _ = functional_call(Through(cell), double, (inputs, state, chunk))
    all_close([unroll(cell, inputs, state)[0]], [before], **EXACTLY)
    cell.load_state_dict({name.removeprefix("cell."): one for name, one in double.items()})
    torch.testing.assert_close(found, unroll(cell, inputs, state)[0], **NEARLY)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # within torch
def test_transforms_that_work_and_transforms_that_are_refused():
    cell, inputs, state = example()

    def loss(chunk):
        return lambda weights, inputs: mean_square(functional_call(Through(cell), weights, (inputs, state, chunk))[0])

    weights = dict(Through(cell).named_parameters())
    ours, expected = (grad(loss(chunk), (0, 1))(weights, inputs) for chunk in (3, None))
    all_close([ours[1], *ours[0].values()], [expected[1], *expected[0].values()], **NEARLY)
    several = torch.stack([inputs, 2 * inputs])
    assert vmap(loss(None), (None, 0))(weights, several).shape == (2,)
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(loss(3), (None, 0))(weights, several)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda inputs: loss(3)(weights, inputs), (inputs,), (inputs,))


@given(rate=st.floats(-1, 1), decay=st.floats(0, 1), steps=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_to_read_the_matrix_is_to_attend_to_the_states(rate, decay, steps):
    """A_{t−1} q = η Σ_τ λ^{t−1−τ} h_τ (h_τ · q), from A = 0."""
    cell, inputs, _ = example(time=steps, rate=rate, decay=decay)
    h, (_, A) = unroll(cell, inputs)
    q = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
    attended = rate * sum(decay ** (steps - 1 - s) * h_s * (h_s * q).sum(1, keepdim=True) for s, h_s in enumerate(h))
    torch.testing.assert_close((A @ q[:, :, None])[:, :, 0], attended, **CLOSELY)


def test_the_benchmark_compares_equals():
    cell, inputs, _ = example(inner_steps=2)
    torch.testing.assert_close(stacked_states(cell, inputs)[0], unroll(cell, inputs)[0], **CLOSELY)


@pytest.mark.parametrize("run", [unroll, chunked_unroll])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_without_a_rate_it_is_the_layer_normalised_network(run, decay):
    cell, inputs, _ = example(decay=decay, rate=0)
    h, expected = torch.zeros(BATCH, HIDDEN, dtype=torch.float64), []
    for x_t in inputs:
        h = torch.relu(layer_norm(x_t @ cell.U.T + h @ cell.W.T, (HIDDEN,), cell.gain, cell.bias))
        expected.append(h)
    outputs, (_, A) = run(cell, inputs)
    all_close([outputs, A], [torch.stack(expected), torch.zeros_like(A)], **CLOSELY)


@pytest.mark.parametrize("run", [unroll, chunked_unroll, in_chunks(2)])
def test_the_sequences_of_a_batch_know_nothing_of_each_other(run):
    """Moments taken over the batch, a known mistake in this place, would mix them."""
    cell, inputs, state = example(batch=4)
    outputs, last = run(cell, inputs, state)
    order = torch.tensor([2, 0, 3, 1])
    others, other_last = run(cell, inputs[:, order], tuple(one[order] for one in state))
    all_close([others, *other_last], [outputs[:, order], *(one[order] for one in last)], **CLOSELY)
    for b in range(4):
        alone, alone_last = run(cell, inputs[:, b : b + 1], tuple(one[b : b + 1] for one in state))
        all_close([alone[:, 0], *(one[0] for one in alone_last)], [outputs[:, b], *(one[b] for one in last)], **CLOSELY)
        (of_others,) = torch.autograd.grad(outputs[:, b].sum() + last[1][b].sum(), inputs, retain_graph=True)
        of_others[:, b] = 0
        assert of_others.abs().max() == 0


@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=4), chunk=st.none() | st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_pieces_with_the_state_carried_over_are_the_whole(pieces, chunk):
    drawn = example(time=sum(pieces), inner_steps=2)

    def piecewise(cell, inputs, state):
        outputs = []
        for piece in inputs.split(pieces):
            y, state = chunked_unroll(cell, piece, state, chunk=chunk)
            outputs.append(y)
        return torch.cat(outputs), state

    all_close(everything(piecewise, drawn), everything(unroll, drawn), **NEARLY)


@pytest.mark.parametrize(("steps", "hidden", "inner_steps"), [(40, 16, 1), (40, 16, 3), (10, 32, 1)])
def test_memory_grows_with_the_states_and_not_with_the_matrices(steps, hidden, inner_steps):
    cell, inputs, _ = example(time=steps, batch=4, sizes=(3, hidden), inner_steps=inner_steps, from_zero=True)
    inputs = inputs.detach()
    series, matrix = (8e-6 * one for one in (steps * 4 * hidden, 4 * hidden**2))
    kept = megabytes(lambda: chunked_unroll(cell, inputs))
    rest = 1e-6 * 8 * (inputs.numel() + sum(one.numel() for one in cell.parameters()) + 4 * hidden)
    assert kept <= (2 + inner_steps) * series + (steps - 1) // hidden * matrix + rest + 1e-9
    assert megabytes(lambda: unroll(cell, inputs)) > steps * matrix
    whole = megabytes(lambda: chunked_unroll(cell, inputs, chunk=steps))
    assert whole <= (2 + inner_steps) * series + rest + 1e-9


def test_the_backward_pass_may_run_twice_and_late():
    cell, inputs, state = example()
    outputs, (_, A) = chunked_unroll(cell, inputs, state, chunk=3)
    loss = mean_square(outputs) + mean_square(A)
    first = torch.autograd.grad(loss, leaves(cell, inputs, state), retain_graph=True)
    cell.decay, cell.rate, cell.inner_steps = 0.1, 0.1, 2  # of the next run
    all_close(torch.autograd.grad(loss, leaves(cell, inputs, state)), first, **EXACTLY)


def test_results_may_be_changed_in_place():
    cell, inputs, state = example()
    expected = everything(unroll, (cell, inputs, state))

    def changed(cell, inputs, state):
        outputs, (h, A) = chunked_unroll(cell, inputs, state, chunk=3)
        h.add_(1).sub_(1)
        A.add_(1).sub_(1)
        return outputs, (h, A)

    all_close(everything(changed, (cell, inputs, state)), expected, **NEARLY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner_steps": 0}, r"inner_steps must be a whole number of at least 1 \(got 0\)"),
        ({"inner_steps": 1.5}, r"inner_steps must be a whole number of at least 1 \(got 1.5\)"),
        ({"inner_steps": True}, r"inner_steps must be a whole number of at least 1 \(got True\)"),
        ({"decay": -0.1}, r"decay must be between 0, .* and 1, .* \(got -0.1\)"),
        ({"decay": 1.1}, r"decay must be between 0, .* and 1, .* \(got 1.1\)"),
        ({"decay": math.nan}, r"decay must be a finite number \(got nan\)"),
        ({"decay": True}, r"decay must be a finite number \(got True\)"),
        ({"rate": math.inf}, r"rate must be a finite number \(got inf\)"),
        ({"rate": math.nan}, r"rate must be a finite number \(got nan\)"),
        ({"rate": "half"}, r"rate must be a finite number \(got 'half'\)"),
        ({"nonlinearity": "sigmoid"}, r"nonlinearity must be one of relu, tanh \(got 'sigmoid'\)"),
        ({"nonlinearity": ["relu"]}, r"nonlinearity must be one of relu, tanh \(got \['relu'\]\)"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FastWeightsCell(INPUT, HIDDEN, **options)


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        (lambda h, A: (h, A[:1]), ValueError, r"state\[1\] must have shape \(3, 5, 5\) .* \(got \(1, 5, 5\)\)"),
        (lambda h, A: (h, A[..., :4]), ValueError, r"state\[1\] must have shape \(3, 5, 5\) .* \(got \(3, 5, 4\)\)"),
        (lambda h, A: (h[:1], A), ValueError, r"state\[0\] must have shape \(3, 5\) .* \(got \(1, 5\)\)"),
        (lambda h, A: h, TypeError, r"state must be a tuple \(tensor, tensor\), .* \(got tensor\)"),
        (lambda h, A: [h, A], TypeError, r"state must be a tuple \(tensor, tensor\), .* \(got list\)"),
        (lambda h, A: (h, A.float()), TypeError, r"state\[1\] must be torch.float64 .* \(got torch.float32 on cpu\)"),
    ],
)
@pytest.mark.parametrize("run", [unroll, chunked_unroll])
def test_a_state_of_another_form_is_refused(run, state, error, said):
    cell, inputs, (h, A) = example()
    with pytest.raises(error, match=said):
        run(cell, inputs, state(h, A))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "3", True])
def test_a_chunk_that_is_no_number_of_steps_is_refused(chunk):
    with pytest.raises(ValueError, match=re.escape(f"chunk must be a whole number of at least 1 (got {chunk!r})")):
        chunked_unroll(*example(), chunk=chunk)


def test_another_cell_is_refused():
    class Other(FastWeightsCell):
        def step(self, projected_t, state):
            h, (_, A) = super().step(projected_t, state)
            return 2 * h, (h, A)

    for cell in (Other(INPUT, HIDDEN), nn.RNN(INPUT, HIDDEN)):
        with pytest.raises(TypeError, match=rf"cell must be a FastWeightsCell \(got {type(cell).__name__}\)"):
            chunked_unroll(cell, torch.zeros(TIME, BATCH, INPUT))
    cell, inputs, _ = example()
    with pytest.raises(TypeError, match=r"inputs must be torch.float64"):
        chunked_unroll(cell, inputs.float())
    with pytest.raises(ValueError, match=r"at least one time step"):
        chunked_unroll(cell, inputs[:0])


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_states_that_are_not_finite_are_reported_with_where_they_began(value, chunk):
    cell, inputs, state = example()
    with torch.no_grad():
        inputs[4, 1] = value
        inputs[5, 2] = value
    with pytest.raises(FloatingPointError, match=r"not finite from step 4 of 7 on \(.*, in 2 of 3 sequences\)"):
        chunked_unroll(cell, inputs, state, chunk=chunk)


def test_what_grows_without_bounds_is_reported_and_what_is_merely_large_is_not():
    cell, inputs, state = example(time=60, layer_norm=False, rate=5.0)
    with pytest.raises(FloatingPointError, match=r"from step \d+ of 60 on .*a smaller rate or a smaller decay"):
        chunked_unroll(cell, inputs, state)
    cell, inputs, _ = example(time=1, dtype=torch.float32, rate=0.0, layer_norm=False)
    with torch.no_grad():
        cell.bias.fill_(1e38)
    outputs, _ = chunked_unroll(cell, inputs)
    assert torch.isfinite(outputs).all()
    assert torch.isinf(outputs.sum())
