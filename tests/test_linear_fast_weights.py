"""Linear fast weights against a loop over their formulas, special cases that have exact answers, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.fast_weights import delta_rule, linear_attention

TIME, BATCH, D_K, D_V = 11, 3, 4, 5


def loop(q, k, v, strength=None, decay=1.0, state=None):
    """The formulas as they stand, with A times a matrix for the delta rule; the sum rule without `strength`."""
    alpha, beta = (one if torch.is_tensor(one) else torch.full_like(q[..., 0], one or 0.0) for one in (decay, strength))
    A = v.new_zeros(v.shape[1], v.shape[2], k.shape[2]) if state is None else state
    outputs = []
    for q_t, k_t, v_t, a, b in zip(*(one.unbind(0) for one in (q, k, v, alpha, beta)), strict=True):
        A, b, write = a[:, None, None] * A, b[:, None, None], v_t[:, :, None] * k_t[:, None, :]
        if strength is None:
            A = A + write
        else:
            A = A @ (torch.eye(k.shape[2], dtype=k.dtype) - b * k_t[:, :, None] * k_t[:, None, :]) + b * write
        outputs.append((A @ q_t[:, :, None])[:, :, 0])
    return torch.stack(outputs), A


def drawn(time=TIME, batch=BATCH, d_k=D_K, d_v=D_V, seed=0, dtype=torch.float64):
    """q, k, v, strength, decay, state; keys not much longer than 1, so that the delta rule is tame."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    q, k, v = normal(time, batch, d_k), normal(time, batch, d_k) / d_k**0.5, normal(time, batch, d_v)
    strength, decay = (torch.rand(time, batch, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    return q, k, v, strength, 0.1 + 0.85 * decay, normal(batch, d_v, d_k)


def unit_keys(*shape, seed=0):
    k = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(k, dim=-1)


def both_rules(q, k, v, strength, decay, state, **options):
    """Outputs and states of both rules."""
    return *linear_attention(q, k, v, decay, state, **options), *delta_rule(q, k, v, strength, decay, state, **options)


def both_loops(q, k, v, strength, decay, state):
    return *loop(q, k, v, None, decay, state), *loop(q, k, v, strength, decay, state)


def same(ours, reference, tolerance=1e-10):
    for one, other in zip(ours, reference, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 20), *[st.integers(1, 5)] * 3),
    chunk=st.integers(1, 24),
    numbers=st.tuples(st.floats(0.05, 1.0), st.floats(-0.5, 2.0)),
    per_step=st.tuples(st.booleans(), st.booleans()),
    start=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_sizes_as_the_loop(sizes, chunk, numbers, per_step, start, seed):
    q, k, v, strength, decay, state = drawn(*sizes, seed=seed)
    decay, strength = decay if per_step[0] else numbers[0], strength if per_step[1] else numbers[1]
    given_all = q, k, v, strength, decay, state if start else None
    same(both_rules(*given_all, chunk=chunk), both_loops(*given_all))


@pytest.mark.parametrize("rule", [linear_attention, delta_rule])
def test_without_options_there_is_no_decay_and_the_state_is_zero(rule):
    q, k, v, strength, *_ = drawn(70)
    given_all = (q, k, v) if rule is linear_attention else (q, k, v, strength)
    same(rule(*given_all), loop(*given_all))


def test_two_halves_are_the_whole():
    *series, state = drawn(25)
    for rule, used in ((linear_attention, (0, 1, 2, 4)), (delta_rule, range(5))):
        first, second = ([series[i][part] for i in used] for part in (slice(13), slice(13, None)))
        o_1, half = rule(*first, state, chunk=4)
        o_2, last = rule(*second, half, chunk=4)
        same((torch.cat([o_1, o_2]), last), rule(*(series[i] for i in used), state, chunk=7))


def gradients(function, inputs, **options):
    """Of a sum in which each number of each result has its own weight."""
    inputs = [one.clone().requires_grad_() for one in inputs]
    results = function(*inputs, **options)
    total = sum((torch.linspace(-1, 2, one.numel(), dtype=one.dtype).view_as(one) * one).sum() for one in results)
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_gradients_as_the_loop_has_them(chunk):
    inputs = drawn(30)
    same(gradients(both_rules, inputs, chunk=chunk), gradients(both_loops, inputs))


def test_gradients_at_a_decay_of_one_and_of_almost_nothing():
    q, k, v, strength, _, state = drawn(30)
    decay = torch.ones(30, BATCH, dtype=q.dtype)
    decay[::4] = 1e-30
    inputs = q, k, v, strength, decay, state
    same(gradients(both_rules, inputs, chunk=8), gradients(both_loops, inputs))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives(check):
    inputs = [one.requires_grad_() for one in drawn(5, 2, 2, 2)]
    assert check(lambda *given_all: both_rules(*given_all, chunk=2), inputs)


def test_gradients_from_the_outputs_of_a_batch_do_not_mix():
    q, k, v, strength, decay, state = (one.requires_grad_() for one in drawn())
    delta_rule(q, k, v, strength, decay, state, chunk=4)[0][:, 0].sum().backward()
    for series in (q, k, v, strength, decay):
        assert series.grad[:, 0].abs().min() > 0 or series is q
        assert not series.grad[:, 1:].any()
    assert not state.grad[1:].any()


def test_single_precision():
    inputs = drawn(200, d_k=16, dtype=torch.float32)
    same(both_rules(*inputs), both_loops(*inputs), tolerance=1e-4)
    assert all(one.dtype == torch.float32 for one in both_rules(*inputs))


def test_strong_decay_over_many_steps_neither_overflows_nor_underflows():
    """γ of 1,000 steps is 1e-3000. A step is remembered through its neighbours alone, whatever lies before them."""
    inputs = drawn(1000, dtype=torch.float32)[:4]
    for decay in (1e-3, torch.full((1000, BATCH), 1e-3)):
        same(both_rules(*inputs, decay, None, chunk=100), both_loops(*inputs, decay, None), tolerance=1e-5)
    decay = torch.full((1000, BATCH), 1e-3)
    found = gradients(both_rules, (*inputs, decay, torch.zeros(BATCH, D_V, D_K)), chunk=100)
    assert all(one.isfinite().all() for one in found)


def test_weak_decay_after_a_strong_one_keeps_its_digits():
    q, k, v, _, decay, _ = drawn(64, dtype=torch.float32)
    decay[:32], decay[32:] = 1e-6, 0.999  # the sum of logarithms is −442, of which single precision has four decimals
    exact = loop(*(one.double() for one in (q, k, v)), decay=decay.double())
    same((one.double() for one in linear_attention(q, k, v, decay, chunk=64)), exact, tolerance=3e-6)


def test_the_sum_rule_is_masked_attention():
    q, k, v, _, decay, _ = drawn()
    g = decay.log().cumsum(0)
    t = torch.arange(TIME)
    weights = torch.einsum("ibd,jbd->ijb", q, k) * (g[:, None] - g[None]).exp() * (t[:, None] >= t)[..., None]
    same([linear_attention(q, k, v, decay, chunk=3)[0]], [torch.einsum("ijb,jbd->ibd", weights, v)])


def test_orthonormal_keys_are_recalled_exactly():
    k = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q[:, None]
    v = drawn(8, 1)[2]
    for _, A in (linear_attention(k, k, v, chunk=3), delta_rule(k, k, v, 1.0, chunk=3)):
        same([k @ A.mT], [v])


def test_a_strength_of_zero_writes_nothing():
    q, k, v, _, decay, state = drawn()
    outputs, A = delta_rule(q, k, v, 0.0, 1.0, state, chunk=4)
    same((outputs, A), (torch.einsum("bvk,tbk->tbv", state, q), state), tolerance=1e-14)
    same([delta_rule(q, k, v, 0.0, decay, state, chunk=4)[1]], [decay.prod(0)[:, None, None] * state])


def test_a_strength_of_one_replaces_the_value_of_a_key():
    k, (*_, v, _, _, state) = unit_keys(10, 1, D_K), drawn(10, 1)
    k = torch.cat([k, k])
    outputs, A = delta_rule(k, k, torch.cat([v, 2 - v]), 1.0, 0.9, state, chunk=7)
    same([outputs[10:]], [2 - v])  # whatever has been written, with this key or another
    same([A @ k[-1, 0]], [2 - v[-1]])


def test_strength_tells_how_far_a_value_moves():
    k, (*_, v, strength, _, state) = unit_keys(1, 1, D_K), drawn(1, 1)
    before = state @ k[0, 0]
    same([delta_rule(k, k, v, strength, 1.0, state)[0][0]], [before + strength[0] * (v[0] - before)])


def test_the_inputs_are_left_as_they_were():
    inputs = drawn()
    copies = [one.clone() for one in inputs]
    both_rules(*inputs, chunk=4)
    assert all(torch.equal(one, copy) for one, copy in zip(inputs, copies, strict=True))


def test_memory_holds_one_state_a_chunk():
    kept = []
    q, k, v, *_ = drawn(512, 1, 32, 32)

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        delta_rule(q.requires_grad_(), k, v, 0.5, 0.9, chunk=32)
    numbers = sum({one.data_ptr(): one.nbytes() for one in kept}.values()) / 8
    assert numbers < 30 * 512 * 32  # an A a step would be 32 times 512 · 32


NAN, LONG = float("nan"), torch.ones(TIME, BATCH, dtype=torch.int64)
BAD = [
    ({"q": [[1.0]]}, TypeError, "q must be a tensor of real floating-point numbers .got list"),
    ({"k": torch.ones(TIME, BATCH, D_K, dtype=torch.int64)}, TypeError, "k must be a tensor of real"),
    ({"v": torch.ones(TIME, BATCH, D_V)}, TypeError, r"v must be torch.float64 on cpu, like q .got torch.float32"),
    ({"state": torch.ones(BATCH, D_V, D_K)}, TypeError, "state must be torch.float64"),
    ({"q": torch.ones(TIME, D_K).double()}, ValueError, "q must have shape .time, batch, d_k. with at least one"),
    ({"q": torch.ones(0, BATCH, D_K).double()}, ValueError, r"at least one time step .got .0, 3, 4."),
    ({"k": torch.ones(TIME, 1, D_K).double()}, ValueError, r"k must have shape .11, 3, 4., as q has"),
    ({"v": torch.ones(TIME, BATCH).double()}, ValueError, "v must have shape"),
    ({"v": torch.ones(TIME, 1, D_V).double()}, ValueError, "v must have shape"),
    ({"state": torch.ones(1, D_V, D_K).double()}, ValueError, r"state must have shape .3, 5, 4."),
    ({"decay": 0.0}, ValueError, "decay must be above 0 and at most 1 .got 0.0"),
    ({"decay": 1.01}, ValueError, "decay must be above 0 and at most 1"),
    ({"decay": 1 + 1e-12}, ValueError, "decay must be above 0 and at most 1"),
    ({"decay": NAN}, ValueError, "decay must be above 0 and at most 1 .got nan"),
    ({"decay": torch.full((TIME, BATCH), 1.5).double()}, ValueError, "decay must be above 0 and at most 1 .got 1.5"),
    ({"decay": torch.full((TIME, BATCH), NAN).double()}, ValueError, "decay must be above 0"),
    ({"decay": torch.ones(TIME, 1).double()}, ValueError, r"decay must have shape .11, 3., as q has"),
    ({"decay": torch.ones(TIME, BATCH)}, TypeError, "decay must be torch.float64"),
    ({"decay": "0.9"}, TypeError, "decay must be a number or a tensor"),
    ({"decay": True}, TypeError, "decay must be a number or a tensor"),
    ({"strength": NAN}, ValueError, "strength must be finite .got nan"),
    ({"strength": torch.full((TIME, BATCH), -float("inf")).double()}, ValueError, "strength must be finite .got -inf"),
    ({"strength": torch.ones(BATCH).double()}, ValueError, "strength must have shape"),
    ({"strength": LONG}, TypeError, "strength must be a tensor of real"),
    ({"strength": None}, TypeError, "strength must be a number or a tensor .time, batch. .got NoneType"),
    ({"chunk": 0}, ValueError, "chunk must be a whole number of at least 1 .got 0"),
    ({"chunk": 2.0}, ValueError, "chunk must be a whole number"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input(changed, error, message):
    names = ("q", "k", "v", "strength", "decay", "state")
    arguments = dict(zip(names, drawn(), strict=True)) | changed
    with pytest.raises(error, match=message):
        delta_rule(**arguments)
    if "strength" not in changed:
        arguments.pop("strength")
        with pytest.raises(error, match=message):
            linear_attention(**arguments)
