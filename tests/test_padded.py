"""Padded batches against each sequence alone, torch's PackedSequence and finite differences, with anything at the padding."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import CLOSELY, EXACTLY, PairCell, all_close, parts
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.padded import packed_nn
from shared.recurrent import (
    GRUCell,
    LSTMCell,
    MinGRUCell,
    PeepholeLSTMCell,
    TanhCell,
    last_outputs,
    length_mask,
    masked_mean,
    padded,
    reverse_padded,
    run_padded,
    unroll,
)

INPUT, HIDDEN = 3, 4
MODULES = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
CELLS = [TanhCell, LSTMCell, GRUCell, MinGRUCell, PeepholeLSTMCell, PairCell]
DENSE, SIDES = ("padded", "blocks", None), ("right", "left")
LENGTHS = st.lists(st.integers(1, 8), min_size=1, max_size=6)
TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


@pytest.fixture(scope="module", autouse=True)
def cheap_calls():
    """As much as three steps of a sequence each, so that the rule (method None) finds blocks with and without padding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padded, "CALL", 3 * HIDDEN)
        assert padded._cuts(None, torch.tensor([4, 7, 1, 4, 6, 2]), HIDDEN) == [2, 4, 7]
        yield


def example(kind, lengths=(4, 7, 1, 4, 6, 2), dtype=torch.float64, layers=2, bidirectional=True, bias=True, seed=0):
    """A module or a cell, a sequence of each length, and a state, all drawn, and all of which want gradients."""
    torch.manual_seed(seed)
    if kind in MODULES:
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
        rnn = MODULES[kind](INPUT, HIDDEN, **options).to(dtype)
        state = torch.randn(layers * (1 + bidirectional), len(lengths), HIDDEN, dtype=dtype)
        state = (state, torch.randn_like(state)) if kind == "LSTM" else state
    else:
        rnn = kind(INPUT, HIDDEN).to(dtype)
        state = rnn.initial_state(len(lengths))
        state = tuple(map(torch.randn_like, state)) if isinstance(state, tuple) else torch.randn_like(state)
    sequences = [torch.randn(n, INPUT, dtype=dtype, requires_grad=True) for n in lengths]
    for part in parts(state):
        part.requires_grad_()
    return rnn, sequences, state


def everything(real_outputs, last, leaves):
    """Outputs at real steps, last states and the gradients of a loss that weighs every number of them differently."""
    values, generator = (real_outputs, *parts(last)), torch.Generator().manual_seed(1)
    weights = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in values]
    loss = sum((one.sin() * weight).sum() for one, weight in zip(values, weights, strict=True))
    return [*values, *torch.autograd.grad(loss, leaves)]


def laid_out(sequences, time, side="right", content=0.0):
    """(time, batch, input), with anything at the padding."""
    batch = torch.full((time, len(sequences), INPUT), content, dtype=sequences[0].dtype)
    for b, one in enumerate(sequences):
        batch[slice(len(one)) if side == "right" else slice(time - len(one), None), b] = one.detach()
    return batch


def together(rnn, sequences, state, extra=0, side="right", content=0.0, **options):
    """Everything by run_padded, in the order of the sequences."""
    lengths = [len(one) for one in sequences]
    inputs = laid_out(sequences, max(lengths) + extra, side, content).requires_grad_()
    real = length_mask(lengths, len(inputs), side)
    outputs, last = run_padded(rnn, inputs, lengths, state, padding_side=side, **options)
    assert not outputs[~real].any()
    leaves = () if state is None else parts(state)
    found = everything(outputs.transpose(0, 1)[real.T], last, (*leaves, *rnn.parameters(), inputs))
    of_inputs = found.pop()
    assert not of_inputs[~real].any()
    return [*found, of_inputs.transpose(0, 1)[real.T]]


def alone(rnn, sequences, state, run=None):
    """Everything by one run for each sequence."""
    among = 1 if run is None else 0
    outputs, lasts = [], []
    for b, one in enumerate(sequences):
        own = tuple(part.narrow(among, b, 1) for part in parts(state))
        own = own if isinstance(state, tuple) else own[0]
        y, last = rnn(one[:, None], own) if run is None else run(rnn, one[:, None], own)
        outputs.append(y[:, 0])
        lasts.append(parts(last))
    last = tuple(torch.cat(kind, among) for kind in zip(*lasts, strict=True))
    found = everything(torch.cat(outputs), last, (*parts(state), *rnn.parameters(), *sequences))
    return [*found[: -len(sequences)], torch.cat(found[-len(sequences) :])]


def by_torch(rnn, sequences, state):
    """Everything by PackedSequence."""
    lengths = torch.tensor([len(one) for one in sequences])
    packed = pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=False)
    outputs, last = rnn(packed, state)
    outputs = pad_packed_sequence(outputs, batch_first=True)[0]
    leaves = (*(() if state is None else parts(state)), *rnn.parameters(), *sequences)
    found = everything(outputs[length_mask(lengths).T], last, leaves)
    return [*found[: -len(sequences)], torch.cat(found[-len(sequences) :])]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", MODULES)
@given(
    lengths=LENGTHS, method=st.sampled_from([*DENSE, "packed"]), side=st.sampled_from(SIDES), extra=st.integers(0, 3),
    layers=st.integers(1, 2), bidirectional=st.booleans(), bias=st.booleans(), from_zeros=st.booleans(),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_modules_give_what_packed_sequences_do(kind, dtype, lengths, method, side, extra, from_zeros, **options):
    rnn, sequences, state = example(kind, lengths, dtype, **options)
    state = None if from_zeros else state
    found = together(rnn, sequences, state, extra, side, math.nan, method=method)
    all_close(found, by_torch(rnn, sequences, state), **TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", MODULES)
def test_every_form_of_module_gives_what_each_sequence_does_alone(kind, layers, bidirectional, bias):
    drawn = example(kind, layers=layers, bidirectional=bidirectional, bias=bias)
    for method in (*DENSE, "packed"):
        all_close(together(*drawn, method=method), alone(*drawn), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", CELLS)
@given(lengths=LENGTHS, method=st.sampled_from(DENSE), side=st.sampled_from(SIDES), extra=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_cells_give_what_each_sequence_does_alone(kind, lengths, method, side, extra):
    drawn = example(kind, lengths)
    all_close(together(*drawn, extra, side, math.nan, method=method), alone(*drawn, unroll), **CLOSELY)


@pytest.mark.parametrize("method", [*DENSE, "packed"])
@pytest.mark.parametrize("kind", [*MODULES, TanhCell, LSTMCell])
def test_amount_side_and_content_of_the_padding_change_nothing(kind, method):
    if kind not in MODULES and method == "packed":
        return
    drawn = example(kind)
    plain = together(*drawn, method=method)
    for extra, side, content in (
        (0, "right", math.nan),
        (5, "right", math.inf),
        (0, "left", -1e300),
        (5, "left", math.nan),
    ):
        all_close(together(*drawn, extra, side, content, method=method), plain, **EXACTLY)


@pytest.mark.parametrize("method", [*DENSE, "packed"])
@pytest.mark.parametrize("kind", MODULES)
def test_errors_sent_to_the_padding_lead_nowhere(kind, method):
    rnn, sequences, _ = example(kind)
    lengths = [len(one) for one in sequences]
    inputs = laid_out(sequences, 9).requires_grad_()
    errors = torch.ones(9, len(lengths), 2 * HIDDEN, dtype=inputs.dtype)
    found = []
    for content in (0.0, math.nan):
        outputs, _ = run_padded(rnn, inputs, lengths, method=method)
        errors[~length_mask(lengths, 9)] = content
        found.append(torch.autograd.grad(outputs, (inputs, *rnn.parameters()), errors))
    all_close(*found, **EXACTLY)


@pytest.mark.parametrize("kind", [*MODULES, LSTMCell])
def test_results_are_in_the_order_of_the_caller(kind):
    rnn, sequences, state = example(kind)
    lengths, order = torch.tensor([len(one) for one in sequences]), torch.tensor([3, 0, 5, 1, 4, 2])
    inputs, among = laid_out(sequences, 7), 1 if kind in MODULES else 0
    for method in DENSE:
        outputs, last = run_padded(rnn, inputs, lengths, state, method=method)
        moved = tuple(one.index_select(among, order) for one in parts(state))
        moved = moved if isinstance(state, tuple) else moved[0]
        again, again_last = run_padded(rnn, inputs[:, order], lengths[order], moved, method=method)
        expected = [outputs[:, order], *(one.index_select(among, order) for one in parts(last))]
        all_close([again, *parts(again_last)], expected, **TOLERANCE[torch.float64])
        assert type(last) is type(state)


def test_the_state_may_stay_frozen_for_a_thousand_steps_against_any_bias():
    rnn, *_ = drawn = example("LSTM", (1000, 1, 3), torch.float32)
    for bias in (3.0, 30.0):
        with torch.no_grad():
            for name, one in rnn.named_parameters():
                if name.startswith("bias"):
                    one.copy_(torch.tensor([bias, -bias, bias, bias]).repeat_interleave(HIDDEN))
        found, expected = together(*drawn, method="padded"), together(*drawn, method="blocks")
        all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_relu_network_does_not_overflow_at_the_padding():
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False)
    nn.init.constant_(rnn.weight_ih_l0, 1.0)
    nn.init.constant_(rnn.weight_hh_l0, 3.0)
    inputs = torch.full((500, 2, 1), -1.0)
    inputs[:2, 0] = 1.0  # would be 3^498 at the end of the padding
    for method in (*DENSE, "packed"):
        rnn.zero_grad()
        outputs, last = run_padded(rnn, inputs, [2, 500], method=method)
        outputs.sum().backward()
        assert last.flatten().tolist() == [4.0, 0.0]
        assert [one.grad.item() for one in (rnn.weight_ih_l0, rnn.weight_hh_l0)] == [5.0, 1.0]


@pytest.mark.parametrize(("kind", "method"), [("LSTM", "padded"), ("LSTM", "blocks"), (LSTMCell, "blocks")])
def test_finite_differences_agree(kind, method):
    rnn, sequences, state = example(kind, (3, 1), layers=1, bidirectional=False)
    inputs = laid_out(sequences, 3, "left").requires_grad_()

    def run(*_):  # the check changes the leaves in place
        outputs, last = run_padded(rnn, inputs, [3, 1], state, padding_side="left", method=method)
        return outputs, *parts(last)

    assert gradcheck(run, (inputs, *parts(state), *rnn.parameters()))


@pytest.mark.parametrize("method", DENSE)
def test_dropout_is_between_layers_and_in_training_alone(method):
    rnn, sequences, state = example("LSTM", layers=3)
    lengths, inputs = [len(one) for one in sequences], laid_out(sequences, 7)
    rnn.dropout = 1.0  # of the first two layers nothing is left, for PackedSequence and here
    all_close(
        together(rnn, sequences, state, method=method), by_torch(rnn, sequences, state), **TOLERANCE[torch.float64]
    )

    def outputs(seed):
        torch.manual_seed(seed)
        return run_padded(rnn, inputs, lengths, state, method=method)[0]

    rnn.dropout = 0.5
    assert torch.equal(outputs(0), outputs(0))
    assert not torch.allclose(outputs(0), outputs(1))
    rnn.eval()
    assert torch.equal(outputs(0), outputs(1))
    torch.testing.assert_close(outputs(0), run_padded(rnn, inputs, lengths, state, method="packed")[0])


@pytest.mark.parametrize("method", DENSE)
def test_an_lstm_runs_in_the_kernel_of_torch(method):
    """In single precision on a CPU, where there is one that is several times as fast."""

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.overloadpacket.__name__)
            return function(*args, **kwargs or {})

    rnn, sequences, _ = example("LSTM", dtype=torch.float32)
    inputs, found = laid_out(sequences, 7), []
    for run in (lambda: rnn(inputs), lambda: run_padded(rnn, inputs, [4, 7, 1, 4, 6, 2], method=method)):
        names = set()
        with Called():
            run()
        found.append({name for name in names if "rnn" in name or name in ("sigmoid", "sigmoid_", "tanh")})
    assert found[0] == found[1]


def test_no_graph_where_none_is_wanted():
    rnn, sequences, _ = example("GRU")
    with torch.no_grad():
        outputs, last = run_padded(rnn, laid_out(sequences, 7), [4, 7, 1, 4, 6, 2])
    assert not outputs.requires_grad
    assert not last.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", MODULES)
def test_on_a_gpu(kind):
    rnn, sequences, state = example(kind)
    expected = run_padded(rnn, laid_out(sequences, 9), [4, 7, 1, 4, 6, 2], state)
    lengths = torch.tensor([4, 7, 1, 4, 6, 2], device="cuda")
    state = tuple(one.cuda() for one in state) if isinstance(state, tuple) else state.cuda()
    for method in (*DENSE, "packed"):
        outputs, last = run_padded(rnn.cuda(), laid_out(sequences, 9).cuda(), lengths, state, method=method)
        all_close([one.cpu() for one in (outputs, *parts(last))], [expected[0], *parts(expected[1])], **CLOSELY)


def cost(cuts, lengths, call):
    """Of blocks that end at the cuts: calls, and steps of padding up to them."""
    return call * len(cuts) + sum(min(cut for cut in cuts if cut >= n) - n for n in lengths)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), call=st.floats(0.5, 60))
@settings(max_examples=60, deadline=None)
def test_blocks_end_where_it_costs_least(lengths, call):
    cuts = padded._cuts(None, torch.tensor(lengths), padded.CALL / call)
    assert cuts == sorted(set(cuts))
    ends = sorted(set(lengths))
    choices = [(*one, ends[-1]) for size in range(len(ends)) for one in itertools.combinations(ends[:-1], size)]
    assert cost(cuts, lengths, call) == pytest.approx(min(cost(one, lengths, call) for one in choices))


def test_the_rule_goes_from_one_block_to_all():
    lengths = torch.tensor([3, 40, 41, 300, 1000, 1000])
    cuts = [padded._cuts(None, lengths, padded.CALL / call) for call in (20_000, 300, 0.9)]
    assert cuts == [[1000], [41, 300, 1000], [3, 40, 41, 300, 1000]]
    assert padded._cuts("padded", lengths, 64) == padded._cuts("packed", lengths, 64) == [1000]
    assert padded._cuts("blocks", lengths, 64) == cuts[-1]
    assert padded._cuts(None, torch.tensor([7, 7]), 64) == [7]


@pytest.mark.parametrize(("call", "same_as"), [(0, "blocks"), (10**9, "padded")])
def test_the_rule_is_what_runs(call, same_as, monkeypatch):
    drawn = example("LSTM")
    monkeypatch.setattr(padded, "CALL", call)
    all_close(together(*drawn), together(*drawn, method=same_as), **EXACTLY)
    cell = example(LSTMCell)  # always in blocks
    all_close(together(*cell), together(*cell, method="blocks"), **EXACTLY)


@given(lengths=LENGTHS, side=st.sampled_from(SIDES), extra=st.integers(0, 3), features=st.sampled_from([(), (2,)]))
@settings(max_examples=60, deadline=None)
def test_masks_ends_and_reversal_are_those_of_loops(lengths, side, extra, features):
    time, batch = max(lengths) + extra, len(lengths)
    values = torch.arange(time * batch * math.prod(features)).view(time, batch, *features)
    mask, reverse, last = torch.zeros(time, batch, dtype=torch.bool), values.clone(), []
    for b, n in enumerate(lengths):
        start = 0 if side == "right" else time - n
        mask[start : start + n, b] = True
        reverse[start : start + n, b] = values[start : start + n, b].flip(0)
        last.append(values[start + n - 1, b])
    assert torch.equal(length_mask(lengths, time, side), mask)
    assert torch.equal(
        length_mask(torch.tensor(lengths)), mask[mask.any(1)] if side == "right" else length_mask(lengths)
    )
    assert torch.equal(reverse_padded(values, lengths, side), reverse)
    assert torch.equal(reverse_padded(reverse, torch.tensor(lengths, dtype=torch.uint8), side), values)
    assert torch.equal(last_outputs(values, lengths, side), torch.stack(last))


def test_gradients_come_back_to_where_the_values_were():
    values = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    for side in SIDES:
        assert gradcheck(lambda one, side=side: reverse_padded(one, [2, 5, 1], side), values)
        assert gradcheck(lambda one, side=side: last_outputs(one, [2, 5, 1], side), values)


@pytest.mark.parametrize("content", [math.nan, math.inf, 0.0])
def test_a_masked_mean_is_of_real_steps_alone(content):
    values = torch.tensor([[1.0, 2.0], [6.0, content]], requires_grad=True)
    mean = masked_mean(values, length_mask([2, 1]))
    mean.backward()
    assert mean.item() == 3
    torch.testing.assert_close(values.grad, torch.tensor([[1, 1], [1, 0]]) / 3)


def test_one_loss_for_any_padding():
    """The whole way, from inputs to the gradient of a mean over real steps."""
    rnn, sequences, _ = example("GRU")
    lengths, found = [len(one) for one in sequences], []
    for extra, side, content in ((0, "right", 0.0), (4, "left", math.nan)):
        outputs, _ = run_padded(rnn, laid_out(sequences, 7 + extra, side, content), lengths, padding_side=side)
        loss = masked_mean(outputs.sin().mean(-1), length_mask(lengths, 7 + extra, side))
        found.append([loss, *torch.autograd.grad(loss, list(rnn.parameters()))])
    all_close(*found, **TOLERANCE[torch.float64])


X = torch.zeros(5, 2, INPUT)
GRU, S = nn.GRU(INPUT, HIDDEN), torch.zeros(1, 2, HIDDEN)


class Doubled(nn.GRU):
    def forward(self, *given):
        return super().forward(*given)


def run(lengths=(5, 5), rnn=GRU, inputs=X, **options):
    return lambda: run_padded(rnn, inputs, lengths, **options)


STEPS = "at least 1 and at most 5, the number of time steps"
LISTED = "lengths must be whole numbers, in a list or a tensor (batch,) (got"
WRONG_VALUES = [
    (run([5, 0]), f"lengths must be {STEPS} (got 0 for sequence 1)"),
    (run([-2, 5]), f"lengths must be {STEPS} (got -2 for sequence 0)"),
    (run(torch.tensor([5, 6])), f"lengths must be {STEPS} (got 6 for sequence 1)"),
    (run([5]), "lengths must be one for each of the 2 sequences (got 1)"),
    (run([5], inputs=X[:, :0]), "lengths must be at least one (got 1)"),
    (run(inputs=X[0]), "inputs must have shape (time, batch, 3)"),
    (run(state=S[0]), "state must have shape (1, 2, 4) for these inputs (got (2, 4))"),
    (run(padding_side="both"), "padding_side must be 'right' or 'left' (got 'both')"),
    (run(method="dense"), "method must be None or one of padded, blocks, packed for this rnn (got 'dense')"),
    (
        run(rnn=TanhCell(INPUT, HIDDEN), method="packed"),
        "method must be None or one of padded, blocks for this rnn (got 'packed')",
    ),
    (
        run(rnn=nn.GRU(INPUT, HIDDEN, batch_first=True)),
        "batch_first of rnn must be False (got True): inputs are (time, batch, input), so transpose them",
    ),
    (run(rnn=nn.LSTM(INPUT, HIDDEN, proj_size=2)), "proj_size of rnn must be 0 (got 2): h must have hidden_size units"),
    (lambda: length_mask([]), "lengths must be at least one (got 0)"),
    (lambda: length_mask([2, 0]), "lengths must be at least 1 (got 0 for sequence 1)"),
    (lambda: length_mask([2, 3], 2), "lengths must be at least 1 and at most 2, the number of time steps (got 3"),
    (lambda: length_mask([2], 0), "time must be a whole number of at least 1 (got 0)"),
    (lambda: length_mask([2], padding_side=None), "padding_side must be 'right' or 'left' (got None)"),
    (lambda: reverse_padded(X, [1, 6]), f"lengths must be {STEPS} (got 6 for sequence 1)"),
    (lambda: reverse_padded(X[:0], [1, 1]), "lengths must be at least 1 and at most 0"),
    (lambda: reverse_padded(X[0, 0], [1]), "values must have shape (time, batch, …) (got (3,))"),
    (lambda: last_outputs(X, [1, 1], "top"), "padding_side must be 'right' or 'left' (got 'top')"),
    (lambda: masked_mean(X, X[0] == 0), "mask must have shape (5, 2, 3), like values (got (2, 3))"),
    (lambda: masked_mean(X, X == 1), "mask must be True somewhere (got False everywhere)"),
]
WRONG_TYPES = [
    (run([5.0, 1]), f"{LISTED} [5.0, 1])"),
    (run([True, 1]), f"{LISTED} [True, 1])"),
    (run(5), f"{LISTED} 5)"),
    (run(torch.ones(2)), f"{LISTED} torch.float32 of shape (2,))"),
    (run(torch.ones(2, dtype=torch.bool)), f"{LISTED} torch.bool of shape (2,))"),
    (run(torch.ones(1, 2).long()), f"{LISTED} torch.int64 of shape (1, 2))"),
    (run(state=(S, S)), "state must be a tensor"),
    (run(inputs=X.double()), "inputs must be torch.float32 on cpu"),
    (run(rnn=nn.Linear(3, 3)), "rnn must be a Cell, or a torch.nn.RNN, GRU or LSTM with the forward it has there (got Linear)"),
    (run(rnn=Doubled(INPUT, HIDDEN)), "with the forward it has there (got Doubled)"),
    (lambda: last_outputs([1], [1]), "outputs must be a tensor (got [1])"),
    (lambda: masked_mean(X, X), "mask must be a tensor of torch.bool (got torch.float32 of shape (5, 2, 3))"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), [*WRONG_VALUES, *WRONG_TYPES])
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError if (call, text) in WRONG_VALUES else TypeError, match=re.escape(text)):
        call()


def test_the_baseline_of_the_benchmark_computes_the_same():
    rnn, sequences, _ = example("LSTM")
    inputs, lengths = laid_out(sequences, 9), torch.tensor([4, 7, 1, 4, 6, 2])
    (outputs, last), (expected, expected_last) = (run(rnn, inputs, lengths) for run in (run_padded, packed_nn))
    all_close((outputs, *last), (expected, *expected_last), **TOLERANCE[torch.float64])
