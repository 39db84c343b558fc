"""BP(λ): the forward form against the backward one, both against autograd, and the windows that are special cases."""

import itertools

import pytest
import torch
from torch import nn

from shared.fast_weights import FastWeightsCell
from shared.recurrent import Cell, GRUCell, LSTMCell, TanhCell, unroll
from shared.synthetic_gradients import GradientPredictor, accumulate_lambda, lambda_targets, window_backward

INPUT, HIDDEN, TIME, BATCH = 3, 4, 7, 3
CLOSELY = {"rtol": 1e-10, "atol": 1e-12}


class ConstantPart(Cell):
    """A state of two tensors, of which one is handed on unchanged and the other does not depend on it; an output of both."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.inner = TanhCell(input_size, hidden_size)

    def initial_state(self, batch_size):
        h = super().initial_state(batch_size)
        return h, h + 0.7

    def step(self, projected_t, state):
        _, h = self.inner(projected_t, state[0])
        return h * state[1], (h, state[1])


CELLS = [TanhCell, GRUCell, LSTMCell, ConstantPart]


def width(cell):
    state = cell.initial_state(1)
    return sum(part.numel() for part in (state if isinstance(state, tuple) else (state,)))


def setting(kind, dtype=torch.float64, seed=0):
    """A cell, inputs, each step's losses, and a predictor that does say something."""
    torch.manual_seed(seed)
    cell = kind(INPUT, HIDDEN).to(dtype)
    inputs = torch.randn(TIME, BATCH, INPUT, dtype=dtype)
    wanted = torch.randn(TIME, BATCH, HIDDEN, dtype=dtype)
    weights = torch.rand(TIME, dtype=dtype)

    def losses_of(y_t, t):
        return weights[t] * (y_t - wanted[t]).square().sum(1)

    predictor = GradientPredictor(width(cell)).to(dtype)
    for parameter in predictor.parameters():
        nn.init.normal_(parameter, std=0.3)
    return cell, inputs, losses_of, predictor


def in_two(inputs, losses_of, at):
    return (inputs[:at], losses_of), (inputs[at:], lambda y_t, t: losses_of(y_t, t + at))


def some_state(cell):
    state = cell.initial_state(BATCH)
    if isinstance(state, tuple):
        return tuple(part + torch.randn_like(part) for part in state)
    return state + torch.randn_like(state)


def true_gradients(cell, inputs, losses_of, state, discount):
    """By autograd through the whole sequence: for each state before a step, the discounted losses from that step on."""
    states, losses = [], []
    for t, projected_t in enumerate(cell.project(inputs)):
        parts = tuple(one * 1 for one in state) if isinstance(state, tuple) else (state * 1,)
        states.append(tuple(one if one.requires_grad else one.requires_grad_() for one in parts))
        y_t, state = cell.step(projected_t, states[-1] if isinstance(state, tuple) else states[-1][0])
        losses.append(losses_of(y_t, t).sum())
    found = []
    for t, parts in enumerate(states):
        later = sum(discount ** (k - t) * losses[k] for k in range(t, len(losses)))
        gradients = torch.autograd.grad(later, parts, retain_graph=True, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(parts, gradients, strict=True)])
    return torch.stack([torch.cat(gradients, 1) for gradients in found])


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


def close(ours, theirs, **tolerances):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerances or CLOSELY))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_with_lambda_one_the_targets_are_the_true_gradients(kind, discount):
    cell, inputs, losses_of, predictor = setting(kind)
    state = some_state(cell)
    states, targets = lambda_targets(cell, inputs, losses_of, predictor, 1.0, discount, state)
    close([targets], [true_gradients(cell, inputs, losses_of, state, discount)])
    flat = torch.cat(state, 1) if isinstance(state, tuple) else state
    assert torch.equal(states[0], flat)
    assert targets.abs().amax((1, 2)).min() > 0


def by_definition(cell, inputs, losses_of, predictor, lam, discount, state, last):
    """The λ-target as a mixture of the bootstraps after 1, 2, … steps, each by autograd: (1 − λ) Σ λ^(n−1) G^(n)."""
    T, targets = len(inputs), []
    for t in range(T):
        start = tuple(p.detach().requires_grad_() for p in (state if isinstance(state, tuple) else (state,)))
        inside, objective, found = (start if isinstance(state, tuple) else start[0]), 0, []
        for n, projected_t in enumerate(cell.project(inputs[t:]), 1):
            y_t, inside = cell.step(projected_t, inside)
            if n == 1:
                following = inside
            objective = objective + discount ** (n - 1) * losses_of(y_t, t + n - 1).sum()
            h = torch.cat(inside, 1) if isinstance(inside, tuple) else inside
            said = 0 if last and t + n == T else discount**n * predictor(h.detach(), None).detach()
            g = torch.autograd.grad(objective + (h * said).sum(), start, retain_graph=True, allow_unused=True)
            found.append(torch.cat([torch.zeros_like(p) if x is None else x for p, x in zip(start, g, strict=True)], 1))
        mixed = sum((1 - lam) * lam**n * one for n, one in enumerate(found[:-1]))
        targets.append(mixed + lam ** (len(found) - 1) * found[-1])
        state = tuple(p.detach() for p in following) if isinstance(following, tuple) else following.detach()
    return torch.stack(targets)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(("lam", "discount", "last"), [(0.6, 1.0, True), (0.3, 0.7, False), (0.0, 0.9, True)])
def test_the_targets_mix_bootstraps_of_all_lengths(kind, lam, discount, last):
    cell, inputs, losses_of, predictor = setting(kind)
    state = some_state(cell)
    ours = lambda_targets(cell, inputs, losses_of, predictor, lam, discount, state, last=last).targets
    close([ours], [by_definition(cell, inputs, losses_of, predictor, lam, discount, state, last)])


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("lam", "discount", "last"),
    [(0.0, 1.0, True), (0.5, 1.0, False), (0.9, 0.8, True), (1.0, 1.0, True), (1.0, 0.6, False)],
)
def test_the_forward_form_is_the_backward_form(kind, lam, discount, last):
    cell, inputs, losses_of, predictor = setting(kind)
    for state in (None, some_state(cell)):
        states, targets = lambda_targets(cell, inputs, losses_of, predictor, lam, discount, state, last=last)
        begin = 1 if state is None else 0  # no predictor is trained for a sequence's own beginning
        predictor.zero_grad()
        for h, target in list(zip(states, targets, strict=True))[begin:]:
            predictor.error(h, None, target, None).backward()
        backward = gradients(predictor)
        predictor.zero_grad()
        accumulate_lambda(cell, inputs, losses_of, predictor, lam, discount, state, last=last)
        close(gradients(predictor), backward)
        assert all(parameter.grad is None for parameter in cell.parameters())


def test_in_float32_the_forms_agree_as_far_as_it_goes():
    cell, inputs, losses_of, predictor = setting(LSTMCell, torch.float32)
    states, targets = lambda_targets(cell, inputs, losses_of, predictor, 0.7)
    for h, target in zip(states[1:], targets[1:], strict=True):
        predictor.error(h, None, target, None).backward()
    backward = gradients(predictor)
    predictor.zero_grad()
    accumulate_lambda(cell, inputs, losses_of, predictor, 0.7)
    close(gradients(predictor), backward, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [TanhCell, LSTMCell])
def test_with_lambda_zero_it_is_windows_of_one_step(kind):
    cell, inputs, losses_of, predictor = setting(kind)
    state = None
    for t, x in enumerate(inputs):
        window = window_backward(cell, x[None], lambda y, t=t: losses_of(y[0], t), predictor, state, last=t == TIME - 1)
        state = window.state
    windows = gradients(predictor)
    predictor.zero_grad()
    ours = accumulate_lambda(cell, inputs, losses_of, predictor, 0.0)
    close(gradients(predictor), windows)
    close(*((s if isinstance(s, tuple) else (s,)) for s in (ours.state, window.state)))


@pytest.mark.parametrize("kind", [TanhCell, LSTMCell])
def test_the_loss_is_that_of_the_sequence(kind):
    cell, inputs, losses_of, predictor = setting(kind)
    outputs, _ = unroll(cell, inputs)
    expected = sum(losses_of(y_t, t).mean() for t, y_t in enumerate(outputs))
    torch.testing.assert_close(accumulate_lambda(cell, inputs, losses_of, predictor, 0.5).loss, expected.detach())


@pytest.mark.parametrize("at", [1, 4])
def test_a_sequence_in_two_parts_gives_the_same(at):
    cell, inputs, losses_of, predictor = setting(LSTMCell)
    whole = accumulate_lambda(cell, inputs, losses_of, predictor, 0.8, 0.9)
    expected = gradients(predictor)
    predictor.zero_grad()
    (first, first_losses), (second, second_losses) = in_two(inputs, losses_of, at)
    half = accumulate_lambda(cell, first, first_losses, predictor, 0.8, 0.9, last=False)
    kept = half.trace.clone()
    rest = accumulate_lambda(cell, second, second_losses, predictor, 0.8, 0.9, half.state, trace=half.trace)
    close(gradients(predictor), expected)
    close([half.loss + rest.loss, rest.trace, *rest.state], [whole.loss, whole.trace, *whole.state])
    assert torch.equal(half.trace, kept)  # the caller's is not written to


def test_gradients_are_added_to_what_is_there():
    cell, inputs, losses_of, predictor = setting(TanhCell)
    accumulate_lambda(cell, inputs, losses_of, predictor, 0.5)
    once = [g.clone() for g in gradients(predictor)]
    accumulate_lambda(cell, inputs, losses_of, predictor, 0.5)
    close(gradients(predictor), [2 * g for g in once])


def test_an_example_counts_the_same_in_any_batch():
    cell, inputs, losses_of, predictor = setting(TanhCell)
    accumulate_lambda(cell, inputs, losses_of, predictor, 0.5)
    together = gradients(predictor)
    alone = []
    for b in range(BATCH):
        predictor.zero_grad()

        def losses_of_one(y_t, t, b=b):
            full = y_t.new_zeros(BATCH, HIDDEN).index_add(0, torch.tensor([b]), y_t)
            return losses_of(full, t)[b : b + 1]

        accumulate_lambda(cell, inputs[:, b : b + 1], losses_of_one, predictor, 0.5)
        alone.append(gradients(predictor))
    close(together, [sum(g) / BATCH for g in zip(*alone, strict=True)])


def test_targets_accept_any_predictor_and_states_that_are_matrices():
    torch.manual_seed(0)
    cell = FastWeightsCell(INPUT, 2).double()
    inputs = torch.randn(4, BATCH, INPUT, dtype=torch.float64)

    def losses_of(y_t, t):
        return y_t.square().sum(1)

    deep = GradientPredictor(width(cell), hidden=(5,)).double()
    state = cell.initial_state(BATCH)
    targets = lambda_targets(cell, inputs, losses_of, deep, 1.0).targets
    expected = []
    for t in range(4):
        start = tuple(part.detach().requires_grad_() for part in state)
        outputs, _ = unroll(cell, inputs[t:], start)
        g = torch.autograd.grad(outputs.square().sum(), start)
        expected.append(torch.cat([one.flatten(1) for one in g], 1))
        state = cell.step(cell.project(inputs[t]), state)[1]
    close([targets], [torch.stack(expected)])


def test_a_call_under_no_grad_does_the_same_and_leaves_the_state_alone():
    cell, inputs, losses_of, predictor = setting(TanhCell)
    state = some_state(cell).detach()
    targets = lambda_targets(cell, inputs, losses_of, predictor, 0.5, state=state).targets
    accumulate_lambda(cell, inputs, losses_of, predictor, 0.5, state=state)
    expected = gradients(predictor)
    predictor.zero_grad()
    with torch.no_grad():
        assert torch.equal(lambda_targets(cell, inputs, losses_of, predictor, 0.5, state=state).targets, targets)
        accumulate_lambda(cell, inputs, losses_of, predictor, 0.5, state=state)
    close(gradients(predictor), expected)
    assert not state.requires_grad


BAD = [
    ({"lam": 1.5}, ValueError, r"lam must be a number from 0 to 1 \(got 1.5\)"),
    ({"lam": True}, ValueError, "lam must be"),
    ({"lam": "half"}, ValueError, "lam must be"),
    ({"lam": float("nan")}, ValueError, "lam must be"),
    ({"discount": -0.1}, ValueError, "discount must be a number from 0 to 1"),
    ({"cell": nn.RNN(INPUT, HIDDEN)}, TypeError, "cell must be a Cell"),
    ({"inputs": torch.zeros(TIME, INPUT)}, ValueError, "inputs must have shape"),
    ({"state": torch.zeros(1, HIDDEN).double()}, ValueError, "state must have shape"),
    ({"losses_of": lambda y_t, t: y_t.sum()}, ValueError, "losses_of must return one loss for each example"),
    ({"losses_of": lambda y_t, t: y_t.sum(1)[: BATCH - (t == 3)]}, ValueError, "losses_of must return"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@pytest.mark.parametrize("function", [accumulate_lambda, lambda_targets])
def test_what_is_wrong_is_named_and_nothing_touched(function, change, error, message):
    cell, inputs, losses_of, predictor = setting(TanhCell)
    arguments = {"cell": cell, "inputs": inputs, "losses_of": losses_of, "predictor": predictor, "lam": 0.5} | change
    with pytest.raises(error, match=message):
        function(**arguments)
    assert gradients(predictor) == [None, None]


def trace(*shape, dtype=torch.float64):
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"predictor": nn.Linear(HIDDEN, HIDDEN)}, TypeError, "predictor must be a GradientPredictor"),
        ({"predictor": GradientPredictor(HIDDEN, hidden=(8,))}, ValueError, "linear.*1 hidden layers"),
        ({"predictor": GradientPredictor(HIDDEN, 10)}, ValueError, "linear.*10 classes"),
        ({"predictor": GradientPredictor(HIDDEN + 1)}, ValueError, f"with {HIDDEN} features.*{HIDDEN + 1} features"),
        ({"trace": trace(BATCH, HIDDEN, HIDDEN, HIDDEN + 1)}, ValueError, "state must be given with a trace"),
        ({"state": 1, "trace": trace(BATCH, HIDDEN, HIDDEN, HIDDEN)}, ValueError, "trace must have shape"),
        ({"state": 1, "trace": [0.0]}, TypeError, "trace must be a tensor"),
        (
            {"state": 1, "trace": trace(BATCH, HIDDEN, HIDDEN, HIDDEN + 1, dtype=torch.float32)},
            TypeError,
            "trace must be torch.float64",
        ),
    ],
)
def test_what_only_the_forward_form_asks(change, error, message):
    cell, inputs, losses_of, predictor = setting(TanhCell)
    if "state" in change:
        change = change | {"state": cell.initial_state(BATCH)}
    arguments = {"predictor": predictor} | change
    with pytest.raises(error, match=message):
        accumulate_lambda(cell, inputs, losses_of, lam=0.5, **arguments)
    assert gradients(arguments["predictor"])[0] is None


def test_a_predictor_of_another_shape_is_named_by_the_backward_form():
    cell, inputs, losses_of, _ = setting(TanhCell)
    with pytest.raises(ValueError, match="the predictor must return the shape of the state"):
        lambda_targets(cell, inputs, losses_of, lambda h, labels: h[:, :-1], 0.5)
    for other in (True, False):  # a wrong width
        with pytest.raises(ValueError, match="h must have shape"):
            lambda_targets(cell, inputs, losses_of, GradientPredictor(HIDDEN + 1).double(), 0.5, last=other)


def test_what_it_keeps_does_not_grow_with_time():
    cell, _, _, predictor = setting(TanhCell)
    sizes = []
    for T in (3, 30):
        held = []

        def losses_of(y_t, t, held=held):
            held.append(y_t)
            return y_t.square().sum(1)

        accumulated = accumulate_lambda(cell, torch.randn(T, 1, INPUT).double(), losses_of, predictor, 0.5)
        sizes.append(accumulated.trace.numel())
        # the graph of a step reaches back to the state before it and no further
        depth, node = 0, held[-1].grad_fn
        while node is not None and depth < 100:
            node, depth = next((n for n, _ in reversed(node.next_functions) if n is not None), None), depth + 1
        assert depth < 10
    assert sizes == [HIDDEN * HIDDEN * (HIDDEN + 1)] * 2


def test_every_pair_of_lambda_and_discount_is_exact_at_its_corners():
    cell, inputs, losses_of, predictor = setting(GRUCell)
    for lam, discount in itertools.product((0, 1), (0, 1)):  # whole numbers are numbers
        targets = lambda_targets(cell, inputs, losses_of, predictor, lam, discount).targets
        expected = by_definition(cell, inputs, losses_of, predictor, lam, discount, cell.initial_state(BATCH), True)
        close([targets], [expected])
