"""Models of what comes later: from an activation, and perhaps a label, the gradient of the loss, or the loss itself.

All gradients here are those of an example's *own* loss. Where the objective is a mean over the batch they are B times what
autograd finds, so that their size, and with it the error of a predictor, does not depend on the batch size.
"""

import itertools
import numbers
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from shared.recurrent import _check_size


class _Conditioned(nn.Module):
    """A network of [h, label], whose output layer is zero at first."""

    def __init__(self, features: int, outputs: int, classes: int, hidden: Sequence[int], activation: type[nn.Module]):
        _check_size("features", features)
        if isinstance(classes, bool) or not isinstance(classes, numbers.Integral) or classes < 0:
            raise ValueError(f"classes must be a whole number, 0 for a predictor without labels (got {classes!r})")
        if not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths, such as (64,) (got {hidden!r})")
        for size in hidden:
            _check_size("each of hidden", size)
        super().__init__()
        self.features, self.classes = features, classes
        sizes = [features + classes, *hidden]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        last = nn.Linear(sizes[-1], outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def _read(self, h: Tensor, labels: Tensor | None) -> Tensor:
        if h.ndim != 2 or h.shape[1] != self.features:
            raise ValueError(
                f"h must have shape (batch, {self.features}), as this predictor was made (got {tuple(h.shape)})"
            )
        own = next(self.network.parameters())
        if (h.dtype, h.device) != (own.dtype, own.device):
            raise TypeError(
                f"h must be {own.dtype} on {own.device}, as this predictor is (got {h.dtype} on {h.device})"
            )
        if not self.classes:
            if labels is not None:
                raise ValueError("labels must be None: this predictor was made without classes, so it expects none")
            return self.network(h)
        if labels is None:
            raise ValueError(f"labels must be given: this predictor is conditioned on one of {self.classes} classes")
        if labels.dtype != torch.int64 or labels.shape != h.shape[:1]:
            raise ValueError(
                f"labels must be {len(h)} whole numbers, torch.int64 of shape ({len(h)},) "
                f"(got {labels.dtype} of shape {tuple(labels.shape)})"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(f"labels must lie between 0 and {self.classes - 1} (got {labels.min()} to {labels.max()})")
        return self.network(torch.cat((h, one_hot(labels, self.classes).to(h)), 1))


class GradientPredictor(_Conditioned):
    """M(h) or M(h, label), a prediction of the gradient of each example's loss with respect to h.

    `features` is the width of h, `classes` the number of labels (0: it sees none), `hidden` the widths of hidden layers with
    ReLU; without any it is linear. The output is zero at first, so that nothing is learnt from it before it has learnt.
    Jaderberg et al. (2016) call it DNI, and cDNI with labels.

    Raises ValueError for sizes that are none, for h of another width, and for labels that are missing, not expected, out of
    range, or no whole numbers, one for each example; TypeError for h of another dtype or on another device.
    """

    def __init__(self, features: int, classes: int = 0, hidden: Sequence[int] = ()):
        super().__init__(features, features, classes, hidden, nn.ReLU)

    def forward(
        self, h: Float[Tensor, "batch features"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features"]:
        """The predicted gradients."""
        return self._read(h, labels)

    def error(self, h: Tensor, labels: Tensor | None, gradients: Tensor, losses: Tensor | None) -> Float[Tensor, ""]:
        """The squared error against `gradients`, (batch, features), as a mean over batch and features.

        `losses` are not used. The result reaches the predictor's parameters alone, whatever made h and the gradients.
        """
        return _squared_error("gradients", self(h.detach(), labels), gradients)


class LossPredictor(_Conditioned):
    """A prediction of each example's loss, from h or from h and its label, whose slope serves as the gradient.

    The question of R2RT, "Synthetic gradients with Tensorflow": why not predict the loss and differentiate it? `hidden` are
    the widths of hidden layers with tanh; there must be one at least, since the slope of a linear prediction is the same
    everywhere.

    Raises ValueError for no hidden layer, and ValueError and TypeError as `GradientPredictor` does.
    """

    def __init__(self, features: int, classes: int = 0, hidden: Sequence[int] = (64,)):
        super().__init__(features, 1, classes, hidden, nn.Tanh)
        if not hidden:
            raise ValueError(
                "hidden must name at least one layer: the slope of a linear prediction is the same everywhere"
            )

    def loss(self, h: Tensor, labels: Tensor | None = None) -> Float[Tensor, " batch"]:
        """The predicted losses."""
        return self._read(h, labels)[:, 0]

    @torch.enable_grad()
    def forward(
        self, h: Float[Tensor, "batch features"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features"]:
        """The slopes of the predicted losses, without a graph."""
        h = h.detach().requires_grad_()
        return torch.autograd.grad(self.loss(h, labels).sum(), h)[0]

    def error(self, h: Tensor, labels: Tensor | None, gradients: Tensor | None, losses: Tensor) -> Float[Tensor, ""]:
        """The squared error against `losses`, (batch,), as a mean over the batch; `gradients` are not used."""
        return _squared_error("losses", self.loss(h.detach(), labels), losses)


def _squared_error(name: str, predicted: Tensor, target: Tensor) -> Float[Tensor, ""]:
    if target.shape != predicted.shape:  # which mse_loss would broadcast
        raise ValueError(f"{name} must have shape {tuple(predicted.shape)} (got {tuple(target.shape)})")
    return mse_loss(predicted, target.detach())
