"""Truncated backpropagation through time: every style of it, exactly, without a pass for each window.

With y_t the output and s_t the state of step t, let e_t = ∂L/∂y_t be its error and J_t = ∂s_t/∂s_{t−1}. Truncation to n
steps wants, at every step t, what the errors of steps t … t+n−1 are worth there. The error from j steps later is worth
E_t^j = J_{t+1}ᵀ E_{t+1}^{j−1}, for all t at once. So the states are stored on the way forward, all steps are evaluated
again as one batch, and n − 1 vector-Jacobian products of that batch give E^1 … E^{n−1}; one more, with their sum and
the errors themselves, gives the gradients of weights and inputs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shared.recurrent import Cell, State, TanhCell, _check_size, _Layers, _parts, _starting_state, unroll


class Truncated(NamedTuple):
    """What `truncated_backward` returns, detached."""

    loss: Float[Tensor, ""]
    state: State  # after the last step, to be carried over to the next part of the sequence
    norms: Float[Tensor, " depth"] | None  # sizes of the error signal by distance


def truncated_backward(
    cell: Cell | nn.RNN | nn.GRU | nn.LSTM,
    inputs: Float[Tensor, "time batch input"],
    loss_of: Callable[[Float[Tensor, "time batch output"]], Float[Tensor, ""]],
    state: State | None = None,
    *,
    depth: int,
    stride: int = 1,
    fresh: Bool[Tensor, " batch"] | None = None,
) -> Truncated:
    """Accumulate the gradient in which each error travels back at most `depth` steps.

    BPTT(h; h') of Williams and Peng (1990) with h = `depth` and h' = `stride`. The sequence falls into blocks of `stride`
    steps; from the end of each, the errors of its steps are sent back over the last `depth` steps, the block's own
    included. `stride=1` sends every error through exactly `depth` applications of the cell, or as many as there are
    (`depth=1`: no recurrence); `stride=depth` detaches the state every `depth` steps; a first window over the whole
    sequence is full backpropagation. A last block that is shorter counts as if its missing steps had no loss.

    cell: a `Cell`, or a torch.nn.RNN, GRU or LSTM of any number of layers, whose states are then as torch has them.
    loss_of: maps the outputs of all steps to a number, usually a sum or mean of one loss for each step. The error of a step
        is the derivative with respect to its output. Only the recurrence of the cell is truncated: a `loss_of` that
        mixes steps, by a maximum or a second network over time, is itself differentiated in full.
    state: where to begin, such as the state of an earlier result, which is detached; by default the cell's initial
        state, whose gradient is kept, so that it can be learnt.
    fresh: marks the rows of the batch that begin anew from the initial state, whatever `state` holds.

    Gradients go where `loss.backward()` would send them: to the cell's parameters, to whatever `loss_of` reads, and through
    `inputs` to whatever they were computed from. The weights are the same at all steps; an optimizer that moves them
    within the sequence needs a call for each move.

    Cost: where `stride=depth` > 1 or the first window reaches over the whole sequence, that of an ordinary backward pass
    (torch's own, if the cell is torch's). Otherwise one forward pass, all steps once more as a batch, and `depth`
    vector-Jacobian products of time/stride · batch rows; memory O(time · batch · hidden), whatever the depth.

    `norms[j]` is the size of an error at a distance of j steps: the norm over batch and state of ∂L_{t+j}/∂s_t, or of
    ∂L_t/∂y_t for j = 0, as a root mean square over the time − j steps t with such an error. It is None where errors of
    different distances travel together (`stride` > 1 or `depth` ≥ time) or none reaches the cell.

    Raises ValueError for a depth or stride that is not whole or below 1, or depth < stride; inputs, state or `fresh` of the
    wrong shape; a module that is bidirectional, batch-first, projecting or dropping out; a loss that is not a scalar or
    has no graph; a step that gives something else when it is evaluated again, as part of a larger batch, because it
    draws at random or lets rows mix. TypeError for what is no cell, no tensor, or of another dtype or device. Then, and
    if `loss_of` raises, no gradient has been touched.
    """
    _check_size("depth", depth)
    _check_size("stride", stride)
    if depth < stride:
        raise ValueError(
            f"depth must be at least stride (got depth={depth}, stride={stride}); "
            f"use stride={depth} to cut the sequence in chunks of {depth}"
        )
    layered = isinstance(cell, nn.RNN | nn.GRU | nn.LSTM)
    if not layered and not isinstance(cell, Cell):
        raise TypeError(f"cell must be a Cell or a torch.nn.RNN, GRU or LSTM (got {type(cell).__name__})")
    stepped = _Layers(cell) if layered else cell
    start = _starting_state(stepped, inputs, state)
    _check_fresh(fresh, inputs)
    if state is not None:
        start = _each(Tensor.detach, start)
    if fresh is not None:
        ends = (-1, *[1] * (_parts(start)[0].ndim - 1 - layered))
        start = _each(functools.partial(torch.where, fresh.view(ends)), stepped.initial_state(len(fresh)), start)

    windows, blocks = None, -(-len(inputs) // stride)
    if stride == depth > 1 or stride * blocks <= depth:
        outputs, last = _cut(cell if layered else functools.partial(unroll, cell), inputs, start, depth)
    else:
        windows = _Windows(stepped, inputs, stepped.split(start) if layered else start, depth, stride)
        outputs = _Outputs.apply(windows, *windows.sources)
        last = stepped.join(windows.last) if layered else windows.last
    loss = loss_of(outputs)
    _check_loss(loss)
    loss.backward()
    return Truncated(loss.detach(), _each(Tensor.detach, last), windows.norms if windows else None)


def _cut(run: Callable, inputs: Tensor, state: State, depth: int) -> tuple[Tensor, State]:
    """The outputs and the last state, the state being detached every `depth` steps."""
    outputs = []
    for part in inputs.split(depth):
        if outputs:
            state = _each(Tensor.detach, state)
        some, state = run(part, state)
        outputs.append(some)
    return torch.cat(outputs), state


class _Outputs(torch.autograd.Function):
    """The outputs of `windows` as a function of its sources, whose backward pass is its own."""

    @staticmethod
    def forward(ctx, windows, *sources):
        ctx.windows = windows
        return windows.outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, errors):
        with _flushing_denormals():
            return None, *ctx.windows.backward(errors)


@contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Zeros for numbers too small to be stored in full, with which a CPU computes ten times as slowly.

    An error that is never added to others, as here, vanishes as far as that within some hundred steps.
    """
    before = float(torch.tensor(1e-38) * 0.1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class _Steps(NamedTuple):
    """Some steps evaluated as one batch, with their graph. Rows: the batch of the first of them, then of the next."""

    projected: Float[Tensor, "rows projected"]
    before: tuple[Tensor, ...]
    outputs: Float[Tensor, "rows output"]
    after: tuple[Tensor, ...]


class _Windows:
    """A forward pass, and a backward pass in which all windows go back side by side, a step at a time.

    Counting from 0, the windows of stride m end at steps m − 1, 2m − 1, …, so that after j steps back all are at steps r,
    r + m, r + 2m, … with r = (−1 − j) mod m. The steps thus fall into m classes, each evaluated as one batch.
    """

    def __init__(self, cell: Cell | _Layers, inputs: Tensor, start: State, depth: int, stride: int):
        self.projected, self.start = cell.project(inputs), _parts(start)
        self.weights = [weight for weight in cell.parameters() if weight.requires_grad]
        self.depth, self.norms, self.pullback = depth, None, _pullback_of(cell)
        outputs, states = [], [start]
        with torch.no_grad():
            for projected_t in self.projected.unbind(0):
                y_t, state = cell.step(projected_t, states[-1])
                outputs.append(y_t)
                states.append(state)
            self.outputs, self.last = torch.stack(outputs), states[-1]
            trace = _each(lambda *steps: torch.stack(steps), *states)  # (time + 1, batch, hidden)
        self.classes = [self._evaluate(cell, trace, slice(r, None, stride)) for r in range(stride)]

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What gradients can reach."""
        return self.projected, *self.start, *self.weights

    def _evaluate(self, cell: Cell | _Layers, trace: State, which: slice) -> _Steps:
        projected = self.projected.detach()[which].flatten(0, 1).requires_grad_(self.projected.requires_grad)
        before = _each(lambda one: one[:-1][which].flatten(0, 1).requires_grad_(), trace)
        outputs, after = cell.step(projected, before)
        steps = _Steps(projected, _parts(before), outputs, _parts(after))
        once = [self.outputs, *(one[1:] for one in _parts(trace))]
        _check_same([one[which].flatten(0, 1) for one in once], [steps.outputs, *steps.after])
        return steps

    def backward(self, errors: Float[Tensor, "time batch output"]) -> list[Tensor | None]:
        """The gradients of the sources, from those of the outputs."""
        (time, batch), stride = errors.shape[:2], len(self.classes)
        learnt = any(one.requires_grad for one in self.start)
        errors = [errors[r::stride].flatten(0, 1) for r in range(stride)]
        pulls = [self.pullback(steps) for steps in self.classes]
        totals = [[torch.zeros_like(one) for one in steps.after] for steps in self.classes]
        starts, norms = [torch.zeros_like(one) for one in self.start], []
        adjoints = [one.detach()[:0] for one in self.classes[0].after]  # of the states that the windows have come to
        for j in range(self.depth):
            r = (-1 - j) % stride
            for total, one in zip(totals[r], adjoints, strict=True):
                total[: len(one)] += one
            if stride == 1:
                sizes = [torch.linalg.vector_norm(one) for one in (adjoints if j else errors)]
                norms.append(torch.stack(sizes).norm() / (time - j) ** 0.5)
            if j == self.depth - 1 and not learnt:
                break
            adjoints = pulls[r](adjoints, errors[r] if j < stride else None)
            if r == 0:  # the window in front is at the start of the sequence; the others go on, one block earlier
                for total, one in zip(starts, adjoints, strict=True):
                    total += one[:batch]
                adjoints = [one[batch:] for one in adjoints]
        self.norms = torch.stack(norms) if norms else None

        pairs, leaves = [], [steps.projected for steps in self.classes if self.projected.requires_grad]
        for steps, error, total in zip(self.classes, errors, totals, strict=True):
            pairs += [(steps.outputs, error), *zip(steps.after, total, strict=True)]
        found = _pull(pairs, [*leaves, *self.weights], allow_unused=True)
        projected = torch.zeros_like(self.projected) if leaves else None
        for r, one in enumerate(found[: len(leaves)]):
            if one is not None:
                projected[r::stride] = one.unflatten(0, (-1, batch))
        return [projected, *starts, *found[len(leaves) :]]


def _pullback_of(cell: Cell | _Layers) -> Callable:
    """What makes of some steps a function that carries adjoints of the states after them, and errors, to those before.

    There may be fewer adjoints than steps; those of the last steps are then zero.
    """
    if type(cell) is TanhCell:
        return functools.partial(_by_hand, cell.W.detach(), True)
    if isinstance(cell, _Layers) and len(cell.weights) == 1:
        W = cell.weights[0][1].detach()
        if isinstance(cell.module, nn.RNN):
            return functools.partial(_by_hand, W, cell.module.nonlinearity == "tanh")
        if isinstance(cell.module, nn.LSTM):
            return functools.partial(_lstm_by_hand, W)
    return _by_autograd


def _by_autograd(steps: _Steps) -> Callable:
    def pull(adjoints: Sequence[Tensor], errors: Tensor | None) -> Sequence[Tensor]:
        adjoints = [_lengthen(one, len(steps.projected)) for one in adjoints]
        injected = [] if errors is None else [(steps.outputs, errors)]
        return _pull([*zip(steps.after, adjoints, strict=True), *injected], steps.before, materialize_grads=True)

    return pull


def _by_hand(W: Tensor, is_tanh: bool, steps: _Steps) -> Callable:
    """For h' = φ(… + W h) as state and output: Wᵀ (φ' ⊙ adjoint), in place, in a third less time than autograd takes."""
    h = steps.after[0].detach()
    slope, scratch = 1 - h**2 if is_tanh else (h > 0).to(h.dtype), torch.empty_like(h)

    def pull(adjoints: Sequence[Tensor], errors: Tensor | None) -> Sequence[Tensor]:
        (one,) = adjoints
        if errors is not None:
            one = _lengthen(one, len(h)) + errors
        scaled = torch.mul(one, slope[: len(one)], out=scratch[: len(one)])
        return [torch.mm(scaled, W, out=one)]

    return pull


def _lstm_by_hand(W: Tensor, steps: _Steps) -> Callable:
    """For c' = f ⊙ c + i ⊙ g and h' = o ⊙ tanh c', with the sums of i, f, g and o in the rows of W in this order."""
    (h, c), tanh_c = (one.detach() for one in steps.before), torch.tanh(steps.after[1].detach())
    i, f, g, o = torch.addmm(steps.projected.detach(), h, W.T).unflatten(1, (4, -1)).unbind(1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    to_c = o * (1 - tanh_c**2)  # ∂h'/∂c'
    to_gates = torch.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o)], 1)
    scratch = torch.empty_like(to_gates)

    def pull(adjoints: Sequence[Tensor], errors: Tensor | None) -> Sequence[Tensor]:
        if errors is not None:
            adjoints = [_lengthen(one, len(h)) + more for one, more in zip(adjoints, (errors, 0), strict=True)]
        of_h, of_c = adjoints
        n = len(of_h)
        of_c.addcmul_(of_h, to_c[:n])
        torch.mul(of_c[:, None], to_gates[:n, :3], out=scratch[:n, :3])
        torch.mul(of_h, to_gates[:n, 3], out=scratch[:n, 3])
        return [torch.mm(scratch[:n].flatten(1), W, out=of_h), of_c.mul_(f[:n])]

    return pull


def _pull(pairs: list[tuple[Tensor, Tensor]], to: Sequence[Tensor], **options) -> Sequence[Tensor | None]:
    """The vector-Jacobian product: the gradients of `to`, from pairs of a value and its gradient."""
    values, gradients = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    return torch.autograd.grad(values, to, gradients, retain_graph=True, **options) if to else ()


def _each(function: Callable, *states: State) -> State:
    """A state made by `function` from the same part of each of `states`."""
    if isinstance(states[0], tuple):
        return tuple(function(*parts) for parts in zip(*states, strict=True))
    return function(*states)


def _lengthen(rows: Tensor, length: int) -> Tensor:
    """Zeros appended, for windows that end later."""
    missing = length - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


@torch.no_grad()
def _check_same(first: list[Tensor], again: list[Tensor]) -> None:
    """Up to rounding, which is no more than the square root of the precision."""
    change = sum(torch.linalg.vector_norm(one - other) ** 2 for one, other in zip(first, again, strict=True)) ** 0.5
    size = sum(torch.linalg.vector_norm(one) ** 2 for one in first) ** 0.5
    if change > torch.finfo(change.dtype).eps ** 0.5 * size:
        raise ValueError(
            "the cell's step must give the same again, each row of a batch by itself, "
            f"but it gave results that are off by {100 * float(change / size):.2g} %"
        )


def _check_fresh(fresh: Tensor | None, inputs: Tensor) -> None:
    if fresh is None:
        return
    kind = f"{fresh.dtype} on {fresh.device}" if isinstance(fresh, Tensor) else type(fresh).__name__
    if kind != f"torch.bool on {inputs.device}":
        raise TypeError(f"fresh must be torch.bool on {inputs.device} (got {kind})")
    if fresh.shape != inputs.shape[1:2]:
        raise ValueError(f"fresh must have shape ({inputs.shape[1]},) for these inputs (got {tuple(fresh.shape)})")


def _check_loss(loss: Tensor) -> None:
    got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    if got != "shape ()":
        raise ValueError(f"loss_of must return a tensor of shape () (got {got})")
    if not loss.requires_grad:
        raise ValueError("loss_of must return a loss with a graph (got one that requires no gradient)")
