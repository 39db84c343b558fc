"""A stack of layers cut at chosen places, where each piece learns from a predicted gradient as soon as it has been run."""

import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Interface(NamedTuple):
    """What met at a cut, a row for each example: the activation that went up, the gradient of the example's loss that was
    predicted for it, and the one that came down, which is the predictor's target."""

    h: Float[Tensor, "batch features"]
    predicted: Float[Tensor, "batch features"]
    target: Float[Tensor, "batch features"]


class Step(NamedTuple):
    """The mean loss, the outputs, all without a graph, and what met at each cut, from the bottom up."""

    loss: Float[Tensor, ""]
    outputs: Tensor
    interfaces: tuple[Interface, ...]


class DecoupledStack(nn.Module):
    """Layers in a row, cut into pieces that are trained with synthetic gradients (Jaderberg et al., 2016).

    layers: an `nn.Sequential`, or modules in their order. One that is a Sequential itself counts as one layer.
    predictors: for each place of a cut its predictor. Place k lies below `layers[k]`, so that 1 … len(layers) − 1 are places.
        A predictor is called as `predictor(h, labels)` and returns the gradient of each example's own loss, as a
        `GradientPredictor` does; its `error(h, labels, gradients, losses)` is what it is trained on, unless it has nothing to train.
        Activations of more than two dimensions are flattened for it. If it has a method `loss(h, labels)`, as a
        `LossPredictor` has, that is the target of a predictor of losses below. All see the labels, or none does.

    Calling it runs the layers as if there were no cuts. `backward` fills the gradients of both; give the predictors an optimizer
    of their own: `Adam(stack.layers.parameters())` and `Adam(stack.predictors.parameters())`.

    The gradient of an example's own loss is taken to be B times that of the mean. Batch normalisation in training mode mixes the
    examples: there it is B times the gradient of the mean, which is what a layer needs, but no example's own.

    Raises ValueError for a place that does not exist or no layers, TypeError for what is no module, or no predictor.
    """

    def __init__(self, layers: Iterable[nn.Module], predictors: Mapping[int, nn.Module]):
        if not isinstance(layers, Iterable) or not isinstance(predictors, Mapping):
            kinds = f"{type(layers).__name__} and {type(predictors).__name__}"
            raise TypeError(
                f"layers must be modules in a row, predictors a mapping from places to modules (got {kinds})"
            )
        layers = list(layers)
        if not layers:
            raise ValueError("layers must hold at least one module (got none)")
        for one in (*layers, *predictors.values()):
            if not isinstance(one, nn.Module):
                raise TypeError(f"layers and predictors must be modules (got {type(one).__name__})")
        for place, predictor in predictors.items():
            if isinstance(place, bool) or not isinstance(place, numbers.Integral) or not 0 < place < len(layers):
                raise ValueError(
                    f"a place must be a whole number, at least 1 and below {len(layers)}, the number of layers: "
                    f"place k lies below layers[k] (got {place!r})"
                )
            if not callable(getattr(predictor, "error", None)):
                raise TypeError(f"at place {place}: {type(predictor).__name__} is no predictor: it has no method error")
        super().__init__()
        self.places = sorted(predictors)
        self.layers = nn.Sequential(*layers)
        self.predictors = nn.ModuleList(predictors[place] for place in self.places)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all layers for x, (batch, …), as if there were no cuts."""
        return self.layers(x)

    def pieces(self) -> list[nn.Sequential]:
        """The layers between the cuts, from the bottom up."""
        edges = [0, *self.places, len(self.layers)]
        return [self.layers[start:stop] for start, stop in itertools.pairwise(edges)]

    def backward(
        self,
        x: Tensor,
        losses_of: Callable[[Tensor], Float[Tensor, " batch"]],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Step:
        """Accumulate the gradients of all pieces and predictors; nothing is updated.

        x: (batch, …). If it has a graph of its own, the bottom piece's gradient goes on into it.
        losses_of: maps the outputs to a loss for each example; the objective is their mean.
        labels: what conditioned predictors see, (batch,).

        Each piece goes back from what the predictor above it says, the last one from its losses. Nothing in that waits for another
        piece but for its input, so each could be updated before the next is run, and the gradients would be the same. (Here
        all are run first, so that bad input leaves no gradient touched.) The gradient that arrives at a cut is the target of its
        predictor: bootstrapped, except at the last cut. A predictor is run twice: to predict, and to be trained.

        Raises ValueError if an activation does not suit its predictor, if labels are missing, not expected or out of range, if a
        prediction has not the shape of the activation, or if `losses_of` does not give one loss for each example, with a graph;
        TypeError if an activation is of another dtype or on another device than its predictor. A layer right above a cut must
        not change its input in place.
        """
        if not isinstance(x, Tensor) or not x.ndim or not len(x):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of at least one example (got {got})")
        *pieces, top = self.pieces()
        entry, exits, below, predicted = x, [], [], []  # below: activations at the cuts, without what made them
        for place, piece, predictor in zip(self.places, pieces, self.predictors, strict=True):
            exits.append(piece(entry))
            _check_activation(place, exits[-1], len(x))
            entry = exits[-1].detach().requires_grad_()
            below.append(entry)
            predicted.append(_predict(place, predictor, entry, labels))
        outputs = top(entry)
        losses = losses_of(outputs)
        _check_losses(losses, len(x))
        if not losses.requires_grad:
            raise ValueError("losses_of must return losses with a graph, made from the outputs (got some without)")

        losses.mean().backward()
        for exit, gradient in zip(exits, predicted, strict=True):
            if exit.requires_grad:  # a piece at the bottom may have nothing to learn
                exit.backward(gradient.reshape(exit.shape) / len(x))
        gradients = [torch.zeros_like(h) if h.grad is None else h.grad for h in below]
        targets = [len(x) * gradient.flatten(1) for gradient in gradients]
        value, interfaces = losses.detach(), []  # value: the losses, or what the nearest predictor of losses above says
        for i, predictor in reversed(list(enumerate(self.predictors))):
            h = below[i].detach().flatten(1)
            error = predictor.error(h, labels, targets[i], value)
            if error.requires_grad:
                error.backward()
            if i and hasattr(predictor, "loss"):
                value = predictor.loss(h, labels).detach()
            interfaces.append(Interface(h, predicted[i], targets[i]))
        return Step(losses.mean().detach(), outputs.detach(), tuple(reversed(interfaces)))


def _check_activation(place: int, h: Tensor, batch: int) -> None:
    if not isinstance(h, Tensor) or not h.is_floating_point():
        got = h.dtype if isinstance(h, Tensor) else type(h).__name__
        raise TypeError(f"at place {place}: the activation must be a tensor of real numbers (got {got})")
    if h.ndim < 2 or len(h) != batch:
        raise ValueError(
            f"at place {place}: the activation must have a row for each of the {batch} examples (got {tuple(h.shape)})"
        )


@torch.no_grad()
def _predict(place: int, predictor: nn.Module, h: Tensor, labels: Tensor | None) -> Float[Tensor, "batch features"]:
    flat = h.flatten(1)
    try:
        predicted = predictor(flat, labels)
    except (TypeError, ValueError) as error:
        raise type(error)(f"at place {place}: {error}") from error
    if predicted.shape != flat.shape:
        shapes = f"{tuple(flat.shape)} (got {tuple(predicted.shape)})"
        raise ValueError(f"at place {place}: the predictor must return the shape of the activation, {shapes}")
    return predicted.detach()


def _check_losses(losses: Tensor, batch: int) -> None:
    got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if got != (batch,):
        raise ValueError(f"losses_of must return one loss for each example, shape ({batch},) (got {got})")
