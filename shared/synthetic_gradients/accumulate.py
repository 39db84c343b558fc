"""BP(λ): targets for a predictor of gradients that mix bootstraps of all lengths, in a backward and in a forward form.

The target for the state s_t lies between two ends. With λ = 0 it is a bootstrap after one step, with λ = 1 the gradient of all later
losses itself. Looking back from the end of a sequence it is a recursion (`lambda_targets`); a trace that travels with the state gives
the same gradient of a linear predictor with nothing that runs backwards through time (`accumulate_lambda`). The idea is that of
Pemberton and Costa (2024), "BP(λ): online learning via synthetic gradients"; the equations here are derived in chapter 13.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shared.recurrent import Cell, State, _check_kind, _parts, _starting_state
from shared.synthetic_gradients.predictors import GradientPredictor
from shared.synthetic_gradients.stack import _check_losses
from shared.synthetic_gradients.windows import _predict, _side_by_side

Losses = Callable[[Tensor, int], Float[Tensor, " batch"]]


class LambdaTargets(NamedTuple):
    """The states before each step, their tensors side by side, and for each what a predictor should say of it."""

    states: Float[Tensor, "time batch features"]
    targets: Float[Tensor, "time batch features"]


class Accumulated(NamedTuple):
    """The mean loss of all steps together, and the last state and trace, with which the sequence can be continued."""

    loss: Float[Tensor, ""]
    state: State
    trace: Float[Tensor, "batch features features inputs"]


class _Step(NamedTuple):
    """A step with a graph of its own: the state before it, as leaves, the one after it, side by side, and its losses."""

    before: tuple[Tensor, ...]
    after: Tensor
    losses: Tensor

    def pull(self, ahead: Tensor) -> Float[Tensor, "batch features"]:
        """Each example's gradient for the state before: of its loss, and of what `ahead` says for the state after."""
        objective = self.losses.sum() + (self.after * ahead).sum()
        found = torch.autograd.grad(objective, self.before, retain_graph=True, allow_unused=True)
        return _side_by_side([_dense(g, part, part.shape) for g, part in zip(found, self.before, strict=True)])

    def jacobian(self) -> Float[Tensor, "after batch before"]:
        """The derivatives of the state after by the state before, of each example; examples must not touch each other."""
        batch, width = self.after.shape
        basis = torch.eye(width, dtype=self.after.dtype, device=self.after.device)[:, None].expand(-1, batch, -1)
        found = torch.autograd.grad(self.after, self.before, basis, is_grads_batched=True, allow_unused=True)
        rows = [_dense(g, part, (width, *part.shape)) for g, part in zip(found, self.before, strict=True)]
        return torch.cat([row.flatten(2) for row in rows], 2)


@torch.enable_grad()
def lambda_targets(
    cell: Cell,
    inputs: Float[Tensor, "time batch input"],
    losses_of: Losses,
    predictor: torch.nn.Module,
    lam: float,
    discount: float = 1.0,
    state: State | None = None,
    *,
    last: bool = True,
) -> LambdaTargets:
    """The λ-targets of all states before the end, by going back through the sequence; nothing is accumulated.

    G_t = J_{t+1}ᵀ(∂L_{t+1}/∂s_{t+1} + γ[(1 − λ) g(s_{t+1}) + λ G_{t+1}]), where J_{t+1} is the derivative of s_{t+1} by s_t and
    g the predictor: each example's gradient of its later losses, the one k steps on with the factor γ^(k − 1).

    losses_of: called as `losses_of(y_t, t)`, t = 0, 1, …, gives each example's loss at a step.
    predictor: any, called as `predictor(h, None)`, where h is the state, its tensors side by side, (batch, features).
    lam, discount: λ and γ, from 0 to 1.
    state: where to begin; the cell's initial state by default.
    last: whether nothing follows the last step; otherwise the predictor speaks for what does.

    λ = 1 with `last` gives the gradients of backpropagation through time, and does not depend on the predictor. Time and memory are
    those of backpropagation. Train a predictor with `predictor.error(states.flatten(0, 1), None, targets.flatten(0, 1), None)`.

    Raises ValueError and TypeError as `shared.recurrent.unroll` does, ValueError for λ or γ outside 0 … 1, for a predictor that does
    not suit the state, and for losses that are not one for each example.
    """
    state = _checked(cell, inputs, lam, discount, state)
    projected, steps = cell.project(inputs).detach().unbind(0), []
    for t, projected_t in enumerate(projected):
        step, state = _take(cell, projected_t, state, losses_of, t)
        steps.append(step)
    states = torch.stack([_side_by_side(step.before).detach() for step in steps])
    targets, end = [], torch.zeros_like(states[0]) if last else _predict(predictor, _side_by_side(_parts(state)))
    for t in range(len(steps) - 1, -1, -1):
        ahead = end if t == len(steps) - 1 else (1 - lam) * _predict(predictor, states[t + 1]) + lam * targets[-1]
        targets.append(steps[t].pull(discount * ahead))
    return LambdaTargets(states, torch.stack(targets[::-1]))


@torch.enable_grad()
def accumulate_lambda(
    cell: Cell,
    inputs: Float[Tensor, "time batch input"],
    losses_of: Losses,
    predictor: GradientPredictor,
    lam: float,
    discount: float = 1.0,
    state: State | None = None,
    *,
    trace: Tensor | None = None,
    last: bool = True,
) -> Accumulated:
    """Accumulate the gradient of a linear predictor for its λ-targets, with nothing that runs backwards through time.

    It is that of the predictor's `error` against `lambda_targets`, a mean over batch and features, summed over time steps. Each
    step's TD error d_t = J_{t+1}ᵀ(∂L_{t+1}/∂s_{t+1} + γ g(s_{t+1})) − g(s_t) is credited at once to s_t and all states before it,
    by an eligibility trace e_t = γλ J_t e_{t−1} + I ⊗ [s_t, 1]. That is features² · (features + 1) numbers for each example, however
    long the sequence, and about features⁴ multiplications a step. Gradients of the cell are not touched.

    losses_of, lam, discount, last: as in `lambda_targets`.
    predictor: a `GradientPredictor` without hidden layers and classes, whose features are those of the state.
    state, trace: of what came before, as returned; the trace is (batch, features, features, features + 1). By default the cell's
        initial state, for which no predictor is trained (as in `window_backward`), and an empty trace; with a state and no trace,
        credit goes back to that state.

    Raises ValueError and TypeError as `lambda_targets`, and for another predictor or trace. Then no gradient has been touched.
    """
    fresh, state = state is None, _checked(cell, inputs, lam, discount, state)
    width, batch = _side_by_side(_parts(state)).shape[1], inputs.shape[1]
    _check_linear(predictor, width)
    linear, like = predictor.network[0], _parts(state)[0]
    if fresh and trace is not None:
        raise ValueError("state must be given with a trace: both are of the same moment (got a trace alone)")
    trace = _starting_trace(trace, like.new_zeros(()).expand(batch, width, width, width + 1))
    total, loss = like.new_zeros(width, width + 1), like.new_zeros(())
    for t, projected_t in enumerate(cell.project(inputs).detach().unbind(0)):
        step, state = _take(cell, projected_t, state, losses_of, t)
        before = _side_by_side(step.before).detach()
        ahead = discount * _predict(predictor, step.after.detach())
        d = step.pull(torch.zeros_like(ahead) if last and t == len(inputs) - 1 else ahead) - _predict(predictor, before)
        if t or not fresh:
            trace.diagonal(dim1=1, dim2=2).add_(torch.cat((before, torch.ones_like(before[:, :1])), 1)[:, :, None])
        total += torch.einsum("bm,bmif->if", d, trace)
        trace = torch.einsum("mbk,bkif->bmif", discount * lam * step.jacobian(), trace)
        loss += step.losses.detach().mean()
    for parameter, found in ((linear.weight, total[:, :-1]), (linear.bias, total[:, -1])):
        gradient = -2 / (batch * width) * found
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return Accumulated(loss, state, trace)


def _take(cell: Cell, projected_t: Tensor, state: State, losses_of: Losses, t: int) -> tuple[_Step, State]:
    """A step from a state that is cut off from all before it, and the state after it, without a graph."""
    before = tuple(part.detach().requires_grad_() for part in _parts(state))
    y_t, after = cell.step(projected_t, before if isinstance(state, tuple) else before[0])
    losses = losses_of(y_t, t)
    _check_losses(losses, len(before[0]))
    parts = tuple(part.detach() for part in _parts(after))
    return _Step(before, _side_by_side(_parts(after)), losses), parts if isinstance(after, tuple) else parts[0]


def _dense(gradient: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_zeros(shape) if gradient is None else gradient


def _checked(cell: Cell, inputs: Tensor, lam: float, discount: float, state: State | None) -> State:
    """Where to begin, once everything but the predictor has been found to suit."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be a Cell (got {type(cell).__name__})")
    for name, value in (("lam", lam), ("discount", discount)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a number from 0 to 1 (got {value!r})")
    return _starting_state(cell, inputs, state)


def _starting_trace(trace: Tensor | None, like: Tensor) -> Tensor:
    """A copy of the trace, once it has been found to suit, or an empty one."""
    if trace is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    if not isinstance(trace, Tensor):
        raise TypeError(f"trace must be a tensor (got {type(trace).__name__})")
    if trace.shape != like.shape:
        raise ValueError(f"trace must have shape {tuple(like.shape)} for these inputs (got {tuple(trace.shape)})")
    _check_kind("trace", trace, like)
    return trace.detach().clone()


def _check_linear(predictor: GradientPredictor, width: int) -> None:
    if not isinstance(predictor, GradientPredictor):
        raise TypeError(f"predictor must be a GradientPredictor (got {type(predictor).__name__})")
    if predictor.classes or len(predictor.network) > 1 or predictor.features != width:
        made = f"{predictor.features} features, {predictor.classes} classes and {len(predictor.network) // 2} hidden layers"
        raise ValueError(
            f"predictor must be linear, with {width} features and neither classes nor hidden layers (got {made})"
        )
