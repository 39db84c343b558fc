"""Windows of a recurrent network, at whose right edge the gradient of all later losses is predicted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.recurrent import Cell, State, _Layers, _parts, _starting_state, unroll
from shared.synthetic_gradients.stack import _check_losses


class Window(NamedTuple):
    """What a window leaves behind, without a graph: its mean loss, its last state, and the two ends of a prediction.

    `ahead` is what was predicted for the last state (zero if it was the last window), and `target` what arrived at the first
    state, None in a first window: the target of the window before, for its `ahead`. Both are gradients of each example's own loss.
    """

    loss: Float[Tensor, ""]
    state: State
    ahead: Float[Tensor, "batch features"]
    target: Float[Tensor, "batch features"] | None


def window_backward(
    cell: Cell | nn.RNN | nn.GRU | nn.LSTM,
    inputs: Float[Tensor, "time batch input"],
    losses_of: Callable[[Tensor], Float[Tensor, " batch"]],
    predictor: nn.Module,
    state: State | None = None,
    *,
    last: bool = False,
) -> Window:
    """Accumulate the gradients of a window of truncated backpropagation and of the predictor of what lies behind it.

    From the right edge goes back what `predictor` says of the last state: the gradient of all later losses. What arrives at
    the left edge, from losses of the window and prediction together, is the predictor's target for the state in which the window
    before it ended: a bootstrap, as in temporal-difference learning (Jaderberg et al., 2016). With a perfect predictor
    the windows of a sequence add up to backpropagation through all of it; with one that says zero, to chunks.

    The gradient at an edge is that of the state *as the input of the next step*, each of its tensors for itself. An LSTM's h_t
    is computed from c_t within step t: that path lies to the left of the edge, and whoever supplies a gradient with respect
    to c_t that contains it (as autograd does for a c_t that h_t was computed from) has it counted twice.

    losses_of: maps the outputs of the window to each example's loss in it; the objective is the mean over the batch of their sum
        over all windows. Gradients also go to whatever it reads, and through `inputs` to whatever they were computed from.
    predictor: called as `predictor(h, None)`, where h is the state, its tensors side by side: (batch, hidden), (batch, 2 · hidden)
        for an LSTM's h and c; with several layers of torch's, all of each. It returns the gradient of each example's own loss,
        in the same shape, and `predictor.error(h, None, gradients, losses)` is what it is trained on: in a `GradientPredictor`
        the mean over batch and features, whatever the number of layers. A predictor of losses is bootstrapped by its `loss(h)`.
    state: the one that the window before returned. None for the first window, where no predictor is trained: the cell's initial
        state, whose gradient is kept, so that it can be learnt.
    last: whether no window follows, so that nothing is to be predicted.

    Cost: that of a window alone, and two runs of the predictor, at the right edge and, with a backward pass, at the left one.

    Raises ValueError and TypeError as `shared.recurrent.unroll` does; TypeError for what is no cell, or a predictor that is no
    module with an `error`; ValueError if the state does not suit the predictor, it returns another shape, or `losses_of` does
    not give one loss for each example. Then no gradient has been touched.
    """
    layered = isinstance(cell, nn.RNN | nn.GRU | nn.LSTM)
    if not layered and not isinstance(cell, Cell):
        raise TypeError(f"cell must be a Cell or a torch.nn.RNN, GRU or LSTM (got {type(cell).__name__})")
    if not isinstance(predictor, nn.Module) or not hasattr(predictor, "error"):
        raise TypeError(f"predictor must be a module with a method error (got {type(predictor).__name__})")
    start = _starting_state(_Layers(cell) if layered else cell, inputs, state)
    if state is not None:
        left = [part.detach().requires_grad_() for part in _parts(start)]
        start = tuple(left) if isinstance(start, tuple) else left[0]
    outputs, end = cell(inputs, start) if layered else unroll(cell, inputs, start)
    losses = losses_of(outputs)
    batch = inputs.shape[1]
    _check_losses(losses, batch)
    right = _side_by_side([part.detach() for part in _parts(end)], layered)
    ahead = _predict(predictor, right)
    values = losses.detach()
    if last:
        ahead = torch.zeros_like(ahead)
    elif hasattr(predictor, "loss"):
        values = values + predictor.loss(right, None).detach()

    pairs = [(losses.mean(), None), *zip(_parts(end), _apart(ahead / batch, _parts(end), layered), strict=True)]
    pairs = [pair for pair in pairs if pair[0].requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))
    target = None
    if state is not None:
        arrived = [torch.zeros_like(part) if part.grad is None else part.grad for part in left]
        target = batch * _side_by_side(arrived, layered)
        before = _side_by_side([part.detach() for part in left], layered)
        error = predictor.error(before, None, target, values)
        if error.requires_grad:  # otherwise it has nothing to learn
            error.backward()
    after = tuple(part.detach() for part in _parts(end))
    return Window(losses.detach().mean(), after if isinstance(end, tuple) else after[0], ahead, target)


def _side_by_side(parts: Sequence[Tensor], layered: bool = False) -> Float[Tensor, "batch features"]:
    """All tensors of a state in one: (batch, …) each, or (layers, batch, hidden), as torch's own modules have them."""
    parts = [(part.transpose(0, 1) if layered else part).flatten(1) for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _apart(side_by_side: Tensor, like: Sequence[Tensor], layered: bool) -> list[Tensor]:
    """The tensors that `_side_by_side` has put together, in the shapes of `like`."""
    like = [part.transpose(0, 1) if layered else part for part in like]
    parts = side_by_side.split([part[0].numel() for part in like], 1)
    parts = [part.reshape(one.shape) for part, one in zip(parts, like, strict=True)]
    return [part.transpose(0, 1) for part in parts] if layered else parts


@torch.no_grad()
def _predict(predictor: nn.Module, state: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
    predicted = predictor(state, None)
    if predicted.shape != state.shape:
        raise ValueError(
            f"the predictor must return the shape of the state, {tuple(state.shape)} (got {tuple(predicted.shape)})"
        )
    return predicted.detach()
