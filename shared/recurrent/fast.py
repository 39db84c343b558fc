"""Whole sequences in less time: backward passes written by hand, and a scan for cells that are linear in their state.

x̄ is the adjoint ∂L/∂x of x. The error e_t is what the loss itself sends to h_t, and δ_t = z̄_t that of the sums z_t.
"""

import math
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

from shared.recurrent import Cell, State, TanhCell, _parts, _starting_state, unroll
from shared.recurrent.gated import Hidden, LinearGatedCell, LSTMCell

Inputs = Float[Tensor, "time batch input"]
Series = Float[Tensor, "time batch hidden"]

SMALL = 4096  # numbers; with fewer in a step, calling an operation takes longer than what it computes

# φ'(z) ⊙ g, from g and φ(z): the derivatives that autograd uses, each in one pass and into memory that is there
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def fast_unroll(
    cell: Cell, inputs: Float[Tensor, "time batch input"], state: State | None = None
) -> tuple[Float[Tensor, "time batch output"], State]:
    """What `unroll` does, with the same arguments, results, gradients and errors, in less time for some cells.

    - `TanhCell`, `LSTMCell`: the forward pass keeps inputs and states, and no graph. The backward pass computes gates and slopes for
        all steps at once, goes back through the recurrence with as few operations as it can, and gets the gradient of
        each weight by one product over all steps. It keeps one number a unit and step, or two, of an LSTM, where
        `unroll` keeps seven; while it runs, it fills about ten more.
    - `MinGRUCell`, `MinLSTMCell` and cells derived from them that keep their step: `linear_scan`. It keeps what `unroll` does.
    - Any other cell, and a subclass of the first two, whose step may be another: `unroll` itself.

    It pays most where steps are small and many, since `unroll` then spends its time on bookkeeping. Second derivatives and
    `torch.func.grad` are right, but take the way back step by step, and gain nothing. Forward mode, autocast and, for the
    first two cells, `torch.func.vmap` raise an error: they need `unroll`.
    """
    state = _starting_state(cell, inputs, state)
    if type(cell) is TanhCell:
        return _Tanh.apply(inputs, cell.U, cell.W, cell.b, state)
    if type(cell) is LSTMCell:
        outputs, h, c, _ = _LSTM.apply(inputs, cell.U, cell.W, cell.b, *state)
        return outputs, (h, c)
    if isinstance(cell, LinearGatedCell) and type(cell).step is LinearGatedCell.step:
        outputs = linear_scan(*cell.coefficients(cell.project(inputs)), state)
        return outputs, outputs[-1].clone()
    return unroll(cell, inputs, state)


class _Tanh(Function):
    """z_t = U x_t + W h_{t−1} + b, h_t = φ(z_t)."""

    @staticmethod
    def forward(x: Inputs, U: Tensor, W: Tensor, b: Tensor, h_0: Hidden) -> tuple[Series, Hidden]:
        h, h_t, W_T = linear(x, U, b), h_0, W.T.contiguous()
        for z_t in h.unbind(0):
            h_t = z_t.addmm_(h_t, W_T).tanh_()
        return h, h_t.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx, errors, h_bar):
        *given, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _backward_by_steps(TanhCell, given, (errors, h_bar))
        x, U, W, _, h_0 = given
        delta = 1 - h.square()  # φ'(z_t), which h̄_t will make δ_t
        errors = [torch.zeros_like(h_0), *errors.unbind(0)]
        h_bar = h_bar + errors.pop()
        for delta_t in reversed(delta.unbind(0)):
            delta_t.mul_(h_bar)  # δ_t = φ'(z_t) ⊙ h̄_t
            torch.addmm(errors.pop(), delta_t, W, out=h_bar)  # h̄_{t−1} = e_{t−1} + Wᵀ δ_t
        return *_gradients(ctx, delta, x, U, _shifted(h_0, h)), h_bar


class _LSTM(Function):
    """z_t = U x_t + W h_{t−1} + b; i, f, o = σ(z_t), c̃_t = φ(z_t); c_t = f ⊙ c_{t−1} + i ⊙ c̃_t, h_t = o ⊙ φ(c_t)."""

    @staticmethod
    def forward(
        x: Inputs, U: Tensor, W: Tensor, b: Tensor, h_0: Hidden, c_0: Hidden
    ) -> tuple[Series, Hidden, Hidden, Series]:
        z, h_t, c_t, W_T = linear(x, U, b), h_0, c_0, W.T.contiguous()
        h, c = (z.new_empty(len(x), *h_0.shape) for _ in range(2))
        gates, candidate = torch.empty_like(z[0]), torch.empty_like(h_0)
        i, f, _, o = gates.chunk(4, -1)
        for z_t, z_candidate, new_h, new_c in zip(
            *(one.unbind(0) for one in (z, z.chunk(4, -1)[2], h, c)), strict=True
        ):
            z_t.addmm_(h_t, W_T)
            torch.sigmoid(z_t, out=gates)  # of the candidate too, in vain: one call in place of two
            torch.tanh(z_candidate, out=candidate)
            c_t = torch.mul(f, c_t, out=new_c).addcmul_(i, candidate)
            h_t = torch.tanh(c_t, out=new_h).mul_(o)
        return h, h_t.clone(), c_t.clone(), c

    @staticmethod
    def setup_context(ctx, inputs, output):
        h, _, _, c = output
        ctx.save_for_backward(*inputs, h, c)
        ctx.mark_non_differentiable(c)

    @staticmethod
    def backward(ctx, errors, h_bar, c_bar, _):
        *given, h, c = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _backward_by_steps(LSTMCell, given, (errors, h_bar, c_bar))
        x, U, W, b, h_0, c_0 = given
        h_before, phi_c = _shifted(h_0, h), torch.tanh(c)
        z = linear(x, U, b).contiguous()
        z.flatten(0, 1).addmm_(h_before.flatten(0, 1), W.T)
        candidate = torch.tanh(z.chunk(4, -1)[2])
        i, f, _, o = z.sigmoid_().chunk(4, -1)
        kept, to_c = f.clone(), o - o * phi_c.square()  # ∂c_t/∂c_{t−1} = f, ∂h_t/∂c_t = o ⊙ φ'(c_t)

        # δ_t but for its factor c̄_t, or h̄_t in the rows of o; in the memory of the gates, of which no later line reads
        delta, (delta_i, delta_f, delta_candidate, delta_o) = z, z.chunk(4, -1)
        _tanh_backward(i, candidate, grad_input=delta_candidate)  # ∂c_t/∂z_t = i ⊙ φ'(z_t)
        _sigmoid_backward(candidate, i, grad_input=delta_i)  # ∂c_t/∂z_t = c̃_t ⊙ σ'(z_t)
        _sigmoid_backward(_shifted(c_0, c), f, grad_input=delta_f)  # ∂c_t/∂z_t = c_{t−1} ⊙ σ'(z_t)
        _sigmoid_backward(phi_c, o, grad_input=delta_o)  # ∂h_t/∂z_t = φ(c_t) ⊙ σ'(z_t)

        errors = [torch.zeros_like(h_0), *errors.unbind(0)]
        h_bar, c_bar = h_bar + errors.pop(), c_bar.clone()
        of_c, c_bar_of_all = delta.unflatten(-1, (4, -1))[:, :, :3], c_bar[:, None]
        steps = (to_c, of_c, delta_o, kept, delta)
        for to_c_t, of_c_t, of_h_t, kept_t, delta_t in zip(*(reversed(one.unbind(0)) for one in steps), strict=True):
            c_bar.addcmul_(h_bar, to_c_t)  # c̄_t = f_{t+1} ⊙ c̄_{t+1} + o ⊙ φ'(c_t) ⊙ h̄_t
            of_c_t.mul_(c_bar_of_all)
            of_h_t.mul_(h_bar)
            c_bar.mul_(kept_t)
            torch.addmm(errors.pop(), delta_t, W, out=h_bar)  # h̄_{t−1} = e_{t−1} + Wᵀ δ_t
        return *_gradients(ctx, delta, x, U, h_before), h_bar, c_bar


def _shifted(first: Hidden, states: Series) -> Series:
    """The states before each step, from the first of them and those after each step."""
    return torch.cat([first[None], states[:-1]])


def _gradients(ctx, delta: Tensor, x: Inputs, U: Tensor, h_before: Series) -> tuple[Tensor | None, ...]:
    """x̄_t = Uᵀ δ_t, Ū = Σ_t δ_t x_tᵀ, W̄ = Σ_t δ_t h_{t−1}ᵀ and b̄ = Σ_t δ_t: a product each, of all steps at once."""
    rows, (of_x, of_U, of_W, of_b) = delta.flatten(0, 1), ctx.needs_input_grad[:4]
    return (
        delta @ U if of_x else None,
        rows.T @ x.flatten(0, 1) if of_U else None,
        rows.T @ h_before.flatten(0, 1) if of_W else None,
        rows.sum(0) if of_b else None,
    )


def _backward_by_steps(kind: type[Cell], given: list[Tensor], adjoints: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same gradients in a form that can itself be differentiated, from the cell's own steps."""

    def run(x: Inputs, U: Tensor, W: Tensor, b: Tensor, *state: Hidden) -> tuple[Tensor, ...]:
        cell, outputs = SimpleNamespace(U=U, W=W, b=b), []  # all that the steps read
        state = state if len(state) > 1 else state[0]
        for projected_t in kind.project(cell, x).unbind(0):
            y_t, state = kind.step(cell, projected_t, state)
            outputs.append(y_t)
        return torch.stack(outputs), *_parts(state)

    return torch.func.vjp(run, *given)[1](adjoints)


def linear_scan(a: Series, u: Series, state: Hidden) -> Series:
    """s_t = a_t ⊙ s_{t−1} + u_t of all steps t, from s_0 = `state`: a recurrence without a loop over its T steps.

    About √T blocks of √T steps: step by step from zero, but in all blocks at once; then, block by block, what the state
    before adds to them. That is some 3√T operations and twice the arithmetic of the loop, whose numbers they give but for
    rounding where |a| ≤ 1, as no number is divided by another. Where a step is large enough to keep a processor busy, there
    is one step to a block, which is the loop. Differentiable any number of times, but not by forward mode.

    Raises ValueError for other shapes or no steps, and TypeError for what is no real tensor, or not of a's dtype and device.
    """
    for name, value in (("a", a), ("u", u), ("state", state)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a tensor of real floating-point numbers (got {kind})")
        if (value.dtype, value.device) != (a.dtype, a.device):
            raise TypeError(f"{name} must be {a.dtype} on {a.device}, like a (got {value.dtype} on {value.device})")
    if a.ndim != 3 or len(a) == 0:
        raise ValueError(f"a must have shape (time, batch, hidden) with at least one time step (got {tuple(a.shape)})")
    for name, value, shape in (("u", u, a.shape), ("state", state, a.shape[1:])):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)} for this a (got {tuple(value.shape)})")
    return _LinearScan.apply(a, u, state)


class _LinearScan(Function):
    """s̄_t = e_t + a_{t+1} ⊙ s̄_{t+1}: again a linear scan, of the errors, from the last step to the first.

    u_t enters s_t as it is, and a_t as a_t ⊙ s_{t−1}: ū_t = s̄_t and ā_t = s̄_t ⊙ s_{t−1}; the state before all is worth a_1 ⊙ s̄_1.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Series, u: Series, state: Hidden) -> Series:
        block = math.isqrt(len(a)) if state.numel() < SMALL else 1
        whole = len(a) // block * block
        s, share = u.clone(), a.clone()  # share: of the state before the block, what is left of it in s_t
        a_in, s_in, share_in = (one[:whole].unflatten(0, (-1, block)) for one in (a, s, share))
        for j in range(1, block):
            s_in[:, j].addcmul_(a_in[:, j], s_in[:, j - 1])
            share_in[:, j].mul_(share_in[:, j - 1])
        for s_block, share_block in zip(s_in.unbind(0), share_in.unbind(0), strict=True):
            state = s_block.addcmul_(share_block, state)[-1]
        for t in range(whole, len(a)):
            state = s[t].addcmul_(a[t], state)
        return s

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, _, state = inputs
        ctx.save_for_backward(a, state, output)

    @staticmethod
    def backward(ctx, errors):
        a, state, s = ctx.saved_tensors
        a_after = a.roll(-1, 0)  # a_{t+1}; at the last step, where there is none, it meets a state of zeros
        s_bar = linear_scan(a_after.flip(0), errors.flip(0), torch.zeros_like(state)).flip(0)
        return s_bar * _shifted(state, s), s_bar, a[0] * s_bar[0]
