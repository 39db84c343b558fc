"""Fast weights without a matrix for each step: attention to the states of a chunk, and a matrix from chunk to chunk.

In a chunk that begins with the matrix A, step i (counted from 0) reads, with d(j) = η λ^j,

    A_i q = λ^i A q + Σ_{j<i} d(i − 1 − j) (h_j · q) h_j.

x̄ is the adjoint ∂L/∂x of x. A read r = A_i q sends back q̄ = A_iᵀ r̄, which is a read with r̄, and Ā += λ^i r̄ qᵀ. To each state
that it read it sends h̄_j += d(i − 1 − j) ((q · h_j) r̄ + (r̄ · h_j) q). A state collects what the later reads of its chunk
send it when its turn comes: one product of these weights, known by then, with the rows q and r̄ of all of them. What later
chunks send comes through the matrix after the chunk: h̄_j += d(n − 1 − j) (Ā + Āᵀ) h_j.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from shared.fast_weights.cell import ACTIVATIONS, FastState, FastWeightsCell, _check_count
from shared.recurrent import _starting_state

Hidden = Float[Tensor, "batch hidden"]
Matrix = Float[Tensor, "batch hidden hidden"]
Series = Float[Tensor, "time batch hidden"]
States = Float[Tensor, "batch steps hidden"]

EPSILON = 1e-5  # of torch's layer_norm
_norm_backward = torch.ops.aten.native_layer_norm_backward.default


def chunked_unroll(
    cell: FastWeightsCell,
    inputs: Float[Tensor, "time batch input"],
    state: FastState | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Series, FastState]:
    """What `unroll` does with a FastWeightsCell: the same results and gradients, in less time and memory.

    chunk: steps whose states are attended to one by one before they are written into a matrix. 1 is the matrix form of
        the network, a number of at least the steps its attention form. By default it is the number of units, so that the
        matrices take no more memory than the states.
    Kept for the backward pass are 2 + `inner_steps` numbers a unit, step and sequence, and a matrix for each sequence and
    chunk but the last; while it runs, it fills some ten numbers more, and 2 · chunk² · `inner_steps` a sequence. Second
    derivatives and `torch.func.grad` are right, but take the steps one by one. Forward mode and `torch.func.vmap` raise an
    error, and autocast has not been provided for: they need `unroll`.

    Raises what `unroll` does, TypeError for another cell, ValueError for a chunk that is no whole number of at least 1, and
    FloatingPointError if states are not finite, naming the step at which that began.
    """
    if type(cell) is not FastWeightsCell:
        raise TypeError(f"cell must be a FastWeightsCell (got {type(cell).__name__})")
    h, A = _starting_state(cell, inputs, state)
    chunk = cell.hidden_size if chunk is None else chunk
    _check_count("chunk", chunk)
    given = cell.project(inputs), cell.W, cell.gain, cell.bias, h, None if state is None else A
    rule = _Rule(cell.inner_steps, cell.decay, cell.rate, cell.nonlinearity)
    outputs, A, *_ = _Chunked.apply(*given, rule, min(chunk, len(inputs)))
    _check_finite(outputs)
    return outputs, (outputs[-1].clone(), A)


class _Rule(NamedTuple):
    """The numbers of a cell that are no parameters, as they were in the forward pass."""

    inner_steps: int
    decay: float
    rate: float
    nonlinearity: str

    def activated(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.nonlinearity](z)

    def slope(self, activated: Tensor) -> Tensor:
        """φ'(z), from φ(z)."""
        return activated.sign() if self.nonlinearity == "relu" else 1 - activated.square()

    def decays(self, steps: int, like: Tensor) -> Float[Tensor, " steps"]:
        """λ^j for j = 0 … steps − 1."""
        return self.decay ** torch.arange(steps, dtype=like.dtype, device=like.device)


class _Chunked(Function):
    @staticmethod
    def forward(
        projected: Series, W: Tensor, gain: Tensor | None, bias: Tensor, h_0: Hidden, A_0: Matrix | None, rule, chunk
    ) -> tuple[Tensor, ...]:
        h, sums = torch.empty_like(projected), projected.new_empty(len(projected), rule.inner_steps, *h_0.shape)
        d = rule.rate * rule.decays(chunk, h).flip(0)  # the last i of them belong to the states before step i
        h_t, A, W_T, matrices = h_0, A_0, W.T.contiguous(), []
        for in_chunk in zip(*(one.split(chunk) for one in (h, projected, sums)), strict=True):
            states, n = in_chunk[0].transpose(0, 1), len(in_chunk[0])
            for i, (new_h, projected_t, sums_t) in enumerate(zip(*(one.unbind(0) for one in in_chunk), strict=True)):
                z = torch.addmm(projected_t, h_t, W_T)
                h_t = rule.activated(z)
                for total in sums_t.unbind(0):
                    _add_read(total.copy_(z), h_t, states[:, :i], d[chunk - i :], A, rule.decay**i)
                    h_t = rule.activated(_normalised(total, gain, bias)[0])
                new_h.copy_(h_t)
            matrices.append(A)
            A = _carried(A, rule.decay**n, states * d[chunk - n :, None], states)
        return h, A, sums, *matrices[1:]

    @staticmethod
    def setup_context(ctx, inputs, output):
        *given, ctx.rule, ctx.chunk = inputs
        h, _, *kept = output
        ctx.save_for_backward(*given, h, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, errors, A_bar, *_):
        rule, chunk, S, saved = ctx.rule, ctx.chunk, ctx.rule.inner_steps, ctx.saved_tensors
        given, h, sums, matrices = saved[:6], saved[6], saved[7], saved[8:]
        if torch.is_grad_enabled():
            return *_backward_by_steps(rule, given, (errors, A_bar)), None, None
        projected, W, gain, bias, h_0, A_0 = given

        # of all steps at once; reads are counted through, S to a step
        sums = sums.flatten(0, 1)
        h_before = torch.cat([h_0[None], h[:-1]])
        preliminary = rule.activated(projected + h_before @ W.T)
        out, mean, rstd = _normalised(sums, gain, bias)
        activated = rule.activated(out)
        queries = torch.cat([preliminary[:, None], activated.unflatten(0, (-1, S))[:, :-1]], 1).flatten(0, 1)
        slope, out_bar = rule.slope(preliminary), rule.slope(activated)  # h̄ˢ⁺¹ will be the second factor of the latter
        rows = torch.stack([queries, torch.empty_like(queries)], 1)  # q and r̄ of each read, r̄ as soon as it is known
        z_bar = torch.zeros_like(h)
        h_bar = torch.cat([torch.zeros_like(h_0)[None], z_bar if errors is None else errors])  # of h_0, h_1, … so far
        h_bars, z_bars, slopes = (one.unbind(0) for one in (h_bar, z_bar, slope))
        out_bars, r_bars = out_bar.unbind(0), rows[:, 1].unbind(0)
        norms = [] if gain is None else list(zip(*(one.unbind(0) for one in (sums, mean, rstd)), strict=True))
        decays, step = rule.decays(chunk, h), torch.arange(chunk, device=h.device)
        d = rule.rate * decays.flip(0)
        by_pair = rule.rate * decays[(step - step[:, None] - 1).clamp(min=0)]  # d(i − 1 − j) in row j, where i > j

        for start, A in reversed(list(zip(range(0, len(h), chunk), [A_0, *matrices], strict=True))):
            states = h[start : start + chunk].transpose(0, 1)
            n, A_T = states.shape[1], None if A is None else A.mT
            reads = slice(S * start, S * (start + n))
            q, of_chunk = queries[reads].transpose(0, 1), rows[reads].flatten(0, 1).transpose(0, 1)
            if A_bar is not None:  # of the matrix after this chunk
                h_bar[start + 1 :][:n] += torch.bmm(states * d[chunk - n :, None], A_bar + A_bar.mT).transpose(0, 1)
            weights = h.new_empty(*states.shape[:2], n * S, 2)  # of q and r̄ of each read in what a state collects
            weights[..., 1] = (torch.bmm(states, q.mT).unflatten(2, (n, S)) * by_pair[:n, :n, None]).flatten(2)
            of_state, of_q = weights.flatten(2)[:, :, None].unbind(1), weights[..., 0].unbind(2)
            for i in reversed(range(n)):
                t, later = start + i, 2 * S * (i + 1)
                q_bar = h_bars[t + 1]  # of the last read's result, which is h_t
                if i + 1 < n:
                    q_bar[:, None].baddbmm_(of_state[i][..., later:], of_chunk[:, later:])
                for k in reversed(range(S * t, S * (t + 1))):
                    r_bar = out_bars[k].mul_(q_bar)
                    if gain is not None:
                        total, *moments = norms[k]
                        r_bar = _norm_backward(r_bar, total, bias.shape, *moments, gain, bias, [True, False, False])[0]
                    r_bars[k].copy_(r_bar)
                    z_bars[t].add_(r_bar)
                    q_bar = torch.zeros_like(r_bar)
                    weights_of_q = _add_read(q_bar, r_bar, states[:, :i], d[chunk - i :], A_T, rule.decay**i)
                    of_q[k - S * start][:, :i] = weights_of_q
                z_bars[t].addcmul_(q_bar, slopes[t])
                h_bars[t].addmm_(z_bars[t], W)
            if A is not None:
                factors = decays[:n].repeat_interleave(S)[:, None]
                A_bar = _carried(A_bar, rule.decay**n, rows[reads, 1].transpose(0, 1) * factors, q)

        W_bar = z_bar.flatten(0, 1).T @ h_before.flatten(0, 1)
        gain_bar, bias_bar = None, out_bar.sum((0, 1))
        if gain is not None:
            gain_bar = _norm_backward(out_bar, sums, bias.shape, mean, rstd, gain, bias, [False, True, False])[1]
        return z_bar, W_bar, gain_bar, bias_bar, h_bar[0], None if A_0 is None else A_bar, None, None


def _normalised(sums, gain, bias):
    if gain is None:
        return sums + bias, None, None
    return torch.native_layer_norm(sums, bias.shape, gain, bias, EPSILON)


def _add_read(
    r: Hidden, q: Hidden, states: States, d: Float[Tensor, " steps"], A: Matrix | None, decayed: float
) -> Float[Tensor, "batch steps"]:
    """Add to r what q reads from the states and from the matrix before them; the weight of each state in it.

    A product with a row on the left takes half the time, or less, of the same product with a column on the right.
    """
    r, q = r[:, None], q[:, None]
    weights = torch.bmm(q, states.mT).mul_(d)
    r.baddbmm_(weights, states)
    if A is not None:
        r.baddbmm_(q, A.mT, alpha=decayed)
    return weights[:, 0]


def _carried(A, decayed, left, right):
    """λⁿ A + Σ_i left_i right_iᵀ, of (batch, n, hidden) each."""
    if A is None:
        return torch.bmm(left.mT, right)
    return torch.baddbmm(A, left.mT, right, beta=decayed)


def _backward_by_steps(rule, given, adjoints):
    """The same gradients in a form that can itself be differentiated, from the cell's own steps."""
    there = [one is not None for one in given]

    def run(*tensors):
        tensors = iter(tensors)
        projected, W, gain, bias, h, A = (next(tensors) if one else None for one in there)
        cell = SimpleNamespace(W=W, gain=gain, bias=bias, hidden_size=len(bias), **rule._asdict())
        state, outputs = (h, h.new_zeros(*h.shape, len(bias)) if A is None else A), []
        for projected_t in projected.unbind(0):
            y_t, state = FastWeightsCell.step(cell, projected_t, state)
            outputs.append(y_t)
        return torch.stack(outputs), state[1]

    results, pull_back = torch.func.vjp(run, *[one for one in given if one is not None])
    adjoints = (torch.zeros_like(one) if bar is None else bar for one, bar in zip(results, adjoints, strict=True))
    found = iter(pull_back(tuple(adjoints)))
    return tuple(next(found) if one else None for one in there)


def _check_finite(h):
    if torch.isfinite(h.sum()):
        return
    bad = ~torch.isfinite(h).all(2)
    if bad.any():  # and not the sum alone
        step, sequences = int(bad.any(1).nonzero()[0]), int(bad.any(0).sum())
        raise FloatingPointError(
            f"the states are not finite from step {step} of {len(h)} on (counted from 0, in {sequences} of "
            f"{h.shape[1]} sequences); layer normalisation, a smaller rate or a smaller decay keeps them small"
        )
