"""`fast_unroll` against `unroll`, in every direction that gradients can take, and `linear_scan` against its loop."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import CLOSELY, EXACTLY, all_close, example, parts
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from benchmarks._measure import megabytes
from benchmarks.recurrent import first_attempt
from shared import recurrent
from shared.recurrent import LSTMCell, MinGRUCell, MinLSTMCell, TanhCell, fast_unroll, linear_scan, unroll

BY_HAND = [TanhCell, LSTMCell]
FAST = [*BY_HAND, MinGRUCell, MinLSTMCell]


def halving(kind):
    """A subclass with a step of its own."""

    class Halving(kind):
        def step(self, projected_t, state):
            y_t, state = super().step(projected_t, state)
            return y_t, tuple(one / 2 for one in state) if isinstance(state, tuple) else state / 2

    return Halving


def everything(run, cell, inputs, state, of_outputs=1.0, of_last=1.0):
    """Outputs, last state and the gradients of all that wants one, for a loss that weighs every number differently."""
    outputs, last = run(cell, inputs, state)
    values = (outputs, *parts(last))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in values]
    terms = [(one.sin() * weight).sum() for one, weight in zip(values, weights, strict=True)]
    loss = of_outputs * terms[0] + of_last * sum(terms[1:])
    leaves = [one for one in (inputs, *parts(state), *cell.parameters()) if one.requires_grad]
    return [*values, *torch.autograd.grad(loss, leaves)]


def same_as_unroll(drawn, *terms, run=fast_unroll, **tolerance):
    all_close(everything(run, *drawn, *terms), everything(unroll, *drawn, *terms), **tolerance or CLOSELY)


SIZES = {
    "time": st.integers(1, 40),
    "batch": st.integers(0, 4),
    "sizes": st.tuples(st.integers(1, 4), st.integers(1, 6)),
}


@given(kind=st.sampled_from(FAST), drawn=st.fixed_dictionaries(SIZES))
@settings(max_examples=60, deadline=None)
def test_results_and_gradients_are_those_of_unroll(kind, drawn):
    same_as_unroll(example(kind, **drawn))


@pytest.mark.parametrize("kind", FAST)
def test_gradients_come_through_outputs_alone_and_through_either_last_state_alone(kind):
    cell, inputs, state = drawn = example(kind)
    same_as_unroll(drawn, 1.0, 0.0)
    same_as_unroll(drawn, 0.0, 1.0)
    for i in range(len(parts(state))):
        found = [torch.autograd.grad(parts(run(*drawn)[1])[i].sum(), (inputs, cell.U)) for run in (fast_unroll, unroll)]
        all_close(*found, **CLOSELY)


@pytest.mark.parametrize("kind", FAST)
def test_in_single_precision(kind):
    same_as_unroll(example(kind, torch.float32, time=60, batch=8, sizes=(16, 32)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", FAST)
def test_finite_differences_agree_once_and_twice(kind):
    cell, inputs, state = example(kind, time=3, batch=2, sizes=(1, 2))

    def run(*_):  # the checks change the leaves in place
        outputs, last = fast_unroll(cell, inputs, state)
        return outputs, *parts(last)

    leaves = (inputs, *cell.parameters(), *parts(state))
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("frozen", ["inputs", "U", "W", "b", "state"])
def test_what_wants_no_gradient_gets_none_and_the_rest_is_unchanged(kind, frozen):
    cell, inputs, state = drawn = example(kind)
    for one in {"inputs": [inputs], "state": parts(state)}.get(frozen) or [getattr(cell, frozen)]:
        one.requires_grad_(False)
    same_as_unroll(drawn)


@pytest.mark.parametrize("kind", FAST)
def test_inputs_and_errors_in_any_layout(kind):
    cell, inputs, state = example(kind)
    turned = inputs.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    same_as_unroll((cell, turned, state))
    found = []
    for run in (fast_unroll, unroll):
        outputs, _ = run(cell, inputs.detach()[:1].expand(7, -1, -1))
        found.append(torch.autograd.grad(outputs.sum() + outputs.transpose(0, 2).exp().sum(), list(cell.parameters())))
    all_close(*found, **CLOSELY)


@pytest.mark.parametrize("kind", FAST)
def test_parts_of_a_sequence_in_one_graph_are_the_whole(kind):
    def in_parts(cell, inputs, state):
        first, state = fast_unroll(cell, inputs[:3], state)
        second, state = fast_unroll(cell, inputs[3:], state)
        return torch.cat([first, second]), state

    same_as_unroll(example(kind), run=in_parts)


@pytest.mark.parametrize("kind", FAST)
def test_a_backward_pass_changes_nothing_and_can_be_repeated(kind):
    cell, inputs, state = example(kind)
    outputs, last = fast_unroll(cell, inputs, state)
    values, leaves = (outputs, *parts(last)), (inputs, *parts(state), *cell.parameters())
    before, errors = [one.detach().clone() for one in values], [torch.randn_like(one) for one in values]
    kept = [one.clone() for one in errors]
    first, again = (torch.autograd.grad(values, leaves, errors, retain_graph=True) for _ in range(2))
    all_close((*first, *before, *kept), (*again, *values, *errors), **EXACTLY)
    storages = {one.untyped_storage().data_ptr() for one in values}
    assert len(storages) == len(values)  # a state carried over does not hold the memory of all outputs


@pytest.mark.parametrize(("kind", "states"), [(TanhCell, 1), (LSTMCell, 2)])
def test_only_states_are_kept(kind, states):
    cell = kind(8, 16)
    short, long = (megabytes(lambda n=n: fast_unroll(cell, torch.randn(n, 4, 8))) for n in (100, 300))
    assert long - short == pytest.approx(200 * 4 * (8 + 16 * states) * 4 / 1e6)
    assert long < (1.05 if kind is TanhCell else 0.5) * megabytes(lambda: unroll(cell, torch.randn(300, 4, 8)))


@pytest.mark.parametrize("kind", FAST)
def test_no_graph_where_none_is_wanted(kind):
    cell, inputs, state = example(kind)
    with torch.no_grad():
        (outputs, last), (expected, expected_last) = (run(cell.eval(), inputs, state) for run in (fast_unroll, unroll))
    assert not any(one.requires_grad for one in (outputs, *parts(last)))
    all_close((outputs, *parts(last)), (expected, *parts(expected_last)), **CLOSELY)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap, over an operation of the scan
def test_functional_gradients_agree_and_vmap_says_what_it_lacks(kind):
    cell, inputs, _ = example(kind)
    fast, plain = (grad(lambda x, run=run: run(cell, x)[0].sin().sum()) for run in (fast_unroll, unroll))
    torch.testing.assert_close(fast(inputs.detach()), plain(inputs.detach()), **CLOSELY)
    many = torch.randn(3, *inputs.shape, dtype=inputs.dtype)
    if kind in BY_HAND:
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(fast)(many)
    else:
        torch.testing.assert_close(vmap(fast)(many), vmap(plain)(many), **CLOSELY)


@pytest.mark.parametrize("kind", [*map(halving, FAST), recurrent.PeepholeLSTMCell, recurrent.GRUCell])
def test_any_other_cell_goes_step_by_step(kind):
    same_as_unroll(example(kind), **EXACTLY)


def changed(change):
    return lambda x, state: (x, tuple(map(change, state)) if isinstance(state, tuple) else change(state))


BAD = [lambda x, s: (x[0], s), lambda x, s: (x[:0], s), lambda x, s: (x[..., :1], s), lambda x, s: (x.float(), s)]
BAD += [lambda x, s: (x.tolist(), s), lambda x, s: (x, [s]), changed(lambda s: s[:1]), changed(torch.Tensor.float)]


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gets_the_error_of_unroll(kind, bad):
    cell, inputs, state = example(kind)
    with pytest.raises((TypeError, ValueError)) as expected:
        unroll(cell, *bad(inputs, state))
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        fast_unroll(cell, *bad(inputs, state))


@pytest.mark.parametrize("kind", BY_HAND)
def test_the_first_attempt_of_the_benchmark_computes_the_same(kind):
    same_as_unroll(example(kind), run=first_attempt)


def loop(a, u, state):
    states = []
    for a_t, u_t in zip(a.unbind(0), u.unbind(0), strict=True):
        state = a_t * state + u_t
        states.append(state)
    return torch.stack(states)


def scanned(scan, *given):
    s = scan(*given)
    return s, *torch.autograd.grad((s * torch.linspace(1, 2, s.numel(), dtype=s.dtype).view_as(s)).sum(), given)


def example_scan(time, batch, hidden, dtype=torch.float64):
    generator = torch.Generator().manual_seed(time)
    shapes = ((time, batch, hidden), (time, batch, hidden), (batch, hidden))
    a, u, state = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return [one.requires_grad_() for one in (torch.sigmoid(3 * a), u, state)]


@given(time=st.integers(1, 130), batch=st.integers(1, 3), hidden=st.integers(1, 4), small=st.sampled_from([0, 4096]))
@settings(max_examples=60, deadline=None)
def test_the_scan_is_its_loop(time, batch, hidden, small):
    drawn = example_scan(time, batch, hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent.fast, "SMALL", small)  # one step to a block, or many
        all_close(scanned(linear_scan, *drawn), scanned(loop, *drawn), **CLOSELY)


@pytest.mark.parametrize("share", [0.0, 1.0, 1e-30, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scan_is_stable_over_a_thousand_steps(share, dtype):
    drawn = example_scan(1000, 2, 3, dtype)
    if share is not None:
        drawn[0] = torch.full_like(drawn[0], share).requires_grad_()
    exact = scanned(loop, *(one.detach().double().requires_grad_() for one in drawn))
    for one, other in zip(scanned(linear_scan, *drawn), exact, strict=True):
        assert (one - other).abs().max() <= 50 * torch.finfo(dtype).eps * (1 + other.abs().max())


def test_the_scan_and_finite_differences():
    drawn = example_scan(7, 2, 2)
    assert gradcheck(linear_scan, drawn)
    assert gradgradcheck(linear_scan, drawn)


A, S = torch.rand(5, 2, 3), torch.rand(2, 3)
WRONG = [
    ((A[0], A[0], S), ValueError, "a must have shape (time, batch, hidden) with at least one time step (got (2, 3))"),
    (
        (A[:0], A[:0], S),
        ValueError,
        "a must have shape (time, batch, hidden) with at least one time step (got (0, 2, 3))",
    ),
    ((A, A[:4], S), ValueError, "u must have shape (5, 2, 3) for this a (got (4, 2, 3))"),
    ((A, A, S[:1]), ValueError, "state must have shape (2, 3) for this a (got (1, 3))"),
    ((A.long(), A, S), TypeError, "a must be a tensor of real floating-point numbers (got torch.int64)"),
    ((A, A, 0.0), TypeError, "state must be a tensor of real floating-point numbers (got float)"),
    ((A, A.double(), S), TypeError, "u must be torch.float32 on cpu, like a (got torch.float64 on cpu)"),
]


@pytest.mark.parametrize(("drawn", "error", "text"), WRONG)
def test_the_scan_says_what_it_cannot_use(drawn, error, text):
    with pytest.raises(error, match=re.escape(text)):
        linear_scan(*drawn)
