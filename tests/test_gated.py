"""Cells with gates against their equations, torch.nn, and one another; their bounds; chrono initialisation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import (
    CLOSELY,
    EXACTLY,
    HIDDEN,
    INPUT,
    PACKAGE,
    TIME,
    all_close,
    close_to_the_largest,
    example,
    gradients,
    parts,
)
from torch import nn
from torch.utils._pytree import tree_map

from shared.recurrent import (
    Cell,
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    NoForgetLSTMCell,
    NormalisedPrototypeCell,
    PeepholeLSTMCell,
    PrototypeCell,
    PseudoLSTMCell,
    ResetAfterGRUCell,
    TanhCell,
    chrono_init_,
    from_torch,
    to_torch,
    unroll,
)
from shared.recurrent.gated import LinearGatedCell

GATED = [kind for kind in PACKAGE if kind is not TanhCell]
MIXTURES = [GRUCell, ResetAfterGRUCell, CoupledLSTMCell]  # of what is kept and what is written
KEEPING = [kind for kind in GATED if kind is not NoForgetLSTMCell]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class Weights:
    """w(part, x, s) is U x + W s + b of one part; without s, U x + b. w.gate is σ of it."""

    def __init__(self, cell):
        self.parts, self.size = cell.parts, cell.hidden_size
        vars(self).update({name: value.detach().numpy() for name, value in cell.named_parameters()})

    def __call__(self, part, x, s=None):
        k = self.parts.index(part) * self.size + np.arange(self.size)
        return self.U[k] @ x + self.b[k] + (0 if s is None else self.W[k] @ s)

    def gate(self, part, *given):
        return sigmoid(self(part, *given))


def prototype(w, x, s, see=lambda s: s):
    i, f, o = (w.gate(part, x, see(s)) for part in ("i", "f", "o"))
    s = f * s + i * np.tanh(w("candidate", x, o * see(s)))
    return see(s), s


def normalised(w, x, s):
    return prototype(w, x, s, lambda s: (s - s.mean()) / np.sqrt(((s - s.mean()) ** 2).mean() + 1))


def pseudo(w, x, s):
    return prototype(w, x, s, np.tanh)


def gru(w, x, s):
    r, z = w.gate("r", x, s), w.gate("z", x, s)
    s = z * s + (1 - z) * np.tanh(w("candidate", x, r * s))
    return s, s


def reset_after(w, x, s):
    r, z = w.gate("r", x, s), w.gate("z", x, s)
    product = w("candidate", x, s) - w("candidate", x)
    s = z * s + (1 - z) * np.tanh(w("candidate", x) + r * (product + w.b_read))
    return s, s


def lstm(w, x, h, c, i=None, f=None):
    i = w.gate("i", x, h) if i is None else i
    f = w.gate("f", x, h) if f is None else f
    c = f * c + i * np.tanh(w("candidate", x, h))
    h = w.gate("o", x, h) * np.tanh(c)
    return h, h, c


def peephole(w, x, h, c):
    p_i, p_f, p_o = w.p
    i, f = sigmoid(w("i", x, h) + p_i * c), sigmoid(w("f", x, h) + p_f * c)
    c = f * c + i * np.tanh(w("candidate", x, h))
    h = sigmoid(w("o", x, h) + p_o * c) * np.tanh(c)
    return h, h, c


def coupled(w, x, h, c):
    return lstm(w, x, h, c, i=1 - w.gate("f", x, h))


def no_forget(w, x, h, c):
    return lstm(w, x, h, c, f=1)


def min_gru(w, x, s):
    z = w.gate("z", x)
    s = z * s + (1 - z) * w("candidate", x)
    return s, s


def min_lstm(w, x, s):
    i, f = w.gate("i", x), w.gate("f", x)
    s = f / (f + i) * s + i / (f + i) * w("candidate", x)
    return s, s


EQUATIONS = {
    PrototypeCell: prototype,
    NormalisedPrototypeCell: normalised,
    PseudoLSTMCell: pseudo,
    GRUCell: gru,
    ResetAfterGRUCell: reset_after,
    LSTMCell: lstm,
    PeepholeLSTMCell: peephole,
    CoupledLSTMCell: coupled,
    NoForgetLSTMCell: no_forget,
    MinGRUCell: min_gru,
    MinLSTMCell: min_lstm,
}


@pytest.mark.parametrize("kind", GATED)
def test_a_cell_computes_its_equations(kind):
    cell, inputs, state = example(kind, batch=2)
    with torch.no_grad():
        for weights in cell.parameters():  # far enough from zero for every bend to show
            weights.mul_(3)
        outputs, last = unroll(cell, inputs, state)
    for row in range(2):
        w, s = Weights(cell), [one.detach().numpy()[row] for one in parts(state)]
        for t, x in enumerate(inputs.detach().numpy()[:, row]):
            y, *s = EQUATIONS[kind](w, x, *s)
            np.testing.assert_allclose(outputs[t, row], y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose([one[row] for one in parts(last)], s, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", GATED)
def test_the_bias_of_a_part_is_a_view(kind):
    cell = kind(INPUT, HIDDEN)
    whole = cell.b.detach().clone()
    for k, part in enumerate(cell.parts):
        all_close([cell.bias(part)], [whole[k * HIDDEN : (k + 1) * HIDDEN]], **EXACTLY)
        assert not cell.bias(part).requires_grad
        cell.bias(part).fill_(k)
    all_close([cell.b.detach()], [torch.arange(len(cell.parts)).repeat_interleave(HIDDEN).float()], **EXACTLY)
    assert cell.b.requires_grad
    with pytest.raises(ValueError, match=rf"part must be one of .*candidate.* in a {kind.__name__} \(got 'g'\)"):
        cell.bias("g")


# The cells of torch.nn

MODULES = {TanhCell: nn.RNN, ResetAfterGRUCell: nn.GRU, LSTMCell: nn.LSTM}


def tensors(one, inputs, state, outputs, last):
    """What a cell or its module of torch.nn was given and has returned, in one order and form for both."""
    given = [one.U, one.W, one.b] if isinstance(one, Cell) else [one.weight_ih_l0, one.weight_hh_l0, one.bias_ih_l0]
    if isinstance(one, ResetAfterGRUCell | nn.GRU):
        given.append(one.b_read if isinstance(one, Cell) else one.bias_hh_l0)
    found = gradients((outputs, last), [*given, inputs, *parts(state)])
    if isinstance(one, nn.GRU):
        found = [*found[:3], found[3][-HIDDEN:], *found[4:]]
    return [outputs, *(last.reshape(-1, HIDDEN) for last in parts(last))], found


@pytest.mark.parametrize("kind", PACKAGE)
def test_parameters_are_drawn_as_in_torch(kind):
    torch.manual_seed(0)
    cell, bound = kind(100, 64), 1 / 8
    others = {PeepholeLSTMCell: {"p"}, ResetAfterGRUCell: {"b_read"}, MinGRUCell: {"W"}, MinLSTMCell: {"W"}}
    assert set(dict(cell.named_parameters())) == {"U", "W", "b"} ^ others.get(kind, set())
    for drawn in cell.parameters():
        assert 0.9 * bound < drawn.abs().max() <= bound
        assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    if kind in MODULES:
        torch.manual_seed(0)
        module = MODULES[kind](100, 64)
        all_close([cell.U, cell.W, cell.b], [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0], **EXACTLY)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("begin_with", ["cell", "module"])
@pytest.mark.parametrize("time", [1, 2, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_cell_computes_what_its_module_does(kind, begin_with, time, dtype, tolerance):
    cell, inputs, state = example(kind, dtype, time=time)
    if begin_with == "cell":
        module = to_torch(cell)
    else:
        module = MODULES[kind](INPUT, HIDDEN, dtype=dtype)  # where both biases count
        cell = from_torch(module)
    assert (type(cell), type(module)) == (kind, MODULES[kind])
    ours, gradients_of_ours = tensors(cell, inputs, state, *unroll(cell, inputs, state))
    first = tuple(one[None] for one in parts(state)) if isinstance(state, tuple) else state[None]
    theirs, gradients_of_theirs = tensors(module, inputs, state, *module(inputs, first))
    all_close(ours, theirs, rtol=tolerance, atol=tolerance)
    close_to_the_largest(gradients_of_ours, gradients_of_theirs, tolerance)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_conversions_are_copies(kind, dtype):
    cell = example(kind, dtype)[0]
    before = [value.clone() for value in cell.parameters()]
    module = to_torch(cell)
    again = from_torch(module)
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(9)
    all_close(cell.parameters(), before, **EXACTLY)
    all_close(again.parameters(), before, **EXACTLY)
    assert all(value.requires_grad for one in (again, module) for value in one.parameters())
    for one in (from_torch(module.to("meta")), to_torch(cell.to("meta"))):
        assert {(value.dtype, value.device.type) for value in one.parameters()} == {(dtype, "meta")}


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (nn.RNN, {"num_layers": 2}, r"num_layers of the module must be 1 \(got 2\)"),
        (nn.GRU, {"bidirectional": True}, r"bidirectional of the module must be False \(got True\)"),
        (nn.LSTM, {"proj_size": 2}, r"proj_size of the module must be 0 \(got 2\)"),
        (nn.GRU, {"bias": False}, r"bias of the module must be True \(got False\)"),
        (nn.LSTM, {"batch_first": True}, r"batch_first of the module must be False \(got True\)"),
        (nn.RNN, {"nonlinearity": "relu"}, r"nonlinearity of the module must be 'tanh' \(got 'relu'\)"),
    ],
)
def test_modules_that_are_no_cell_are_refused(module, options, said):
    with pytest.raises(ValueError, match=said):
        from_torch(module(INPUT, HIDDEN, **options))


def test_what_has_no_counterpart_is_refused():
    for other in (nn.LSTMCell(2, 2), nn.Linear(2, 2), LSTMCell(2, 2), None):
        with pytest.raises(TypeError, match=rf"a torch.nn.RNN, GRU or LSTM \(got {type(other).__name__}\)"):
            from_torch(other)
    for other in (*(kind(2, 2) for kind in GATED if kind not in MODULES), nn.LSTM(2, 2), None):  # some are LSTMCells
        with pytest.raises(TypeError, match=rf"TanhCell, ResetAfterGRUCell, LSTMCell \(got {type(other).__name__}\)"):
            to_torch(other)


# One cell beside another, with the same weights for what does the same


def draw_rows() -> dict:
    """U, W and b by part."""
    torch.manual_seed(0)
    shapes = {"U": (HIDDEN, INPUT), "W": (HIDDEN, HIDDEN), "b": (HIDDEN,)}
    return {
        part: {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for part in ("i", "f", "o", "candidate")
    }


def run_with(kind, rows, **others):
    """Outputs, what the last state remembers, and the gradient of the inputs, from inputs and a state always the same."""
    cell, inputs, _ = example(kind)
    with torch.no_grad():
        for name, value in cell.named_parameters():
            if name in others:
                value.fill_(others[name])
            elif name in ("U", "W", "b"):
                value.copy_(torch.cat([rows[{"r": "o", "z": "f"}.get(part, part)][name] for part in cell.parts]))
    inputs = torch.linspace(-2, 3, inputs.numel(), dtype=torch.float64).view_as(inputs).sin().requires_grad_()
    c = torch.linspace(-0.9, 0.8, inputs.shape[1] * HIDDEN, dtype=torch.float64).view(-1, HIDDEN)
    outputs, last = unroll(cell, inputs, (torch.tanh(c), c) if issubclass(kind, LSTMCell) else c)
    return outputs, parts(last)[-1], *torch.autograd.grad(outputs.sum(), inputs)


def open_for_good(*opened):
    """Change the weights of these gates so that they are 1 at any input and state."""

    def change(rows):
        for part in opened:
            rows[part] = {name: torch.full_like(value, 50.0 * (name == "b")) for name, value in rows[part].items()}

    return change


def write_what_is_not_kept(rows):
    rows["i"] = {name: -value for name, value in rows["f"].items()}  # σ(−a) = 1 − σ(a)


def connect_no_units(rows):
    rows["candidate"]["W"] = rows["candidate"]["W"].diag().diag()  # reading before and after it is then the same


def test_no_two_cells_are_the_same():
    found = {kind: run_with(kind, draw_rows())[0] for kind in GATED}
    for kind, other in itertools.combinations(GATED, 2):
        assert (found[kind] - found[other]).abs().amax((1, 2)).min() > 0.01, (kind, other)


@pytest.mark.parametrize(
    ("kind", "other", "change", "others"),
    [
        (PeepholeLSTMCell, LSTMCell, open_for_good(), {"p": 0}),
        (CoupledLSTMCell, LSTMCell, write_what_is_not_kept, {}),
        (NoForgetLSTMCell, LSTMCell, open_for_good("f"), {}),
        (PseudoLSTMCell, LSTMCell, open_for_good("o"), {}),
        (GRUCell, PrototypeCell, write_what_is_not_kept, {}),
        (ResetAfterGRUCell, GRUCell, open_for_good("o"), {"b_read": 0}),
        (ResetAfterGRUCell, GRUCell, connect_no_units, {"b_read": 0}),
        (MinLSTMCell, MinGRUCell, write_what_is_not_kept, {}),
    ],
)
def test_cells_coincide_where_their_equations_do(kind, other, change, others):
    rows = draw_rows()
    change(rows)
    all_close(run_with(kind, rows, **others), run_with(other, rows), **CLOSELY)


@pytest.mark.parametrize("kind", [NormalisedPrototypeCell, PseudoLSTMCell])
def test_bounded_prototypes_see_a_small_state_as_it_is(kind):
    """What they see departs from it by terms of third order, if its mean is 0."""
    cell, inputs, s = example(kind)
    plain = PrototypeCell(INPUT, HIDDEN).double()
    plain.load_state_dict(cell.state_dict())
    s = s - s.mean(1, keepdim=True)
    one, half = ((cell(inputs[0], e * s)[1] - plain(inputs[0], e * s)[1]).abs().max().item() for e in (1e-3, 5e-4))
    assert 0 < one < 1e-8
    assert one / half == pytest.approx(8, rel=1e-3)


# Bounds


def run_wild(kind, seed, scale):
    """Outputs and what is remembered after each step, with any weights and inputs, from a state within ±1."""
    cell, inputs, state = example(kind)
    torch.manual_seed(seed)
    found = []
    with torch.no_grad():
        for value in (*cell.parameters(), inputs):
            value.copy_(scale * torch.randn_like(value))
        state = tree_map(torch.tanh, state)
        for x_t in inputs:
            y_t, state = cell(x_t, state)
            found.append((y_t, parts(state)[-1]))
    return [torch.stack(ones) for ones in zip(*found, strict=True)]


OUTPUT, REMEMBERED = 0, 1


@pytest.mark.parametrize(
    ("kind", "which"),
    [
        *((kind, REMEMBERED) for kind in MIXTURES),
        *((kind, OUTPUT) for kind in (PseudoLSTMCell, LSTMCell, PeepholeLSTMCell, NoForgetLSTMCell)),
        (NormalisedPrototypeCell, OUTPUT),
    ],
)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 100))
def test_what_is_mixed_squashed_or_normalised_is_bounded(kind, which, seed, scale):
    """Within (−1, 1) but for rounding, as tanh of 20 is 1; what is normalised, in the mean square."""
    found = run_wild(kind, seed, scale)[which]
    if kind is NormalisedPrototypeCell:
        assert found.mean(-1).abs().max() < 1e-12
        found = found.square().mean(-1)
    assert found.abs().max() <= 1


@pytest.mark.parametrize("kind", [one for one in GATED if not issubclass(one, LinearGatedCell)])
def test_what_writes_and_keeps_everything_grows_without_bound(kind):
    rows = draw_rows()
    open_for_good(*rows)(rows)
    s = run_with(kind, rows)[1]
    assert s.abs().max() < 1 if kind in MIXTURES else s.min() > TIME - 1


@pytest.mark.parametrize("kind", GATED)
def test_a_state_is_kept_exactly_while_nothing_is_written(kind):
    """And the error of a state comes back from later ones as it is: the constant error flow that gates are for."""
    cell, inputs, state = example(kind, time=30)
    for part in cell.parts:
        if part in ("f", "z", "i"):
            cell.bias(part).fill_(-1000 if part == "i" else 1000)
    c = parts(state)[-1]
    kept = parts(unroll(cell, inputs, state)[1])[-1]
    assert torch.equal(kept, c)
    error = torch.randn_like(c)
    found = torch.autograd.grad(kept, [c, inputs], error)
    all_close(found, [error, torch.zeros_like(inputs)], **EXACTLY)


# Cells whose steps are linear


@pytest.mark.parametrize("kind", [MinGRUCell, MinLSTMCell])
def test_coefficients_of_all_steps_at_once(kind):
    cell, inputs, s = example(kind)
    a, u = cell.coefficients(cell.project(inputs))
    assert 0 < a.min() < a.max() < 1
    outputs, _ = unroll(cell, inputs, s)
    all_close(outputs, a * torch.cat([s[None], outputs[:-1]]) + u, **CLOSELY)


def test_shares_of_gates_that_are_both_shut():
    """Their sum rounds to 0, yet each has a share of it."""
    cell, inputs, s = example(MinLSTMCell, torch.float32)
    for part, bias in (("i", -1000), ("f", -1000 + math.log(3))):
        cell.bias(part).fill_(bias)
    a, _ = cell.coefficients(cell.project(0 * inputs))
    all_close([a], [torch.full_like(a, 0.75)], rtol=1e-4, atol=0)
    assert all(one.isfinite().all() for one in gradients(unroll(cell, inputs, s), [*cell.parameters(), inputs, s]))


def test_a_linear_cell_must_define_its_coefficients():
    NoCell = type("NoCell", (LinearGatedCell,), {"parts": ("candidate",)})
    with pytest.raises(NotImplementedError, match=r"NoCell must define coefficients\(projected\)"):
        unroll(NoCell(INPUT, HIDDEN), torch.zeros(1, 1, INPUT))


# Chrono initialisation


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("kind", KEEPING)
def test_chrono_init_sets_the_gates_and_nothing_else(kind):
    cell = kind(INPUT, HIDDEN)
    before = {name: value.detach().clone() for name, value in cell.named_parameters()}
    random = torch.get_rng_state()
    assert chrono_init_(cell, 100, seeded()) is None
    assert torch.equal(torch.get_rng_state(), random)
    keep = "f" if "f" in cell.parts else "z"
    b = cell.bias(keep).clone()
    for part, rows in zip(cell.parts, before.pop("b").split(HIDDEN), strict=True):
        assert torch.equal(cell.bias(part), {keep: b, "i": -b}.get(part, rows)), part
    assert all(torch.equal(getattr(cell, name), value) for name, value in before.items())

    chrono_init_(cell, 100, seeded())
    assert torch.equal(cell.bias(keep), b)
    chrono_init_(cell, 100)
    assert not torch.equal(cell.bias(keep), b)


def test_chrono_biases_are_logarithms_of_uniform_numbers():
    cell = MinGRUCell(1, 2000)
    chrono_init_(cell, 100, seeded())
    uniform = (cell.bias("z").double().exp().sort().values - 1) / 98
    distance = (uniform - torch.linspace(0, 1, 2000)).abs().max()  # Kolmogorov's; above 0.05 for one seed in 10,000
    assert distance < 0.05
    assert -1e-6 < uniform[0] < uniform[-1] < 1 + 1e-6


@pytest.mark.parametrize("kind", KEEPING)
def test_units_then_forget_after_two_steps_to_the_longest(kind):
    """1 / (1 − the share kept in a step) steps, when input and output say nothing."""
    cell = kind(INPUT, 500).double()
    with torch.no_grad():
        for value in cell.parameters():
            value.zero_()
    chrono_init_(cell, 50, seeded())
    zero, one = torch.zeros(1, 500).double(), torch.ones(1, 500).double()
    kept = parts(cell(torch.zeros(1, INPUT).double(), (zero, one) if issubclass(kind, LSTMCell) else one)[1])[-1]
    steps = 1 / (1 - kept)
    assert 2 <= steps.min() < 3
    assert 49 < steps.max() <= 50


@pytest.mark.parametrize("longest", [2, 1.5, 0, -7, math.nan, math.inf, "9", None])
def test_chrono_init_needs_more_than_two_steps(longest):
    cell = LSTMCell(INPUT, HIDDEN)
    before = cell.b.clone()
    with pytest.raises(ValueError, match=rf"longest must be a number of steps above 2 \(got {longest!r}\)"):
        chrono_init_(cell, longest)
    assert torch.equal(cell.b, before)


@pytest.mark.parametrize("other", [TanhCell(2, 2), NoForgetLSTMCell(2, 2), nn.LSTM(2, 2)])
def test_chrono_init_needs_a_gate_that_keeps(other):
    with pytest.raises(ValueError, match=rf"cell must have a gate f or z that keeps \(got {type(other).__name__}\)"):
        chrono_init_(other, 100)
