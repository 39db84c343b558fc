"""Windows with a predicted gradient: perfect predictions against full backpropagation, zero against chunks, and nothing leaks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import PACKAGE
from test_truncation import HIDDEN, INPUT, KINDS, detached, example, run
from torch import nn

from shared.recurrent import LSTMCell, TanhCell, _parts
from shared.synthetic_gradients import GradientPredictor, LossPredictor, window_backward
from shared.truncation import truncated_backward

EVERY = KINDS | {kind.__name__: kind for kind in PACKAGE}
CLOSELY = {"rtol": 1e-10, "atol": 1e-12}


class Told(nn.Module):
    """A predictor that says what it was told, and learns nothing."""

    def __init__(self, says=None):
        super().__init__()
        self.says, self.asked, self.seen = says, [], []

    def forward(self, h, labels):
        self.asked.append(h)
        return torch.zeros_like(h) if self.says is None else self.says

    def error(self, h, labels, gradients, losses):
        self.seen.append((h, gradients, losses))
        return torch.zeros(())


def made(kind, **options):
    KINDS.setdefault(kind, EVERY[kind])
    return example(kind, **options)


def losses_from(readout, begin=0):
    """Each example's loss in a part of the sequence that begins at step `begin`, with a weight for each step."""

    def losses_of(outputs):
        weights = torch.arange(begin + 1.0, begin + 1 + len(outputs), dtype=outputs.dtype)
        return (weights[:, None, None] * readout(outputs).square()).sum((0, 2))

    return losses_of


def flat(state, layered):
    return torch.cat([(one.transpose(0, 1) if layered else one).flatten(1) for one in _parts(state)], 1)


def adjoint(cell, readout, inputs, state, begin):
    """The gradient of each example's later losses with respect to the state as input of step `begin`; zero at the end."""
    leaf = [one.clone().requires_grad_() for one in _parts(state)]
    if begin == len(inputs):
        return flat(tuple(map(torch.zeros_like, leaf)), isinstance(cell, nn.Module) and hasattr(cell, "num_layers"))
    outputs, _ = run(cell, inputs[begin:].detach(), tuple(leaf) if isinstance(state, tuple) else leaf[0])
    found = torch.autograd.grad(losses_from(readout, begin)(outputs).sum(), leaf, materialize_grads=True)
    return flat(tuple(found), hasattr(cell, "num_layers"))


def gradients(leaves):
    return [torch.zeros_like(one) if one.grad is None else one.grad for one in leaves]


def clear(leaves):
    for one in leaves:
        one.grad = None


def in_windows(cell, readout, inputs, lengths, predictor_for, state=None):
    """The windows, one after the other; `predictor_for(begin, state)` gives the predictor of a window that ends at `begin`."""
    windows, begin = [], 0
    for length in lengths:
        end = begin + length
        with torch.no_grad():
            _, after = run(cell, inputs[begin:end], state)
        windows.append(
            window_backward(
                cell,
                inputs[begin:end],
                losses_from(readout, begin),
                predictor_for(end, after),
                state,
                last=end == len(inputs),
            )
        )
        state, begin = windows[-1].state, end
    return windows


def both_ways(kind, lengths, dtype=torch.float64, batch=2, seed=0):
    """The gradients of windows with a perfect predictor, and those of backpropagation through all."""
    cell, readout, inputs, _ = made(kind, time=sum(lengths), batch=batch, dtype=dtype, seed=seed)
    leaves = [*cell.parameters(), *readout.parameters(), inputs]
    windows = in_windows(
        cell, readout, inputs, lengths, lambda end, after: Told(adjoint(cell, readout, inputs, after, end))
    )
    ours = gradients(leaves)
    clear(leaves)
    loss = losses_from(readout)(run(cell, inputs)[0]).mean()
    loss.backward()
    return ours, gradients(leaves), windows, loss


@pytest.mark.parametrize("kind", EVERY)
def test_with_a_perfect_predictor_windows_add_up_to_full_backpropagation(kind):
    ours, full, windows, loss = both_ways(kind, [2, 1, 3, 2])
    torch.testing.assert_close(ours, full, **CLOSELY)
    torch.testing.assert_close(sum(window.loss for window in windows), loss, **CLOSELY)
    for before, window in itertools.pairwise(windows):  # and it is its own target
        torch.testing.assert_close(window.target, before.ahead, **CLOSELY)
    assert windows[0].target is None
    assert not windows[-1].ahead.any()


@pytest.mark.parametrize("kind", EVERY)
def test_the_same_in_single_precision(kind):
    ours, full, *_ = both_ways(kind, [3, 2, 3], dtype=torch.float32)
    for a, b in zip(ours, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max().clamp(min=1)))


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["TanhCell", "LSTMCell", "LearntStart", "DelayCell", "LSTM of two layers", "GRU"]),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_windows_of_any_lengths_add_up(kind, lengths, batch, seed):
    ours, full, *_ = both_ways(kind, lengths, batch=batch, seed=seed)
    torch.testing.assert_close(ours, full, **CLOSELY)


@pytest.mark.parametrize("kind", ["TanhCell", "LSTMCell", "LearntStart", "GRU", "LSTM of two layers"])
@pytest.mark.parametrize("from_state", [False, True])
def test_a_predictor_that_says_zero_leaves_chunks(kind, from_state):
    cell, readout, inputs, state = made(kind, time=9)
    leaves = [*cell.parameters(), *readout.parameters(), inputs]
    state = state if from_state else None
    layered = hasattr(cell, "num_layers")
    some = state if state is not None else detached(run(cell, inputs[:1])[1])
    zero = GradientPredictor(flat(some, layered).shape[1]).double()
    windows = in_windows(cell, readout, inputs, [4, 4, 1], lambda *_: zero, state)
    ours = gradients(leaves)
    clear(leaves)
    plain = truncated_backward(
        cell, inputs, lambda outputs: losses_from(readout)(outputs).mean(), state, depth=4, stride=4
    )
    torch.testing.assert_close(ours, gradients(leaves), **CLOSELY)
    torch.testing.assert_close(windows[-1].state, plain.state, **CLOSELY)
    torch.testing.assert_close(sum(window.loss for window in windows), plain.loss, **CLOSELY)


@pytest.mark.parametrize("kind", ["TanhCell", "LSTMCell", "DelayCell", "RNN of two layers", "LSTM of two layers"])
def test_targets_and_gradients_of_the_predictor_by_hand(kind):
    """Targets row by row, and the mean squared error over batch and features, by its formula.

    A public package divides by the first dimension of the state, which is the number of layers in torch's modules.
    """
    cell, readout, inputs, state = made(kind, time=3, batch=4)
    layered = hasattr(cell, "num_layers")
    left = flat(state, layered)
    predictor = GradientPredictor(left.shape[1]).double()
    W, b = predictor.parameters()
    with torch.no_grad():
        W.normal_(), b.normal_()
    window = window_backward(cell, inputs, losses_from(readout), predictor, state)
    right = flat(window.state, layered)
    torch.testing.assert_close(window.ahead, (right @ W.T + b).detach(), **CLOSELY)

    for row in range(4):
        alone = slice(row, row + 1)
        own = [(one[:, alone] if layered else one[alone]).clone().requires_grad_() for one in _parts(state)]
        outputs, end = run(cell, inputs[:, alone].detach(), tuple(own) if isinstance(state, tuple) else own[0])
        total = losses_from(readout)(outputs).sum() + (flat(end, layered) * window.ahead[alone]).sum()
        found = torch.autograd.grad(total, own, materialize_grads=True)
        torch.testing.assert_close(window.target[alone], flat(tuple(found), layered), **CLOSELY)

    residual = (left @ W.T + b - window.target).detach()
    torch.testing.assert_close(W.grad, 2 * residual.T @ left / residual.numel(), **CLOSELY)
    torch.testing.assert_close(b.grad, 2 * residual.sum(0) / residual.numel(), **CLOSELY)


@pytest.mark.parametrize("part", [0, 1])
def test_a_target_is_the_slope_for_one_tensor_of_the_state_with_the_other_fixed(part):
    """By finite differences: of h alone, of c alone."""
    cell, readout, inputs, state = made("LSTMCell", time=4, batch=1)
    predictor = Told(torch.randn(1, 2 * HIDDEN, dtype=torch.float64))
    window = window_backward(cell, inputs, losses_from(readout), predictor, state)
    for unit in range(HIDDEN):
        values = []
        for sign in (1, -1):
            moved = [one.clone() for one in state]
            moved[part][0, unit] += sign * 1e-6
            with torch.no_grad():
                outputs, end = run(cell, inputs, tuple(moved))
                values.append(losses_from(readout)(outputs).sum() + (torch.cat(end, 1) * predictor.says).sum())
        slope = (values[0] - values[1]) / 2e-6
        assert float(window.target[0, part * HIDDEN + unit]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_a_gradient_that_contains_the_way_from_c_to_h_is_counted_twice():
    """What autograd says of a c_t that h_t was computed from is too much: the trap that the docstring names."""
    torch.manual_seed(0)
    cell, readout = LSTMCell(INPUT, HIDDEN).double(), nn.Linear(HIDDEN, 2).double()
    inputs = torch.randn(6, 2, INPUT, dtype=torch.float64)
    outputs, (h, c) = run(cell, inputs[:3])
    later, _ = run(cell, inputs[3:], (h, c))
    total = losses_from(readout, 3)(later).sum()
    within = torch.autograd.grad(total, (h, c), retain_graph=True)  # c: also by way of h of the same step
    apart = adjoint(cell, readout, inputs, (h.detach(), c.detach()), 3)
    torch.testing.assert_close(within[0], apart[:, :HIDDEN], **CLOSELY)
    full = torch.autograd.grad((losses_from(readout)(outputs).sum() + total) / 2, cell.W)[0]
    found = []
    for says in (apart, torch.cat(within, 1)):
        clear(cell.parameters())
        first = window_backward(cell, inputs[:3], losses_from(readout), Told(says))
        window_backward(cell, inputs[3:], losses_from(readout, 3), Told(), first.state, last=True)
        found.append(cell.W.grad)
    torch.testing.assert_close(found[0], full, **CLOSELY)
    assert float((found[1] - full).norm() / full.norm()) > 1e-2


def leaves_of(tensor):
    """The leaves that a tensor's graph ends in."""
    found, seen, ahead = [], set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        ahead += [one for one, _ in node.next_functions]
    return found


@pytest.mark.parametrize("kind", ["TanhCell", "LSTMCell", "LSTM of two layers"])
def test_nothing_leaks_over_an_edge(kind):
    cell, readout, inputs, _ = made(kind, time=6)
    layered = hasattr(cell, "num_layers")
    first_inputs, second_inputs = (one.detach().requires_grad_() for one in inputs.split(3))
    width = flat(detached(run(cell, inputs[:1])[1]), layered).shape[1]
    predictor = GradientPredictor(width).double()
    nn.init.normal_(predictor.network[-1].weight)
    first = window_backward(cell, first_inputs, losses_from(readout), predictor)
    assert [one.grad for one in predictor.parameters()] == [
        None,
        None,
    ]  # it is used, and not trained, in a first window
    for one in (first.loss, first.ahead, *_parts(first.state)):
        assert one.grad_fn is None
        assert not one.requires_grad
    before = first_inputs.grad.clone()
    graphs = []

    def losses_of(outputs):
        graphs.append(outputs)
        return losses_from(readout, 3)(outputs)

    window_backward(cell, second_inputs, losses_of, predictor, first.state)
    assert torch.equal(first_inputs.grad, before)
    own = {id(one) for one in (*cell.parameters(), second_inputs)}
    others = [one for one in leaves_of(graphs[0]) if id(one) not in own]
    states = {one.data_ptr() for one in _parts(first.state)}
    assert {one.data_ptr() for one in others} == states  # its values, as leaves of its own
    assert not {id(one) for one in others} & {id(one) for one in _parts(first.state)}
    assert all(one.grad is None for one in _parts(first.state))


def test_the_error_of_the_predictor_does_not_reach_the_cell_nor_the_losses_the_predictor():
    found = []
    for factor in (1, 1000):
        cell, readout, inputs, state = made("LSTMCell", time=3)
        predictor = GradientPredictor(2 * HIDDEN, hidden=(4,)).double()
        plain = predictor.error
        predictor.error = lambda *given, plain=plain, factor=factor: factor * plain(*given)
        window_backward(cell, inputs, losses_from(readout), predictor, state)
        found.append((gradients(cell.parameters()), gradients(predictor.parameters())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    torch.testing.assert_close([1000 * one for one in found[0][1]], found[1][1])


def test_a_learnt_first_state_gets_its_gradient_in_the_first_window_alone():
    cell, readout, inputs, _ = made("LearntStart", time=4)
    first = window_backward(cell, inputs[:2], losses_from(readout), Told(torch.ones(2, HIDDEN, dtype=torch.float64)))
    found = cell.h0.grad.clone()
    assert found.any()
    window_backward(cell, inputs[2:], losses_from(readout, 2), Told(), first.state, last=True)
    assert torch.equal(cell.h0.grad, found)


def test_a_window_without_losses_learns_from_the_prediction_alone():
    cell, _, inputs, state = made("TanhCell", time=3)
    says = torch.randn(2, HIDDEN, dtype=torch.float64)
    window = window_backward(cell, inputs, lambda outputs: outputs.new_zeros(2), Told(says), state)
    _, end = run(cell, inputs, state)
    expected = torch.autograd.grad((end * says).sum() / 2, cell.W)[0]
    torch.testing.assert_close(cell.W.grad, expected, **CLOSELY)
    assert float(window.loss) == 0
    frozen = TanhCell(INPUT, HIDDEN).double().requires_grad_(False)
    window_backward(frozen, inputs.detach(), lambda outputs: outputs.new_zeros(2), Told())  # nothing to do: no error


def test_a_predictor_of_losses_is_bootstrapped():
    cell, readout, inputs, state = made("TanhCell", time=3)
    predictor = LossPredictor(HIDDEN).double()
    nn.init.normal_(predictor.network[-1].weight)
    seen = []
    predictor.error = lambda h, labels, gradients, losses: seen.append(losses) or torch.zeros(())
    for last in (False, True):
        window = window_backward(cell, inputs, losses_from(readout), predictor, state, last=last)
    own = losses_from(readout)(run(cell, inputs, state)[0]).detach()
    ahead = predictor.loss(window.state).detach()
    torch.testing.assert_close(seen, [own + ahead, own], **CLOSELY)


def test_a_predictor_is_asked_once_at_each_edge():
    cell, readout, inputs, state = made("TanhCell", time=3)
    predictor = Told()
    window_backward(cell, inputs, losses_from(readout), predictor, state)
    assert (len(predictor.asked), len(predictor.seen)) == (1, 1)


class Wide(GradientPredictor):
    def forward(self, h, labels=None):
        return torch.cat((h, h), 1)


STEPS, WIDTH = 3, 2 * HIDDEN
BAD = {
    "no cell": ({"cell": nn.Linear(2, 2)}, TypeError, r"cell must be a Cell or .* \(got Linear\)"),
    "no module": ({"predictor": lambda h, labels: h}, TypeError, r"predictor must be a module .* \(got function\)"),
    "no error": ({"predictor": nn.Linear(WIDTH, WIDTH)}, TypeError, r"with a method error \(got Linear\)"),
    "narrow": ({"predictor": GradientPredictor(HIDDEN).double()}, ValueError, rf"\(batch, {HIDDEN}\).*\(2, {WIDTH}\)"),
    "narrow, last": (
        {"predictor": GradientPredictor(HIDDEN).double(), "last": True},
        ValueError,
        rf"\(batch, {HIDDEN}\).*\(2, {WIDTH}\)",
    ),
    "another shape": ({"predictor": Wide(WIDTH).double()}, ValueError, rf"shape of the state, \(2, {WIDTH}\) \(got"),
    "labels": ({"predictor": GradientPredictor(WIDTH, 3).double()}, ValueError, "labels must be given"),
    "wrong batch": ({"state": (torch.zeros(1, HIDDEN).double(),) * 2}, ValueError, r"state\[0\] must have shape"),
    "one tensor": ({"state": torch.zeros(2, HIDDEN).double()}, TypeError, "state must be a tuple"),
    "dtype": ({"state": (torch.zeros(2, HIDDEN),) * 2}, TypeError, r"state\[0\] must be torch.float64"),
    "no steps": ({"inputs": torch.zeros(0, 2, INPUT).double()}, ValueError, "at least one time step"),
    "a scalar": ({"losses_of": lambda outputs: outputs.sum()}, ValueError, r"shape \(2,\) \(got \(\)\)"),
    "each step": ({"losses_of": lambda outputs: outputs.sum(2)}, ValueError, rf"shape \(2,\) \(got \({STEPS}, 2\)\)"),
    "no tensor": ({"losses_of": lambda outputs: None}, ValueError, r"shape \(2,\) \(got NoneType\)"),
    "an error of its own": ({"losses_of": lambda outputs: 1 / 0}, ZeroDivisionError, "division"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_touches_nothing(case):
    change, error, message = BAD[case]
    cell, readout, inputs, state = made("LSTMCell", time=STEPS)
    given = {
        "cell": cell,
        "inputs": inputs,
        "losses_of": losses_from(readout),
        "predictor": GradientPredictor(WIDTH).double(),
        "state": state,
        "last": False,
    } | change
    with pytest.raises(error, match=message):
        window_backward(**given)
    touched = [*cell.parameters(), *readout.parameters(), inputs]
    touched += given["predictor"].parameters() if isinstance(given["predictor"], nn.Module) else []
    assert all(one.grad is None for one in touched)


def test_modules_of_another_form_are_refused():
    for module in (nn.GRU(INPUT, HIDDEN, bidirectional=True), nn.GRU(INPUT, HIDDEN, batch_first=True)):
        with pytest.raises(ValueError, match="must be False"):
            window_backward(module, torch.zeros(2, 3, INPUT), lambda o: o.sum((0, 2)), GradientPredictor(HIDDEN))
