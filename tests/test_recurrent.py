"""Cells against finite differences and each mode of differentiation; `unroll` against a plain loop; bad input against its error."""

import functools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacfwd, jacrev, vmap
from torch.utils._pytree import tree_leaves, tree_map

from shared import recurrent
from shared.recurrent import Cell, GatedCell, TanhCell, unroll

TIME, BATCH, INPUT, HIDDEN = 7, 4, 3, 5


class PairCell(Cell):
    """A state of two tensors, an output that is neither, of another width, and a projection wider than the state."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.U = nn.Parameter(torch.randn(2 * hidden_size, input_size))
        self.W = nn.Parameter(torch.randn(2 * hidden_size, hidden_size) / hidden_size**0.5)
        self.V = nn.Parameter(torch.randn(2, hidden_size))

    def initial_state(self, batch_size):
        zeros = super().initial_state(batch_size)
        return zeros, zeros

    def project(self, inputs):
        return inputs @ self.U.T

    def step(self, projected_t, state):
        h, c = state
        gate, new = (projected_t + h @ self.W.T).chunk(2, dim=-1)
        c = c + torch.sigmoid(gate) * (new - c)
        h = torch.tanh(c)
        return h @ self.V.T, (h, c)


class LeakyCell(Cell):
    """Only `step` is defined, and the parameter is a single number."""

    def __init__(self, size: int, _: int):
        super().__init__(size, size)
        self.leak = nn.Parameter(torch.tensor(0.9))

    def step(self, x_t, state):
        state = self.leak * state + (1 - self.leak) * x_t
        return state.square(), state


FORMS = [TanhCell, PairCell, LeakyCell]  # every form that a cell can have
PACKAGE = [getattr(recurrent, name) for name in recurrent.__all__ if name.endswith("Cell")]
PACKAGE = [kind for kind in PACKAGE if kind not in (Cell, GatedCell)]  # which leave `step` to others
CELLS = [*PACKAGE, PairCell, LeakyCell]


class Unrolled(nn.Module):
    """A sequence as one call, which `functional_call` can be given."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, inputs, state=None):
        return unroll(self.cell, inputs, state)


def parts(state) -> tuple:
    return state if isinstance(state, tuple) else (state,)


def example(kind, dtype=torch.float64, time=TIME, batch=BATCH, sizes=(INPUT, HIDDEN)):
    """A cell, inputs and a state, all drawn, and all of which want gradients."""
    torch.manual_seed(0)
    cell = kind(*sizes).to(dtype)
    inputs = torch.randn(time, batch, cell.input_size, dtype=dtype, requires_grad=True)
    zeros = cell.initial_state(batch)
    drawn = tuple(torch.randn_like(one).requires_grad_() for one in parts(zeros))
    return cell, inputs, drawn if isinstance(zeros, tuple) else drawn[0]


def plain_loop(cell, inputs, state):
    outputs = []
    for t in range(len(inputs)):
        y_t, state = cell(inputs[t], state)
        outputs.append(y_t)
    return torch.stack(outputs), state


def gradients(result, of) -> list:
    """Of a number that weights every output and every part of the last state differently."""
    outputs, state = result
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)  # the same in every precision
    loss = sum((one * draw(one.shape).to(one.dtype)).sum() for one in (outputs, *parts(state)))
    return torch.autograd.grad(loss, of)


def all_close(results, expected, **tolerance):
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def close_to_the_largest(results, expected, tolerance):
    """Entry by entry, relative to the largest of a tensor: its small entries may be sums that cancel."""
    for one, other in zip(results, expected, strict=True):
        atol = tolerance * max(1, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=0, atol=atol, check_dtype=False)


EXACTLY = {"rtol": 0, "atol": 0}
CLOSELY = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_those_of_finite_differences(kind):
    cell, inputs, state = example(kind, time=4, batch=2, sizes=(2, 2))
    names, values = zip(*Unrolled(cell).named_parameters(), strict=True)

    def run(inputs, *rest):
        start, weights = rest[: len(parts(state))], rest[len(parts(state)) :]
        start = start if isinstance(state, tuple) else start[0]
        outputs, last = functional_call(Unrolled(cell), dict(zip(names, weights, strict=True)), (inputs, start))
        return outputs, *parts(last)

    assert torch.autograd.gradcheck(run, (inputs, *parts(state), *values))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode within torch
@pytest.mark.parametrize("kind", CELLS)
def test_forward_and_reverse_mode_agree(kind):
    cell, inputs, state = example(kind, time=3, batch=2)
    weights = dict(Unrolled(cell).named_parameters())

    def run(*given):
        outputs, last = functional_call(Unrolled(cell), given[0], given[1:])
        return outputs, parts(last)

    forward, reverse = (mode(run, (0, 1, 2))(weights, inputs, state) for mode in (jacfwd, jacrev))
    all_close(tree_leaves(forward), tree_leaves(reverse), **CLOSELY)


@pytest.mark.parametrize("kind", CELLS)
def test_single_precision_is_double_precision_rounded(kind):
    cell, inputs, state = example(kind)

    def run(cell, inputs, state):
        outputs, last = result = unroll(cell, inputs, state)
        found = [outputs, *parts(last), *gradients(result, [*cell.parameters(), inputs, *parts(state)])]
        return [one.detach() for one in found]

    expected = run(cell, inputs, state)
    inputs, state = tree_map(lambda one: one.detach().float().requires_grad_(), (inputs, state))
    found = run(cell.float(), inputs, state)
    assert all(one.dtype == torch.float32 for one in found)
    close_to_the_largest(found, expected, 2e-6)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_unroll_is_a_plain_loop(kind, dtype):
    cell, inputs, state = example(kind, dtype)
    tolerance = CLOSELY if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    ours, expected = unroll(cell, inputs, state), plain_loop(cell, inputs, state)
    assert isinstance(ours[1], tuple) == isinstance(state, tuple)
    all_close([ours[0], *parts(ours[1])], [expected[0], *parts(expected[1])], **tolerance)
    of = [*cell.parameters(), inputs, *parts(state)]
    all_close(gradients(ours, of), gradients(expected, of), **tolerance)


@pytest.mark.parametrize("kind", CELLS)
def test_the_first_state_is_zero_on_the_parameters_device_and_of_their_dtype(kind):
    cell, inputs, _ = example(kind)
    zeros = cell.initial_state(BATCH)
    for zero in parts(zeros):
        all_close([zero], [torch.zeros(BATCH, cell.hidden_size, dtype=torch.float64)], **EXACTLY)
    (outputs, last), (expected, expected_last) = unroll(cell, inputs), unroll(cell, inputs, zeros)
    all_close([outputs, *parts(last)], [expected, *parts(expected_last)], **EXACTLY)

    elsewhere = cell.to("meta", torch.float16)
    for zero in parts(elsewhere.initial_state(BATCH)):
        assert (zero.device.type, zero.dtype) == ("meta", torch.float16)


@pytest.mark.parametrize("kind", CELLS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 4), st.integers(1, 4), st.integers(1, 6))
def test_two_parts_with_the_state_carried_over_are_the_whole(kind, first, second, batch, input_size, hidden_size):
    cell, inputs, state = example(kind, time=first + second, batch=batch, sizes=(input_size, hidden_size))
    outputs, last = unroll(cell, inputs, state)
    before, middle = unroll(cell, inputs[:first], state)
    after, end = unroll(cell, inputs[first:], middle)
    assert outputs.shape[:2] == (first + second, batch)
    halves = torch.cat([before, after]), end
    all_close([outputs, *parts(last)], [halves[0], *parts(end)], **CLOSELY)
    of = [*cell.parameters(), inputs, *parts(state)]
    all_close(gradients((outputs, last), of), gradients(halves, of), **CLOSELY)


@pytest.mark.parametrize("kind", CELLS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, BATCH - 1), st.booleans())
def test_rows_of_a_batch_are_independent(kind, row, in_state):
    cell, inputs, state = example(kind)
    outputs, last = unroll(cell, inputs, state)
    with torch.no_grad():
        changed = parts(state)[0][row] if in_state else inputs[:, row]
        changed += 1
    others, other_last = unroll(cell, inputs, state)
    assert (others[:, row] != outputs[:, row]).any(-1).all()
    rest = [i for i in range(BATCH) if i != row]
    all_close(
        [outputs[:, rest], *(one[rest] for one in parts(last))],
        [others[:, rest], *(one[rest] for one in parts(other_last))],
        **EXACTLY,
    )


def test_an_output_depends_on_no_later_input():
    cell, inputs, state = example(TanhCell)
    (gradient,) = torch.autograd.grad(unroll(cell, inputs, state)[0][3].sum(), inputs)
    assert gradient[:4].abs().sum((1, 2)).min() > 0
    assert gradient[4:].abs().max() == 0


def test_the_input_product_is_done_once():
    cell, inputs, state = example(TanhCell)
    with (
        mock.patch.object(cell, "project", wraps=cell.project) as project,
        mock.patch.object(cell, "step", wraps=cell.step) as step,
    ):
        unroll(cell, inputs, state)
    assert [call.args[0].shape for call in project.mock_calls] == [(TIME, BATCH, INPUT)]
    assert [call.args[0].shape for call in step.mock_calls] == [(BATCH, HIDDEN)] * TIME


def nodes(result) -> list[str]:
    """The names of all operations in the graph behind the outputs."""
    waiting, seen = [result[0].grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [source for source, _ in node.next_functions]
    return [node.name() for node in seen]


@pytest.mark.parametrize("kind", CELLS)
def test_the_backward_pass_is_linear_in_time(kind):
    """Each backward of an indexing would fill a tensor as long as the whole sequence."""
    assert nodes(plain_loop(*example(kind))).count("SelectBackward0") == TIME
    short, long = (nodes(unroll(*example(kind, time=time))) for time in (10, 20))
    for time, found in ((10, short), (20, long)):
        assert not [name for name in found if name.startswith(("Select", "Slice", "Index"))]
        assert found.count("UnbindBackward0") in (1, 1 + time)  # of the inputs, and of a parameter in each step
    assert len(long) < 2 * len(short)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_survive_functional_transforms(kind):
    cell, inputs, state = example(kind)
    net, weights = Unrolled(cell), dict(Unrolled(cell).named_parameters())
    elsewhere = {name: torch.zeros_like(value) for name, value in weights.items()}
    before = unroll(cell, inputs, state)[0]
    assert not torch.equal(functional_call(net, elsewhere, (inputs, state))[0], before)
    assert torch.equal(unroll(cell, inputs, state)[0], before)

    several = {name: torch.stack([value, 2 * value, 3 * value]) for name, value in weights.items()}
    batched = vmap(lambda weights: functional_call(net, weights, (inputs,))[0])(several)
    for i in range(3):
        alone = functional_call(net, {name: value[i] for name, value in several.items()}, (inputs,))[0]
        torch.testing.assert_close(batched[i], alone, **CLOSELY)

    jacobians = jacrev(lambda weights: functional_call(net, weights, (inputs, state))[0].sum((1, 2)))(weights)
    rows = [torch.autograd.grad(one.sum(), list(weights.values()), retain_graph=True) for one in before]
    all_close(jacobians.values(), map(torch.stack, zip(*rows, strict=True)), **CLOSELY)


def test_the_jacobian_of_a_step_is_the_known_one():
    """diag(1 − h²) W, for each sequence of the batch by itself."""
    cell, inputs, state = example(TanhCell)
    found = vmap(jacrev(lambda x, h: cell(x, h)[1], argnums=1))(inputs[0], state)
    h = cell(inputs[0], state)[1]
    torch.testing.assert_close(found, (1 - h**2)[:, :, None] * cell.W, **CLOSELY)


def test_a_cell_must_define_its_step():
    cell = Cell(INPUT, HIDDEN)
    with pytest.raises(NotImplementedError, match=r"Cell must define step\(projected_t, state\)"):
        cell(torch.zeros(BATCH, INPUT), torch.zeros(BATCH, HIDDEN))


@pytest.mark.parametrize("kind", PACKAGE)
@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None])
def test_impossible_sizes_are_refused(kind, size):
    with pytest.raises(ValueError, match=r"input_size must be a whole number of at least 1 \(got "):
        kind(size, HIDDEN)
    with pytest.raises(ValueError, match=r"hidden_size must be a whole number of at least 1 \(got "):
        kind(INPUT, size)


def zeros(*shape, dtype=torch.float32, **options):
    return torch.zeros(*shape, dtype=dtype, **options)


GOOD = zeros(TIME, BATCH, INPUT)
H = zeros(BATCH, HIDDEN)
SHAPE = r"inputs must have shape \(time, batch, 3\) with at least one time step \(got "
KIND = r" must be torch\.float32 on cpu, as the cell is \(got torch\."


@pytest.mark.parametrize(
    ("kind", "inputs", "state", "error", "said"),
    [
        (TanhCell, GOOD.numpy(), None, TypeError, r"inputs must be a tensor \(got ndarray\)"),
        (TanhCell, GOOD[0], None, ValueError, SHAPE + r"\(4, 3\)\)"),
        (TanhCell, GOOD[None], None, ValueError, SHAPE + r"\(1, 7, 4, 3\)\)"),
        (TanhCell, zeros(()), None, ValueError, SHAPE + r"\(\)\)"),
        (TanhCell, GOOD[:0], None, ValueError, SHAPE + r"\(0, 4, 3\)\)"),
        (TanhCell, GOOD[..., :2], None, ValueError, SHAPE + r"\(7, 4, 2\)\)"),
        (TanhCell, GOOD.long(), None, TypeError, "inputs" + KIND + r"int64 on cpu\)"),
        (TanhCell, GOOD.double(), H, TypeError, "inputs" + KIND + r"float64 on cpu\)"),
        (TanhCell, GOOD.to("meta"), H, TypeError, "inputs" + KIND + r"float32 on meta\)"),
        (TanhCell, GOOD, H[:1], ValueError, r"state must have shape \(4, 5\) for these inputs \(got \(1, 5\)\)"),
        (TanhCell, GOOD, H[:, :1], ValueError, r"state must have shape \(4, 5\) for these inputs \(got \(4, 1\)\)"),
        (TanhCell, GOOD, H[None], ValueError, r"state must have shape \(4, 5\) for these inputs \(got \(1, 4, 5\)\)"),
        (TanhCell, GOOD, H.double(), TypeError, "state" + KIND + r"float64 on cpu\)"),
        (TanhCell, GOOD, H.to("meta"), TypeError, "state" + KIND + r"float32 on meta\)"),
        (TanhCell, GOOD, (H,), TypeError, r"state must be a tensor, like the .* \(got tuple \(tensor\)\)"),
        (TanhCell, GOOD, 0, TypeError, r"state must be a tensor, like the .* \(got int\)"),
        (PairCell, GOOD, H, TypeError, r"state must be a tuple \(tensor, tensor\), like the .* \(got tensor\)"),
        (PairCell, GOOD, [H, H], TypeError, r"state must be a tuple \(tensor, tensor\), like the .* \(got list\)"),
        (PairCell, GOOD, (H,), TypeError, r"a tuple \(tensor, tensor\), like the .* \(got tuple \(tensor\)\)"),
        (PairCell, GOOD, (H, None), TypeError, r"\(tensor, tensor\), like the .* \(got tuple \(tensor, NoneType\)\)"),
        (PairCell, GOOD, (H[:1], H), ValueError, r"state\[0\] must have shape \(4, 5\) .* \(got \(1, 5\)\)"),
        (PairCell, GOOD, (H, H[:3]), ValueError, r"state\[1\] must have shape \(4, 5\) .* \(got \(3, 5\)\)"),
        (PairCell, GOOD, (H, H.half()), TypeError, r"state\[1\]" + KIND + r"float16 on cpu\)"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(kind, inputs, state, error, said, monkeypatch):
    cell = kind(INPUT, HIDDEN)
    for name in ("project", "step"):
        monkeypatch.setattr(cell, name, lambda *_: pytest.fail("the cell has run"))
    weights = {name: value.clone() for name, value in cell.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(error, match=said):
        unroll(cell, inputs, state)
    assert torch.equal(torch.get_rng_state(), random)
    all_close(cell.state_dict().values(), weights.values(), **EXACTLY)
    assert all(value.grad is None for value in cell.parameters())
    assert not H.any()
    assert not GOOD.any()


def test_inputs_and_state_are_left_as_they_were():
    cell, inputs, state = example(PairCell)
    before = [one.clone() for one in (inputs, *state)]
    outputs, last = unroll(cell, inputs, state)
    gradients((outputs, last), [inputs])
    all_close([inputs, *state], before, **EXACTLY)
