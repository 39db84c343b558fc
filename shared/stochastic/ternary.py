"""Neurons with three values, −1, 0 and 1: activations that are soft staircases, and rounding that lets gradients through."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.stochastic.neurons import straight_through, uniform
from shared.stochastic.schedules import check_positive


def ternary_activation(x: Float[Tensor, "*shape"], slope: float = 1.0) -> Float[Tensor, "*shape"]:
    """f(m x) with f(x) = 1.5 tanh x + 0.5 tanh(−3x), m the slope: in (−1, 1), odd, rising, and flat at 0.

    R2RT, "Beyond binary: ternary and one-hot neurons" (2017). Equal to 4t³/(1 + 3t²) with t = tanh(m x). |f(x)| is ½ at
    |x| = 0.7947; since m x is what is compared with that, a larger slope makes the middle step narrower as well as its edges
    steeper, until it is gone. `soft_staircase` keeps it. Raises ValueError for a slope that is not above 0.
    """
    x = check_positive("slope", slope) * x
    return 0.5 * (3 * torch.tanh(x) - torch.tanh(3 * x))


def soft_staircase(x: Float[Tensor, "*shape"], slope: float = 1.0) -> Float[Tensor, "*shape"]:
    """½ [tanh(m (x − ½)) + tanh(m (x + ½))], m the slope: rounding to −1, 0 or 1 made soft.

    Equal to sinh(2mx)/(cosh 2mx + cosh m): in (−1, 1), odd and rising, with the slope m/cosh²(m/2) at 0, which never is
    zero. As m grows each step gets steeper where it is, at ±½, and in the limit this is rounding. Raises ValueError for a
    slope that is not above 0.
    """
    check_positive("slope", slope)
    return 0.5 * (torch.tanh(slope * (x - 0.5)) + torch.tanh(slope * (x + 0.5)))


def to_integers(
    values: Float[Tensor, "*shape"], *, sample: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Whole numbers beside `values`, with the gradient of `values` (straight-through).

    sample: True draws between the two neighbours, the upper with the fractional part as its probability, so that the mean is
        the value and no other distribution on whole numbers has less variance; a whole number stays. False takes the
        nearest, and the even one at a tie.
    generator: the source of randomness, on the device of `values`; None for torch's own.

    Raises ValueError for values that are not finite or not floating-point, and for a generator on another device.
    """
    _check("values", values, generator)
    fixed = values.detach()
    if not sample:
        return straight_through(fixed.round(), values)
    lower = fixed.floor()
    # Not floor(v + u): close to 1, u would lift a whole number to the next.
    return straight_through(lower + (uniform(fixed, generator) < fixed - lower), values)


class Ternary(nn.Module):
    """A layer of ternary neurons: an activation with values in (−1, 1), then one of the two whole numbers beside it.

    The gradient is that of the activation (straight-through). In training a value is drawn, unless `deterministic`, such
    that its mean is the activation; in evaluation mode it is the nearest. Inputs and outputs have any shape, the same.

    activation: a function of the inputs and the slope, such as `ternary_activation` or `soft_staircase`.
    slope: m > 0, which may be changed at any time, as by a schedule.
    deterministic: whether neurons take the nearest value in training too.
    generator: the source of randomness, on the device of the inputs; None for torch's own.

    Raises ValueError for a slope that is not above 0, inputs that are not finite or not floating-point, activations outside
    −1 … 1, and a generator on another device.
    """

    def __init__(
        self,
        *,
        activation: Callable[[Tensor, float], Tensor] = ternary_activation,
        slope: float = 1.0,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.activation = activation
        self.slope = check_positive("slope", slope)
        self.deterministic = deterministic
        self.generator = generator

    def forward(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The neurons' values, −1, 0 or 1."""
        _check("inputs", inputs, self.generator)
        values = self.activation(inputs, check_positive("slope", self.slope))
        most = values.detach().abs().max().item() if values.numel() else 0.0
        if not most <= 1:
            raise ValueError(f"activation must return values from -1 to 1 (got {most} in size)")
        return to_integers(values, sample=self.training and not self.deterministic, generator=self.generator)

    def extra_repr(self) -> str:
        name = getattr(self.activation, "__name__", type(self.activation).__name__)
        return f"activation={name}, slope={self.slope}, deterministic={self.deterministic}"


def _check(name: str, values: Tensor, generator: torch.Generator | None) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else repr(values)
        raise ValueError(f"{name} must be a floating-point tensor (got {got})")
    # As in Estimator: one sum is much cheaper than a look at every number, and finite only if they all are.
    if not torch.isfinite(values.detach().sum()) and not torch.isfinite(values).all():
        nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
        raise ValueError(f"{name} must be finite (got {nan} NaN and {infinite} infinite)")
    if generator is not None and generator.device.type != values.device.type:
        raise ValueError(f"generator must be on the device of {name}, {values.device} (got one on {generator.device})")
