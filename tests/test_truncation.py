"""Truncated backpropagation against brute force: every window run again from its stored state, and autograd beside it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import FORMS, all_close, parts
from torch import nn

from benchmarks import truncation
from shared.recurrent import Cell, TanhCell, unroll
from shared.truncation import truncated_backward

INPUT, HIDDEN = 3, 5
CLOSELY = {"rtol": 1e-10, "atol": 1e-12}


class LearntStart(TanhCell):
    """The first state is a parameter."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.h0 = nn.Parameter(torch.randn(hidden_size))

    def initial_state(self, batch_size):
        return self.h0.expand(batch_size, -1)


class ResidualCell(TanhCell):
    """A step of its own, which is not that of the cell it is made from."""

    def step(self, projected_t, state):
        h, _ = super().step(projected_t, state)
        return h, h + 0.5 * state


class DelayCell(Cell):
    """A state that is handed on unchanged, an output before the step, and matrices as states."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.w = nn.Parameter(torch.randn(input_size))

    def initial_state(self, batch_size):
        zeros = self.w.new_zeros(batch_size, self.input_size, 2)
        return zeros, zeros

    def step(self, x_t, state):
        old, older = state
        return (older * self.w[:, None]).sum(-1), (torch.stack([x_t * self.w, x_t.sin()], dim=-1) + 0.5 * older, old)


def two_layers(kind, **options):
    return lambda input_size, hidden_size: kind(input_size, hidden_size, num_layers=2, **options)


KINDS = {
    **{kind.__name__: kind for kind in [*FORMS, LearntStart, ResidualCell, DelayCell]},
    "RNN": nn.RNN,
    "RNN relu without bias": lambda *sizes: nn.RNN(*sizes, nonlinearity="relu", bias=False),
    "GRU": nn.GRU,
    "GRU without bias": lambda *sizes: nn.GRU(*sizes, bias=False),
    "LSTM": nn.LSTM,
    "RNN of two layers": two_layers(nn.RNN),
    "GRU of two layers": two_layers(nn.GRU),
    "LSTM of two layers": two_layers(nn.LSTM),
    "LSTM of two layers without bias": two_layers(nn.LSTM, bias=False),
}
all_kinds = pytest.mark.parametrize("kind", KINDS)


def example(kind, time=7, batch=2, dtype=torch.float64, seed=0):
    """A cell, a readout, inputs and a drawn state."""
    torch.manual_seed(seed)
    cell = KINDS[kind](INPUT, HIDDEN).to(dtype)
    inputs = torch.randn(time, batch, INPUT, dtype=dtype, requires_grad=True)
    outputs, state = run(cell, inputs[:1])
    readout = nn.Linear(outputs.shape[-1], 2).to(dtype)
    drawn = tuple(torch.randn_like(one) for one in parts(state))
    return cell, readout, inputs, drawn if isinstance(state, tuple) else drawn[0]


def run(cell, inputs, state=None):
    return unroll(cell, inputs, state) if isinstance(cell, Cell) else cell(inputs, state)


def detached(state):
    return tuple(one.detach() for one in state) if isinstance(state, tuple) else state.detach()


def through(readout):
    """A loss with a weight of its own for each step."""

    def loss_of(outputs):
        weights = torch.arange(1.0, len(outputs) + 1, dtype=outputs.dtype)
        return (weights[:, None, None] * readout(outputs).square()).mean()

    return loss_of


def forward(cell, inputs, state):
    """The outputs, and the states before each step and after the last; the first may be None, for the cell's own."""
    states, outputs = [state], []
    with torch.no_grad():
        for x_t in inputs:
            y_t, state = run(cell, x_t[None], states[-1])
            outputs.append(y_t[0])
            states.append(state)
    return torch.stack(outputs), states


def brute_force(cell, inputs, loss_of, state=None, *, depth, stride=1):
    """The plainest way: a window at a time, each run again from the stored state at its beginning."""
    outputs, states = forward(cell, inputs, state)
    loss = loss_of(outputs)
    if loss.requires_grad:
        loss.backward()  # for what loss_of reads
    for end in range(stride, len(inputs) + stride, stride):
        block, begin = slice(end - stride, end), max(0, end - depth)
        redone = run(cell, inputs[begin:end], states[begin])[0][block.start - begin :]
        attached = torch.cat([outputs[: block.start], redone, outputs[block.stop :]])
        redone.backward(torch.autograd.grad(loss_of(attached), attached)[0][block])
    return loss.detach(), states[-1]


def brute_norms(cell, inputs, loss_of, state, depth):
    outputs, states = forward(cell, inputs, state)
    errors = torch.autograd.grad(loss_of(outputs.requires_grad_()), outputs)[0]
    norms = [(errors**2).sum((1, 2)).mean().sqrt()]
    for j in range(1, depth):
        squares = []
        for t in range(len(inputs) - j):
            leaf = tuple(one.clone().requires_grad_() for one in parts(states[t + 1]))
            redone, _ = run(cell, inputs[t + 1 : t + j + 1], leaf if isinstance(states[t + 1], tuple) else leaf[0])
            found = torch.autograd.grad(redone[-1], leaf, errors[t + j], materialize_grads=True)
            squares.append(sum((one**2).sum() for one in found))
        norms.append(torch.stack(squares).mean().sqrt())
    return torch.stack(norms)


def gradients(method, cell, readout, inputs, *rest, **options):
    """What `method` returns, and the gradients that it leaves in the cell, the readout and the inputs."""
    leaves = [*cell.parameters(), *readout.parameters(), inputs]
    for leaf in leaves:
        leaf.grad = None
    result = method(cell, inputs, through(readout), *rest, **options)
    return result, [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]


def compare(kind, state=None, *, time=7, batch=2, seed=0, **options):
    cell, readout, inputs, drawn = example(kind, time, batch, seed=seed)
    start = (drawn,) if state == "drawn" else ()
    found, ours = gradients(truncated_backward, cell, readout, inputs, *start, **options)
    expected, theirs = gradients(brute_force, cell, readout, inputs, *start, **options)
    all_close(ours, theirs, **CLOSELY)
    all_close([found.loss, *parts(found.state)], [expected[0], *parts(expected[1])], **CLOSELY)
    assert isinstance(found.state, tuple) == isinstance(expected[1], tuple)
    assert not any(one.requires_grad for one in (found.loss, *parts(found.state)))
    if options.get("stride", 1) > 1 or options["depth"] >= time:
        assert found.norms is None
    else:
        norms = brute_norms(cell, inputs, through(readout), *(start or (None,)), options["depth"])
        torch.testing.assert_close(found.norms, norms, **CLOSELY)


@all_kinds
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_every_style_is_brute_force(kind, data):
    time = data.draw(st.integers(1, 8), "time")
    depth = data.draw(st.integers(1, 10), "depth")
    compare(
        kind,
        data.draw(st.sampled_from([None, "drawn"]), "state"),
        time=time,
        batch=data.draw(st.integers(1, 3), "batch"),
        depth=depth,
        stride=data.draw(st.integers(1, depth), "stride"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )


@all_kinds
@pytest.mark.parametrize(
    ("depth", "stride"), [(1, 1), (3, 1), (4, 3), (5, 2), (6, 1), (3, 3), (7, 1), (9, 4), (20, 20)]
)
def test_chosen_styles_are_brute_force(kind, depth, stride):
    compare(kind, "drawn", depth=depth, stride=stride)
    compare(kind, depth=depth, stride=stride)


@all_kinds
@pytest.mark.parametrize(("depth", "stride"), [(7, 1), (8, 1), (7, 7), (8, 2), (100, 3)])
def test_a_window_over_the_whole_sequence_is_full_backpropagation(kind, depth, stride):
    cell, readout, inputs, state = example(kind)

    def full(cell, inputs, loss_of, state):
        loss_of(run(cell, inputs, state)[0]).backward()

    ours = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride)[1]
    all_close(ours, gradients(full, cell, readout, inputs, state)[1], **CLOSELY)


@all_kinds
def test_depth_one_is_no_recurrence(kind):
    cell, readout, inputs, state = example(kind)

    def each_step_alone(cell, inputs, loss_of, state):
        outputs = []
        for x_t in inputs:
            y_t, state = run(cell, x_t[None], detached(state))
            outputs.append(y_t[0])
        loss_of(torch.stack(outputs)).backward()

    ours = gradients(truncated_backward, cell, readout, inputs, state, depth=1)[1]
    all_close(ours, gradients(each_step_alone, cell, readout, inputs, state)[1], **CLOSELY)


@all_kinds
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_chunks_are_detached_states(kind, depth):
    cell, readout, inputs, state = example(kind)

    def chunks(cell, inputs, loss_of, state):
        outputs = []
        for t in range(0, len(inputs), depth):
            some, state = run(cell, inputs[t : t + depth], detached(state))
            outputs.append(some)
        loss_of(torch.cat(outputs)).backward()

    ours = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=depth)[1]
    all_close(ours, gradients(chunks, cell, readout, inputs, state)[1], **CLOSELY)


@all_kinds
@pytest.mark.parametrize(("depth", "stride"), [(4, 1), (5, 3), (4, 4)])
def test_float32(kind, depth, stride):
    cell, readout, inputs, state = example(kind, time=10, dtype=torch.float32)
    ours = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride)[1]
    theirs = gradients(brute_force, cell, readout, inputs, state, depth=depth, stride=stride)[1]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * max(1.0, float(other.abs().max())))


class PowerCell(Cell):
    """h_t = w h_{t−1}, whatever the input."""

    def __init__(self, w, h0):
        super().__init__(1, 1)
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.h0 = h0

    def initial_state(self, batch_size):
        return self.w.new_full((batch_size, 1), self.h0)

    def step(self, x_t, state):
        h = self.w * state
        return h, h


def test_a_widely_copied_recipe_is_wrong():
    """It keeps each step's graph and sends an error from graph to graph, but adds to the states' old gradients."""
    cell, inputs = PowerCell(0.2, 0.9), torch.zeros(4, 1, 1, dtype=torch.float64)

    def recipe(steps, clear):
        h, kept = torch.tensor(0.9, dtype=torch.float64), []
        for _ in range(steps):
            before = h.detach().requires_grad_()
            h = cell.w * before
            kept.append((before, h))
            cell.w.grad = None
            if clear:
                for one, _ in kept:
                    one.grad = None
            h.backward(retain_graph=True)
            for (_, after), (later, _) in reversed(list(itertools.pairwise(kept))):
                after.backward(later.grad, retain_graph=True)
        return cell.w.grad.item()

    def ours(steps, depth):
        cell.w.grad = None
        truncated_backward(cell, inputs, lambda outputs: outputs[steps - 1].sum(), depth=depth)
        return cell.w.grad.item()

    assert [recipe(steps, clear=False) for steps in (1, 2, 3)] == pytest.approx([0.9, 0.36, 0.288])
    assert [recipe(steps, clear=True) for steps in (1, 2, 3)] == pytest.approx([0.9, 0.36, 0.108])
    assert [ours(steps, depth=3) for steps in (1, 2, 3, 4)] == pytest.approx([0.9, 0.36, 0.108, 0.0216])
    assert [ours(steps, depth=4) for steps in (1, 2, 3, 4)] == pytest.approx([0.9, 0.36, 0.108, 0.0288])


STYLES = pytest.mark.parametrize(("depth", "stride"), [(3, 1), (4, 3), (3, 3), (9, 1)])


@STYLES
def test_calls_accumulate(depth, stride):
    cell, readout, inputs, state = example("LSTM of two layers")
    once = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride)[1]
    once = [one.clone() for one in once]
    truncated_backward(cell, inputs, through(readout), state, depth=depth, stride=stride)
    twice = [one.grad for one in (*cell.parameters(), *readout.parameters(), inputs)]
    all_close(twice, [2 * one for one in once], **CLOSELY)


@STYLES
@pytest.mark.parametrize("kind", ["TanhCell", "PairCell", "LSTM"])
def test_gradients_flow_on_through_the_inputs(kind, depth, stride):
    """Below the cell is an embedding, in the same graph as a part of the loss."""
    cell, readout, _, _ = example(kind)
    embedding = nn.Embedding(4, INPUT).double()
    symbols = torch.randint(4, (7, 2))
    embedded = embedding(symbols).tanh()
    result = truncated_backward(
        cell, embedded, lambda y: through(readout)(y) + embedded.square().sum(), depth=depth, stride=stride
    )
    found = embedding.weight.grad.clone()

    leaf = embedding(symbols).tanh().detach().requires_grad_()
    gradients(truncated_backward, cell, readout, leaf, depth=depth, stride=stride)
    again = embedding(symbols).tanh()
    (expected,) = torch.autograd.grad(again, embedding.weight, leaf.grad + 2 * again.detach())
    torch.testing.assert_close(found, expected, **CLOSELY)
    assert result.loss.item() > through(readout)(run(cell, embedded)[0]).item()


@STYLES
@all_kinds
def test_frozen_parameters_are_left_alone(kind, depth, stride):
    cell, readout, inputs, state = example(kind)
    inputs = inputs.detach()
    expected = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride)[1]
    for frozen in cell.parameters():
        for leaf in (*cell.parameters(), *readout.parameters()):
            leaf.grad = None
        frozen.requires_grad_(False)
        truncated_backward(cell, inputs, through(readout), state, depth=depth, stride=stride)
        assert frozen.grad is None
        for leaf, wanted in zip((*cell.parameters(), *readout.parameters()), expected, strict=False):
            if leaf is not frozen and leaf.grad is not None:
                torch.testing.assert_close(leaf.grad, wanted, **CLOSELY)
        frozen.requires_grad_(True)

    cell.requires_grad_(False)
    result, found = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride)
    start = len(list(cell.parameters()))
    all_close(found[start:], expected[start:], **CLOSELY)
    assert all(one.grad is None for one in cell.parameters())
    assert inputs.grad is None
    assert result.norms is None


@pytest.mark.parametrize("kind", ["TanhCell", "DelayCell", "GRU", "LSTM of two layers"])
def test_carried_states_join_the_parts_of_a_sequence(kind):
    cell, readout, inputs, state = example(kind, time=8)

    def total(outputs):
        return readout(outputs).square().sum()

    def halves(depth):
        middle = truncated_backward(cell, inputs[:4], total, state, depth=depth, stride=depth)
        return truncated_backward(cell, inputs[4:], total, middle.state, depth=depth, stride=depth)

    leaves = [*cell.parameters(), *readout.parameters(), inputs]
    for depth in (2, 4):
        found = []
        for method in (halves, lambda n: truncated_backward(cell, inputs, total, state, depth=n, stride=n)):
            for leaf in leaves:
                leaf.grad = None
            last = method(depth).state
            found.append([*parts(last), *(torch.zeros(1) if leaf.grad is None else leaf.grad for leaf in leaves)])
        all_close(*found, **CLOSELY)


@STYLES
@pytest.mark.parametrize("kind", ["TanhCell", "PairCell", "LearntStart", "DelayCell", "GRU", "LSTM of two layers"])
def test_fresh_rows_begin_anew(kind, depth, stride):
    """A row that is fresh has the gradients of the initial state, and any other those of the state it carries."""
    cell, readout, inputs, state = example(kind, batch=3)
    parts(state)[0].requires_grad_()
    fresh = torch.tensor([True, False, True])

    def row(i):
        rows = [one[..., i : i + 1, :] if isinstance(cell, nn.RNNBase) else one[i : i + 1] for one in parts(state)]
        return tuple(rows) if isinstance(state, tuple) else rows[0]

    result, ours = gradients(truncated_backward, cell, readout, inputs, state, depth=depth, stride=stride, fresh=fresh)
    leaves = [*cell.parameters(), *readout.parameters()]
    for leaf in (*leaves, inputs):
        leaf.grad = None
    lasts = []
    for i in range(3):  # a third of a mean over all rows each
        alone = truncated_backward(
            cell,
            inputs[:, i : i + 1],
            lambda outputs: through(readout)(outputs) / 3,
            None if fresh[i] else row(i),
            depth=depth,
            stride=stride,
        )
        lasts.append(parts(alone.state))
    all_close(ours, [torch.zeros_like(one) if one.grad is None else one.grad for one in (*leaves, inputs)], **CLOSELY)
    along = 1 if isinstance(cell, nn.RNNBase) else 0
    all_close(parts(result.state), [torch.cat(same, along) for same in zip(*lasts, strict=True)], **CLOSELY)
    assert parts(state)[0].grad is None
    without = gradients(truncated_backward, cell, readout, inputs, depth=depth, stride=stride, fresh=fresh)[1]
    all_close(without, gradients(truncated_backward, cell, readout, inputs, depth=depth, stride=stride)[1], **CLOSELY)


class Mixing(nn.Module):
    """A loss of several steps at once: their largest output, a normalised sum, and a second network on top."""

    def __init__(self, size):
        super().__init__()
        self.above = nn.GRU(size, 2).double()

    def forward(self, outputs):
        return outputs.amax(0).sum() + outputs.logsumexp(0).sum() + self.above(outputs)[0][-1].square().sum()


@pytest.mark.parametrize("kind", ["TanhCell", "PairCell", "LSTM"])
@pytest.mark.parametrize(("depth", "stride"), [(3, 1), (4, 3), (3, 3), (7, 1)])
def test_a_loss_may_mix_steps(kind, depth, stride):
    cell, readout, inputs, state = example(kind)
    loss_of = Mixing(readout.in_features)
    leaves, found = [*cell.parameters(), *loss_of.parameters(), inputs], []
    for method in (truncated_backward, brute_force):
        for leaf in leaves:
            leaf.grad = None
        method(cell, inputs, loss_of, state, depth=depth, stride=stride)
        found.append([leaf.grad for leaf in leaves])
    all_close(*found, **CLOSELY)


def test_no_window_is_run_by_itself(monkeypatch):
    cell, readout, inputs, _ = example("TanhCell", time=12, batch=2)
    sizes, step = [], cell.step
    monkeypatch.setattr(cell, "step", lambda x_t, state: sizes.append(len(x_t)) or step(x_t, state))
    for depth, stride, classes in ((5, 1, [24]), (5, 2, [12, 12]), (6, 5, [6, 6, 4, 4, 4]), (3, 3, []), (12, 1, [])):
        sizes.clear()
        truncated_backward(cell, inputs, through(readout), depth=depth, stride=stride)
        assert sizes == [2] * 12 + classes


def test_the_loss_may_change_the_outputs_in_place():
    cell, readout, inputs, state = example("TanhCell")
    ours = [one.clone() for one in gradients(truncated_backward, cell, readout, inputs, state, depth=3)[1]]
    truncated_backward(cell, inputs, lambda outputs: through(readout)(outputs.mul_(1)), state, depth=3)
    all_close([one.grad for one in cell.parameters()], [2 * one for one in ours[:3]], **CLOSELY)


@pytest.mark.parametrize("before", [False, True])
def test_tiny_numbers_are_zero_on_the_way_back_and_there_alone(before):
    def flushed():
        return float(torch.tensor(1e-38) * 0.1) == 0

    class Listening(PowerCell):
        def step(self, x_t, state):
            h, _ = super().step(x_t, state)
            if h.requires_grad:
                h.register_hook(lambda _: seen.append(flushed()))
            return h, h

    seen = []
    try:
        if not torch.set_flush_denormal(before):
            pytest.skip("this processor cannot")
        truncated_backward(Listening(0.5, 1.0), torch.zeros(4, 1, 1).double(), torch.sum, depth=2)
        assert seen
        assert all(seen)
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)


class Drawing(TanhCell):
    def step(self, projected_t, state):
        return super().step(torch.dropout(projected_t, 0.5, True), state)


class Centring(TanhCell):
    def step(self, projected_t, state):
        return super().step(projected_t - projected_t.mean(0), state)


H = torch.zeros(2, HIDDEN)
X = torch.randn(7, 2, INPUT)


def lstm(**options):
    return nn.LSTM(INPUT, HIDDEN, **options)


BAD = {
    "depth 0": ({"depth": 0}, ValueError, r"depth must be a whole number of at least 1 \(got 0\)"),
    "depth 2.0": ({"depth": 2.0}, ValueError, r"depth must be a whole number of at least 1 \(got 2.0\)"),
    "stride": ({"stride": -1}, ValueError, r"stride must be a whole number of at least 1 \(got -1\)"),
    "stride '2'": ({"stride": "2"}, ValueError, r"stride must be a whole number of at least 1 \(got '2'\)"),
    "depth below stride": (
        {"stride": 5},
        ValueError,
        r"depth must be at least stride \(got depth=3, stride=5\); use stride=3 to cut the sequence in chunks of 3$",
    ),
    "cell": ({"cell": nn.Linear(3, 5)}, TypeError, r"cell must be a Cell or a torch.nn.RNN, .* \(got Linear\)"),
    "rank": ({"inputs": X[0]}, ValueError, r"inputs must have shape \(time, batch, 3\) .* \(got \(2, 3\)\)"),
    "no steps": ({"inputs": X[:0]}, ValueError, r"with at least one time step \(got \(0, 2, 3\)\)"),
    "size": ({"inputs": X[..., :2]}, ValueError, r"inputs must have shape \(time, batch, 3\)"),
    "integers": (
        {"inputs": X.long()},
        TypeError,
        r"inputs must be torch.float32 on cpu, as the cell is \(got torch.int64",
    ),
    "list": ({"inputs": X.tolist()}, TypeError, r"inputs must be a tensor \(got list\)"),
    "state": ({"state": H[:1]}, ValueError, r"state must have shape \(2, 5\) for these inputs \(got \(1, 5\)\)"),
    "state of two": ({"state": (H, H)}, TypeError, r"state must be a tensor, like the cell's initial state"),
    "LSTM state": (
        {"cell": lstm(), "state": (H[None], H[None, :1])},
        ValueError,
        r"state\[1\] must have shape \(1, 2, 5\) for these inputs \(got \(1, 1, 5\)\)",
    ),
    "LSTM state alone": (
        {"cell": lstm(), "state": H[None]},
        TypeError,
        r"state must be a tuple \(tensor, tensor\), like the cell's initial state \(got tensor\)",
    ),
    "bidirectional": (
        {"cell": lstm(bidirectional=True)},
        ValueError,
        r"bidirectional of the torch.nn.LSTM must be False",
    ),
    "batch_first": ({"cell": lstm(batch_first=True)}, ValueError, r"batch_first of the torch.nn.LSTM must be False"),
    "proj_size": ({"cell": lstm(proj_size=2)}, ValueError, r"proj_size of the torch.nn.LSTM must be 0.* \(got 2\)"),
    "dropout": (
        {"cell": lstm(num_layers=2, dropout=0.5)},
        ValueError,
        r"dropout of the torch.nn.LSTM must be 0 in training.* \(got 0.5\)",
    ),
    "fresh list": ({"fresh": [True, False]}, TypeError, r"fresh must be torch.bool on cpu \(got list\)"),
    "fresh numbers": (
        {"fresh": torch.ones(2)},
        TypeError,
        r"fresh must be torch.bool on cpu \(got torch.float32 on cpu\)",
    ),
    "fresh shape": (
        {"fresh": torch.ones(3, dtype=bool)},
        ValueError,
        r"fresh must have shape \(2,\) for these inputs \(got \(3,\)\)",
    ),
    "loss of many": (
        {"loss": lambda loss: loss.repeat(7)},
        ValueError,
        r"loss_of must return a tensor of shape \(\) \(got shape \(7,\)\)",
    ),
    "loss a float": (
        {"loss": lambda loss: loss.item()},
        ValueError,
        r"loss_of must return a tensor of shape \(\) \(got float\)",
    ),
    "loss without graph": ({"loss": torch.Tensor.detach}, ValueError, r"loss_of must return a loss with a graph"),
    "loss fails": ({"loss": lambda loss: 1 / 0}, ZeroDivisionError, "division by zero"),
    "drawing": ({"cell": Drawing(INPUT, HIDDEN)}, ValueError, r"step must give the same again, .* off by \d[\d.e+]* %"),
    "mixing rows": (
        {"cell": Centring(INPUT, HIDDEN)},
        ValueError,
        r"step must give the same again, each row of a batch",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_gradient(case):
    changes, error, said = BAD[case]
    settings = {"cell": TanhCell(INPUT, HIDDEN), "inputs": X, "state": None, "depth": 3, **changes}
    cell, inputs, state = (settings.pop(name) for name in ("cell", "inputs", "state"))
    result = settings.pop("loss", lambda loss: loss)
    readout = nn.Linear(HIDDEN, 2)
    with pytest.raises(error, match=said):
        truncated_backward(cell, inputs, lambda outputs: result(through(readout)(outputs)), state, **settings)
    assert all(one.grad is None for one in (*cell.parameters(), *readout.parameters()))


def test_what_draws_at_random_can_be_cut():
    for depth in (3, 7):
        result = truncated_backward(Drawing(INPUT, HIDDEN), X, torch.sum, depth=depth, stride=depth)
        assert result.loss.isfinite()
    assert truncated_backward(lstm(num_layers=2, dropout=0.5).eval(), X, torch.sum, depth=2).loss.isfinite()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("depth", [2, 5, 11])
def test_the_rival_of_the_benchmark_computes_the_same_gradient(kind, depth):
    ours, rival, inputs = kind(INPUT, HIDDEN), kind(INPUT, HIDDEN), torch.randn(12, 2, INPUT)
    rival.load_state_dict(ours.state_dict())
    truncated_backward(ours, inputs, truncation.mean_square, depth=depth)
    truncation.windows(rival, inputs, depth)
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in rival.parameters()])
