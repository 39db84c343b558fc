"""Sequences of different lengths in one padded batch: masks, ends, reversal, and recurrent networks run over them.

A batch (time, batch, …) is padded on the right, where sequences begin at step 0, or on the left, where they end at the last
step. `lengths`, a list or a tensor (batch,) of whole numbers from 1 to time, are in any order. Those on a GPU are copied
from it, for which the program waits.
"""

import numbers
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from shared.recurrent import Cell, State, _check_size, _parts, _starting_state
from shared.recurrent.fast import fast_unroll

Lengths = Int[Tensor, " batch"] | Sequence[int]
Parts = tuple[Tensor, ...]  # of a state

# What one more dense call costs, in steps of one sequence times hidden units. Of 2,000 to 80,000 and no blocks at all, none
# had training steps take clearly less (3 %; 6 % for an LSTM of 32 units), with LSTM, GRU and RNN: 18 to 500 steps, 8 to 64
# sequences with new lengths in each batch, 32 to 200 units, single precision, one thread. At 64 units a call is some 0.9 ms
# for an LSTM, with 3 µs a step.
CALL = 20_000
DENSE = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def length_mask(lengths: Lengths, time: int | None = None, padding_side: str = "right") -> Bool[Tensor, "time batch"]:
    """Which steps are real: True there, False at the padding; on the device of the lengths. `time` is the longest, unless given.

    Raises ValueError if a length is not from 1 to `time`, for a `time` below 1 and for another side than "right" and
    "left", and TypeError if lengths are not whole numbers.
    """
    if time is not None:
        _check_size("time", time)
    where = lengths.device if isinstance(lengths, Tensor) else None
    lengths = _checked(lengths, time)
    time = int(lengths.max()) if time is None else time
    return _real(lengths, time, padding_side).to(where)


def masked_mean(values: Float[Tensor, "time batch"], mask: Bool[Tensor, "time batch"]) -> Float[Tensor, ""]:
    """The mean of the values at which the mask is True: of the loss of each step, it is the loss of a real step.

    The others, NaN and infinite ones too, change neither the mean nor its gradient, which is exactly zero there.

    Raises ValueError if the mask has another shape than the values or no True, and TypeError if it is not of Booleans.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a tensor of torch.bool (got {_described(mask)})")
    if mask.shape != values.shape:
        raise ValueError(f"mask must have shape {tuple(values.shape)}, like values (got {tuple(mask.shape)})")
    if not mask.any():
        raise ValueError("mask must be True somewhere (got False everywhere)")
    return torch.where(mask, values, 0).sum() / mask.sum()  # 0 · NaN would be NaN


def last_outputs(
    outputs: Float[Tensor, "time batch hidden"], lengths: Lengths, padding_side: str = "right"
) -> Float[Tensor, "batch hidden"]:
    """The output at the last real step of each sequence.

    Raises ValueError and TypeError as `reverse_padded` does.
    """
    time, batch, lengths = _checked_with("outputs", outputs, lengths)
    steps = _start(lengths, time, padding_side) + lengths - 1
    return _select(outputs.flatten(0, 1), steps * batch + torch.arange(batch))


def reverse_padded(values: Tensor, lengths: Lengths, padding_side: str = "right") -> Tensor:
    """Each sequence of values (time, batch, …) backwards, at the steps where it was; the padding stays, with what is in it.

    Done twice, it changes nothing. Values may be of any dtype.

    Raises ValueError if a length is not from 1 to time, or if there is not one for each sequence, and for another side
    than "right" and "left"; TypeError if lengths are not whole numbers or values no tensor.
    """
    time, batch, lengths = _checked_with("values", values, lengths)
    t, start = torch.arange(time)[:, None], _start(lengths, time, padding_side)
    steps = torch.where(_real(lengths, time, padding_side), 2 * start + lengths - 1 - t, t)
    rows = (steps * batch + torch.arange(batch)).flatten()
    return _select(values.flatten(0, 1), rows).view(values.shape)


def run_padded(
    rnn: Cell | nn.RNN | nn.GRU | nn.LSTM,
    inputs: Float[Tensor, "time batch input"],
    lengths: Lengths,
    state: State | None = None,
    *,
    padding_side: str = "right",
    method: str | None = None,
) -> tuple[Float[Tensor, "time batch output"], State]:
    """Run a recurrent network over a padded batch: the outputs, zero at the padding, and the state at each sequence's end.

    rnn: a `Cell`, or a module of `torch.nn` with any number of layers and directions. Its hooks do not run.
    inputs: whatever stands at the padding, NaN too, changes nothing, and the gradient there is exactly zero.
    state: where to begin, as the cell or module has it, zeros by default. The last state has the same form. It is the one after
        each sequence's own last step or, of a backward direction, after its own first step.
    method: how. All give the same numbers, those of PackedSequence, but for rounding and which units a dropout takes.
        "padded": one dense call over the longest length. At the padding gates of exactly 1 and 0 keep an LSTM's c, and
            `torch.where` keeps the state of a cell, which goes step by step.
        "blocks": a dense call from each distinct length to the next, of the sequences that still run. No work at padding.
        "packed": PackedSequence itself, which on a CPU leaves the fast kernel. Not for cells.
        None: for cells, blocks. For modules on CUDA, packed. Else blocks that end at some of the lengths: those for which
            calls · CALL / hidden_size + steps of padding is least, so from padded's one block to all of them.

    Raises ValueError for lengths, inputs or a state of the wrong shape or value, for batch_first and proj_size and for another
    side or method, and TypeError for another rnn, for lengths that are not whole numbers and for other dtypes or devices.
    """
    of_cell = isinstance(rnn, Cell)
    state = _starting_state(rnn if of_cell else _interface(rnn), inputs, state)
    time, batch, lengths = _checked_with("inputs", inputs, lengths)
    allowed = ("padded", "blocks") if of_cell else ("padded", "blocks", "packed")
    if method not in (None, *allowed):
        raise ValueError(f"method must be None or one of {', '.join(allowed)} for this rnn (got {method!r})")
    if method is None:
        method = "blocks" if of_cell else "packed" if inputs.is_cuda else None
    plan = _plan(lengths, time, padding_side, _cuts(method, lengths, rnn.hidden_size), inputs.device)
    rows = _select(_with_zeros(inputs.flatten(0, 1)), plan.enter)
    parts = tuple(one.index_select(0 if of_cell else 1, plan.order) for one in _parts(state))
    run = _packed if method == "packed" else _over_cell if of_cell else _over_layers
    rows, parts = run(rnn, rows, parts, plan)
    outputs = _select(_with_zeros(rows), plan.leave).unflatten(0, (time, batch))
    parts = tuple(one.index_select(0 if of_cell else 1, plan.order.argsort()) for one in parts)
    return outputs, parts if isinstance(state, tuple) else parts[0]


def _cuts(method: str | None, lengths: Tensor, hidden_size: int) -> list[int]:
    """The steps at which blocks end, the longest length among them."""
    ends, counts = (one.numpy() for one in lengths.unique(return_counts=True))
    if method is not None:
        return ends.tolist() if method == "blocks" else ends[-1:].tolist()
    # The least of calls and padding, by dynamic programming: with a block from the i-th shortest length to the j-th, each
    # sequence that ends between them is padded up to the latter.
    shorter, steps = (np.cumsum([0, *one]) for one in (counts, counts * ends))
    least, before = np.zeros(len(ends) + 1), np.zeros(len(ends) + 1, int)
    for j, end in enumerate(ends, 1):
        costs = least[:j] + CALL / hidden_size + (shorter[j] - shorter[:j]) * end - (steps[j] - steps[:j])
        before[j] = costs.argmin()
        least[j] = costs[before[j]]
    cuts, j = [], len(ends)
    while j:
        cuts.insert(0, int(ends[j - 1]))
        j = before[j]
    return cuts


class _Plan(NamedTuple):
    """Where each row, one step of one sequence, stands. Sequences are sorted from the longest on, and all begin at step 0.

    A step has rows for the sequences that run: each to the end of the block that it ends in. Rows are in the order of steps.
    """

    order: Tensor  # (batch,): the sequences, sorted
    lengths: Tensor  # (batch,), sorted; on the CPU
    enter: Tensor  # (rows,): the caller's row of each row, or time · batch at the padding
    leave: Tensor  # (time · batch,): the row of each of the caller's, or `rows` at the padding
    reverse: Tensor  # (rows,): the row that a backward direction has in this place
    last: Tensor  # (batch,): the row of each sequence's last step
    padding: Tensor  # (rows, 1): where there is some
    blocks: list[tuple[int, int, int, bool]]  # steps, sequences that run, those that go on, whether none is padded


def _plan(lengths: Tensor, time: int, padding_side: str, cuts: list[int], device: torch.device) -> _Plan:
    batch, start = len(lengths), _start(lengths, time, padding_side)
    order = lengths.argsort(descending=True, stable=True)
    lengths, start = lengths[order], start[order]
    ends = torch.tensor(cuts)
    ends = ends[torch.searchsorted(ends, lengths)]  # of the block in which each sequence does
    runs = torch.arange(cuts[-1])[:, None] < ends
    row = runs.flatten().cumsum(0).view_as(runs) - 1
    t, s = runs.nonzero(as_tuple=True)  # the step and the sequence of each row
    own, rows = lengths[s], len(t)
    real = t < own
    enter = torch.where(real, (start[s] + t) * batch + order[s], time * batch)
    leave = torch.full((time * batch + 1,), rows)
    leave = leave.index_copy_(0, enter, torch.where(real, torch.arange(rows), rows))[:-1]
    reverse = row[torch.where(real, own - 1 - t, t), s]
    tensors = (enter, leave, reverse, row[lengths - 1, torch.arange(batch)], ~real[:, None])
    alive = [int((ends >= cut).sum()) for cut in cuts]
    blocks = [
        (cut - before, here, on, int(lengths[here - 1]) >= cut)
        for before, cut, here, on in zip([0, *cuts[:-1]], cuts, alive, [*alive[1:], 0], strict=True)
    ]
    return _Plan(order.to(device), lengths, *(one.to(device) for one in tensors), blocks)


def _packed(rnn: nn.RNNBase, rows: Tensor, state: Parts, plan: _Plan) -> tuple[Tensor, Parts]:
    packed = pack_padded_sequence(rows.unflatten(0, (-1, len(plan.lengths))), plan.lengths)
    outputs, last = rnn(packed, state if len(state) > 1 else state[0])
    return pad_packed_sequence(outputs)[0].flatten(0, 1), _parts(last)


def _over_cell(cell: Cell, rows: Tensor, state: Parts, plan: _Plan) -> tuple[Tensor, Parts]:
    def whole(state: Parts) -> State:
        return state if isinstance(cell.initial_state(1), tuple) else state[0]

    def kernel(inputs: Tensor, state: Parts, padding: Tensor | None) -> tuple[Tensor, Parts]:
        if padding is None:
            outputs, last = fast_unroll(cell, inputs, whole(state))
            return outputs, _parts(last)
        outputs = []
        for projected_t, padding_t in zip(cell.project(inputs).unbind(0), padding.unbind(0), strict=True):
            y_t, new = cell.step(projected_t, whole(state))
            state = tuple(torch.where(padding_t, *pair) for pair in zip(state, _parts(new), strict=True))
            outputs.append(y_t)
        return torch.stack(outputs), state

    return _in_blocks(kernel, rows, state, plan)


def _over_layers(rnn: nn.RNNBase, rows: Tensor, state: Parts, plan: _Plan) -> tuple[Tensor, Parts]:
    """Layer by layer and direction by direction: the backward one is the forward one on reversed sequences."""
    lasts = []
    for layer in range(rnn.num_layers):
        if layer:
            rows = nn.functional.dropout(rows, rnn.dropout, rnn.training)
        outputs = []
        for backward in (False, True) if rnn.bidirectional else (False,):
            given, own = _select(rows, plan.reverse) if backward else rows, tuple(one[len(lasts)] for one in state)
            found, last = _in_blocks(_dense(rnn, rnn.all_weights[len(lasts)], plan), given, own, plan)
            lasts.append((_select(found, plan.last), *last[1:]))  # h is the output, and c what a block ends with
            outputs.append(_select(found, plan.reverse) if backward else found)
        rows = torch.cat(outputs, -1) if rnn.bidirectional else outputs[0]
    return rows, tuple(torch.stack(kind) for kind in zip(*lasts, strict=True))


def _in_blocks(kernel: Callable, rows: Tensor, state: Parts, plan: _Plan) -> tuple[Tensor, Parts]:
    """Block after block, each with the sequences that still run; of the others, the state after their last block."""
    sizes = [steps * alive for steps, alive, _, _ in plan.blocks]
    outputs, ended = [], []
    for (steps, alive, on, full), *both in zip(plan.blocks, rows.split(sizes), plan.padding.split(sizes), strict=True):
        inputs, padding = (one.unflatten(0, (steps, alive)) for one in both)
        found, state = kernel(inputs, state, None if full else padding)
        outputs.append(found.flatten(0, 1))
        state, out = zip(*(one.split((on, alive - on)) for one in state), strict=True)
        ended.append(out)
    return torch.cat(outputs), tuple(torch.cat(kind[::-1]) for kind in zip(*ended, strict=True))


def _dense(rnn: nn.RNNBase, weights: list[Tensor], plan: _Plan) -> Callable:
    """One layer in one direction by the kernel of torch.nn, with an LSTM's c, but not h, kept over the padding.

    One more input, 1 at the padding and else 0, has a weight so large that there, in any precision, f = σ(z) = 1 and i = 0,
    and their slopes f(1 − f) and i(1 − i) = 0: c stays what it was, and so does its adjoint. Neither h there nor the inputs,
    which are zeros, lead to a result or get an error; in a ReLU network, where h could overflow, the same input keeps it at 0.
    """
    large = torch.finfo(weights[0].dtype).max / 4
    push = {"LSTM": (-large, large, 0.0, 0.0), "RNN_RELU": (-large,)}.get(rnn.mode)  # in torch.nn's order: i, f, c̃, o
    if push and not all(full for *_, full in plan.blocks):
        column = weights[0].new_tensor(push).repeat_interleave(rnn.hidden_size)[:, None]
        wider = [torch.cat([weights[0], column], 1), *weights[1:]]

    def kernel(inputs: Tensor, state: Parts, padding: Tensor | None) -> tuple[Tensor, Parts]:
        pushed = push and padding is not None
        if pushed:
            inputs = torch.cat([inputs, padding], -1)
        state = tuple(one[None] for one in state)
        outputs, *last = DENSE[rnn.mode](
            inputs,
            state if rnn.mode == "LSTM" else state[0],
            wider if pushed else weights,
            *(rnn.bias, 1, 0.0, rnn.training, False, False),  # one layer, no dropout, one direction, time first
        )
        return outputs, tuple(one[0] for one in last)

    return kernel


def _select(rows: Tensor, index: Tensor) -> Tensor:
    return rows.index_select(0, index.to(rows.device))  # of all ways to gather rows, the fastest forward and backward


def _with_zeros(rows: Tensor) -> Tensor:
    """One row more, of zeros: the one that the padding is taken from, and where the errors sent to it are left."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _start(lengths: Tensor, time: int, padding_side: str) -> Tensor:
    """The first real step of each sequence."""
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left' (got {padding_side!r})")
    return torch.zeros_like(lengths) if padding_side == "right" else time - lengths


def _real(lengths: Tensor, time: int, padding_side: str) -> Tensor:
    t, start = torch.arange(time)[:, None], _start(lengths, time, padding_side)
    return (start <= t) & (t < start + lengths)


def _interface(rnn: nn.RNNBase) -> SimpleNamespace:
    """What the check of inputs and state asks of a cell, of a module that can be run layer by layer."""
    if not any(isinstance(rnn, kind) and type(rnn).forward is kind.forward for kind in (nn.RNN, nn.GRU, nn.LSTM)):
        kind = type(rnn).__name__
        raise TypeError(
            f"rnn must be a Cell, or a torch.nn.RNN, GRU or LSTM with the forward it has there (got {kind})"
        )
    if rnn.batch_first:
        raise ValueError(
            "batch_first of rnn must be False (got True): inputs are (time, batch, input), so transpose them"
        )
    if rnn.proj_size:
        why = "h must have hidden_size units, so put a torch.nn.Linear after rnn"
        raise ValueError(f"proj_size of rnn must be 0 (got {rnn.proj_size}): {why}")

    def initial_state(batch: int) -> State:
        zeros = rnn.all_weights[0][0].new_zeros(len(rnn.all_weights), batch, rnn.hidden_size)
        return (zeros, zeros) if isinstance(rnn, nn.LSTM) else zeros

    return SimpleNamespace(input_size=rnn.input_size, initial_state=initial_state)


def _checked(lengths: Lengths, time: int | None, batch: int | None = None) -> Tensor:
    """The lengths as a tensor on the CPU."""
    values = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    whole = isinstance(values, list | tuple) and all(isinstance(one, numbers.Integral) for one in values)
    if not whole or any(isinstance(one, bool) for one in values):
        raise TypeError(f"lengths must be whole numbers, in a list or a tensor (batch,) (got {_described(lengths)})")
    if not values or (batch is not None and len(values) != batch):
        wanted = "at least one" if not batch else f"one for each of the {batch} sequences"
        raise ValueError(f"lengths must be {wanted} (got {len(values)})")
    for b, one in enumerate(values):
        if one < 1 or (time is not None and one > time):
            most = "" if time is None else f" and at most {time}, the number of time steps"
            raise ValueError(f"lengths must be at least 1{most} (got {one} for sequence {b})")
    return torch.tensor(values)


def _checked_with(name: str, values: Tensor, lengths: Lengths) -> tuple[int, int, Tensor]:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor (got {_described(values)})")
    if values.ndim < 2:
        raise ValueError(f"{name} must have shape (time, batch, …) (got {tuple(values.shape)})")
    return *values.shape[:2], _checked(lengths, *values.shape[:2])


def _described(value) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
