"""Estimators of the gradient of an expected loss through stochastic neurons, behind one interface."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from shared.recurrent import _check_size
from shared.stochastic.neurons import Binary, OneHot, straight_through, uniform
from shared.stochastic.schedules import check_positive

Loss = Callable[[Tensor], Tensor]


class Estimator(nn.Module):
    """A layer of stochastic neurons and an estimate of ∂E[f(b)]/∂a, where a are the neurons' logits and b their values.

    There are two ways to use it. `estimator.expectation(logits, loss_of)` suits every estimator: it draws values, evaluates
    the loss on all of them in one batch and returns one loss for each example, (*batch), whose backward pass leaves the
    estimate in the logits and the ordinary gradient in whatever else `loss_of` uses. Several layers nest: `loss_of` of the
    one may end in `expectation` of the next. `estimator(logits)` returns values, of the shape of the logits, as a layer in
    `nn.Sequential` does; estimators that need to see the loss raise ValueError there if a gradient is wanted.

    In evaluation mode (`estimator.eval()`) neurons do not draw but take their most probable value; under `torch.no_grad()`
    in training mode they draw as ever.

    neurons: `Binary`, logits (*batch, units), or `OneHot`, logits (*batch, units, categories).
    slope: the factor m of the logits, P(b = 1) = σ(m a); it may be changed at any time, as by a schedule. The gradient
        contains it, by the chain rule.
    samples: evaluations of the loss (pairs or triples of them where it says so), of which the estimate is the mean.
    generator: the source of randomness, on the device of the logits; None for torch's own.

    `loss_of` takes values with one more axis in front than the logits, (evaluations, *batch, units[, categories]), and
    returns one loss for each, (evaluations, *batch): not their mean, and an example's loss must depend on its own alone.

    Raises ValueError for a slope (or temperature) that is not above 0, fewer samples than 1, logits that are not finite or
    of another shape than the neurons ask for, losses that are not one for each example, and a generator on another device.
    """

    needs_loss = True

    def __init__(
        self,
        *,
        samples: int = 1,
        slope: float = 1.0,
        neurons: type[Binary] | type[OneHot] = Binary,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_size("samples", samples)
        self.samples = samples
        self.slope = check_positive("slope", slope)
        self.neurons = neurons
        self.generator = generator

    def forward(self, logits: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """Values of the neurons, with this estimator's gradient where it needs no loss for it."""
        self._check(logits)
        if not self.training:
            return self.neurons.decide(logits)
        if self.needs_loss and _wants_gradient(logits):
            raise ValueError(
                f"{type(self).__name__} needs the loss to give a gradient: call expectation(logits, loss_of), "
                "or sample under torch.no_grad()"
            )
        return self._values((self.slope * logits)[None]).squeeze(0)  # whose gradient, unlike that of [0], is a view

    def expectation(self, logits: Float[Tensor, "*batch units"], loss_of: Loss) -> Float[Tensor, "*batch"]:
        """One loss for each example, with the estimate as its gradient; see the class.

        Raises TypeError if `loss_of` is no function, and what the class does.
        """
        self._check(logits)
        if not callable(loss_of):
            raise TypeError(f"loss_of must be a function from values to one loss for each example (got {loss_of!r})")
        if not self.training:
            return self._losses(loss_of, self.neurons.decide(logits)[None])[0]
        return self._estimate(self.slope * logits, loss_of)

    def _estimate(self, logits: Tensor, loss_of: Loss) -> Tensor:
        return self._losses(loss_of, self._values(self._repeated(logits))).mean(0)

    def _values(self, logits: Tensor) -> Tensor:
        return self.neurons.sample(self.neurons.probabilities(logits.detach()), self.generator)

    def _repeated(self, logits: Tensor) -> Tensor:
        return logits.expand(self.samples, *logits.shape)

    def _losses(self, loss_of: Loss, values: Tensor) -> Tensor:
        losses, shape = loss_of(values), values.shape[: values.ndim - self.neurons.event_dims]
        if not isinstance(losses, Tensor) or losses.shape != shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"loss_of must return one loss for each example, of shape {tuple(shape)} for values of shape "
                f"{tuple(values.shape)} (got {got})"
            )
        return losses

    def _with_gradient(self, losses: Tensor, logits: Tensor, estimate: Tensor) -> Tensor:
        """The mean of the evaluations, (*batch), with `estimate`, of the shape of `logits`, as the gradient of these."""
        carrier = (logits * estimate.detach()).flatten(-self.neurons.event_dims).sum(-1)
        return losses.mean(0) + (carrier - carrier.detach())

    def _broadcast(self, losses: Tensor) -> Tensor:
        """Losses, (evaluations, *batch), detached and with the axes of the units."""
        return losses.detach()[(..., *[None] * self.neurons.event_dims)]

    def _check(self, logits: Tensor) -> None:
        check_positive("slope", self.slope)
        least = self.neurons.event_dims
        if not isinstance(logits, Tensor) or logits.dtype not in (torch.float32, torch.float64) or logits.ndim < least:
            got = f"{tuple(logits.shape)}, {logits.dtype}" if isinstance(logits, Tensor) else repr(logits)
            axes = "(*batch, units)" if least == 1 else "(*batch, units, categories)"
            # Uniform numbers of half the precision are too coarse: rare events would come at wrong rates.
            raise ValueError(f"logits must be a tensor {axes} of float32 or float64 (got {got})")
        if self.neurons is OneHot and logits.shape[-1] < 2:
            raise ValueError(f"logits must have at least 2 categories (got shape {tuple(logits.shape)})")
        if self.generator is not None and self.generator.device.type != logits.device.type:
            raise ValueError(
                f"generator must be on the device of the logits, {logits.device} (got one on {self.generator.device})"
            )
        # One sum is a twentieth of the cost of looking at every number, and finite only if they all are.
        if not math.isfinite(logits.detach().sum().item()) and not torch.isfinite(logits).all():
            nan, infinite = int(logits.isnan().sum()), int(logits.isinf().sum())
            raise ValueError(f"logits must be finite (got {nan} NaN and {infinite} infinite)")

    def extra_repr(self) -> str:
        return f"neurons={self.neurons.__name__}, samples={self.samples}, slope={self.slope}"


def _wants_gradient(logits: Tensor) -> bool:
    return torch.is_grad_enabled() and logits.requires_grad


class Enumeration(Estimator):
    """No estimate but the exact gradient: the sum over all states of the neurons, of which there may be at most 4096.

    That is 12 bits, or 6 units of 4 categories. `loss_of` is called once, with all states, (states, *batch, units); there is
    nothing to draw and nothing to average. The judge of the other estimators. Raises ValueError for more states.
    """

    STATES = 4096

    def __init__(self, *, slope: float = 1.0, neurons: type[Binary] | type[OneHot] = Binary):
        super().__init__(slope=slope, neurons=neurons)

    def _estimate(self, logits: Tensor, loss_of: Loss) -> Tensor:
        units, k = (logits.shape[-1], 2) if self.neurons is Binary else logits.shape[-2:]
        if k**units > self.STATES:
            raise ValueError(f"Enumeration visits at most {self.STATES} states (got {k}^{units} of them)")
        states, event_dims = self.neurons.states(logits), self.neurons.event_dims
        states = states.reshape(len(states), *[1] * (logits.ndim - event_dims), *states.shape[1:])
        states = states.expand(-1, *logits.shape)
        return (self.neurons.log_probability(states, logits).exp() * self._losses(loss_of, states)).sum(0)


class StraightThrough(Estimator):
    """The neuron's value with a gradient that it does not have: that of its probability, or of its logit.

    adjusted: True for ∂b/∂a := ∂σ(a)/∂a ("sigmoid-adjusted" for bits; for categories the Jacobian of the softmax, the
        gradient going to all probabilities), False for ∂b/∂a := 1 ("pass-through"). Biased, except that the
        adjusted one is exact where the loss is linear in the values; needs no loss.
    deterministic: whether neurons take their most probable value in training too.
    """

    needs_loss = False

    def __init__(self, *, adjusted: bool = True, deterministic: bool = False, **options):
        super().__init__(**options)
        self.adjusted = adjusted
        self.deterministic = deterministic

    def _values(self, logits: Tensor) -> Tensor:
        probabilities = self.neurons.probabilities(logits)
        if self.deterministic:
            values = self.neurons.decide(logits.detach())
        else:
            values = self.neurons.sample(probabilities.detach(), self.generator)
        return straight_through(values, probabilities if self.adjusted else logits)


class Concrete(Estimator):
    """The relaxed neuron of Maddison et al. and Jang et al. (2017), also called Gumbel-softmax.

    temperature: τ > 0 of the relaxation, which may be changed at any time.
    hard: False for values between the decisions, whose loss is another one, σ((a + logit u)/τ) or softmax((a + g)/τ); True
        for the decision at which they point, with their gradient ("straight-through Gumbel"). Biased; needs no loss, but
        with `hard=False` one that takes such values.
    """

    needs_loss = False

    def __init__(self, *, temperature: float = 0.5, hard: bool = False, **options):
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)
        self.hard = hard

    def _values(self, logits: Tensor) -> Tensor:
        soft = self.neurons.relax(logits, check_positive("temperature", self.temperature), self.generator)
        if not self.hard:
            return soft
        # Which decision the relaxed value points at does not depend on the temperature.
        decision = soft.detach() - 0.5 if self.neurons is Binary else soft.detach()
        return straight_through(self.neurons.decide(decision), soft)


class Reinforce(Estimator):
    """The score-function estimator (Williams, 1992), f(b) (b − p): unbiased. The mean of `samples` of them."""

    def _estimate(self, logits: Tensor, loss_of: Loss) -> Tensor:
        if not _wants_gradient(logits):
            return super()._estimate(logits, loss_of)
        probabilities = self.neurons.probabilities(logits.detach())
        values = self.neurons.sample(self._repeated(probabilities), self.generator)
        losses = self._losses(loss_of, values)
        return self._with_gradient(losses, logits, self._score(losses, values - probabilities))

    def _score(self, losses: Tensor, residuals: Tensor) -> Tensor:
        return (self._broadcast(losses) * residuals).mean(0)


class LeaveOneOut(Reinforce):
    """The score-function estimator whose baseline for a sample is the mean loss of the others: unbiased.

    With k = `samples`, at least 2: Σ_i (f(b_i) − f̄)(b_i − p)/(k − 1). Kool, van Hoof and Welling (2019).

    Raises ValueError for fewer samples than 2, and what `Estimator` does.
    """

    def __init__(self, *, samples: int = 2, **options):
        super().__init__(samples=samples, **options)
        if samples < 2:
            raise ValueError(f"samples must be at least 2, since one is the baseline of the others (got {samples})")

    def _score(self, losses: Tensor, residuals: Tensor) -> Tensor:
        return (self._broadcast(losses - losses.mean(0)) * residuals).sum(0) / (self.samples - 1)


class _Regression(nn.Module):
    """For each unit the running E[y x] / E[x²]: the multiple of x, of mean zero, that taken from y leaves least variance."""

    def __init__(self, units: int | tuple[int, ...], decay: float):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1 (got {decay!r})")
        self.decay = decay
        self.register_buffer("product", torch.zeros(units))
        self.register_buffer("square", torch.zeros(units))

    @property
    def coefficient(self) -> Tensor:
        """0 until there is anything to go by. That both means start at 0 cancels in the quotient."""
        return self.product / self.square.clamp(min=torch.finfo(self.square.dtype).tiny)

    def check(self, logits: Tensor, event_dims: int) -> None:
        units = tuple(self.product.shape)
        if (
            len(units) < event_dims or logits.shape[-len(units) :] != units
        ):  # it could broadcast, and give wrong gradients
            raise ValueError(f"units must be the last axes of the logits, {tuple(logits.shape)} (got {units})")

    def update(self, y: Tensor, x: Tensor) -> None:
        """A step of both running means, after the coefficient has been used: chosen on other samples, it biases nothing."""
        for mean, new in ((self.product, y * x), (self.square, x * x)):
            mean.lerp_(new.flatten(0, -mean.ndim - 1).mean(0).to(mean.dtype), 1 - self.decay)


class RunningBaseline(Reinforce):
    """The score-function estimator with a baseline for each unit that leaves the least variance: (f(b) − c)(b − p).

    c = E[f (b − p)²]/E[(b − p)²] minimises the variance of a unit's estimate; here it is a quotient of running means, as in
    R2RT, "Binary stochastic neurons" (2016), its "variance-adjusted" estimator (where the second starts at 1). Unbiased,
    since a baseline is used before it is brought up to date with the samples at hand, and only where a gradient is wanted.

    units: of the layer of bits, or the shape of the last axes of the logits: (units, k) for `OneHot`, (networks, units) for
        bits of several networks side by side.
    decay: of the running means at each call, at least 0 and below 1.
    """

    def __init__(self, units: int | tuple[int, ...], *, decay: float = 0.95, **options):
        super().__init__(**options)
        self.baseline = _Regression(units, decay)

    def _check(self, logits: Tensor) -> None:
        super()._check(logits)
        self.baseline.check(logits, self.neurons.event_dims)

    def _score(self, losses: Tensor, residuals: Tensor) -> Tensor:
        losses = self._broadcast(losses)
        estimate = ((losses - self.baseline.coefficient) * residuals).mean(0)
        self.baseline.update(losses * residuals, residuals)
        return estimate


class _BinaryEstimator(Estimator):
    def __init__(self, *, samples: int = 1, slope: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(samples=samples, slope=slope, generator=generator)


class Arm(_BinaryEstimator):
    """Augment-REINFORCE-merge (Yin and Zhou, 2019), unbiased: (f(b) − f(b̃))(u − ½), b = 1[u > σ(−a)], b̃ = 1[u < σ(a)].

    Both are samples, as unlike each other as two can be. `samples` counts such pairs. Bits only.
    """

    def _estimate(self, logits: Tensor, loss_of: Loss) -> Tensor:
        u = uniform(self._repeated(logits.detach()), self.generator)
        pair = torch.cat([u > (-logits).sigmoid(), u < logits.sigmoid()]).to(logits.dtype)
        losses = self._losses(loss_of, pair)
        first, second = self._broadcast(losses).chunk(2)
        estimate = (first - second) * self._weight(u, *pair.chunk(2), logits.detach())
        return self._with_gradient(losses, logits, estimate.mean(0))

    def _weight(self, u: Tensor, b: Tensor, antithetic: Tensor, logits: Tensor) -> Tensor:
        return u - 0.5


class DisArm(Arm):
    """ARM with u integrated out given the bits (Dong, Mnih and Tucker, 2020; Yin et al., 2020): never of more variance.

    ½ (f(b) − f(b̃))(b − b̃) σ(|a|), unbiased. `samples` counts pairs. Bits only.
    """

    def _weight(self, u: Tensor, b: Tensor, antithetic: Tensor, logits: Tensor) -> Tensor:
        return 0.5 * (b - antithetic) * logits.abs().sigmoid()


class Rebar(_BinaryEstimator):
    """REBAR (Tucker et al., 2017): the score-function estimator less a control variate made of a relaxation; unbiased.

    With z = a + logit u, b = 1[z > 0], z̃ drawn given b, and s = σ(·/τ): f(b)(b − p) − c x, where
    x = f(s(z̃))(b − p) − ∂f(s(z))/∂a + ∂f(s(z̃))/∂a has mean zero. c is a running regression coefficient for each unit, as
    in `RunningBaseline`, which leaves least variance; it starts at 0. A sample takes three evaluations of the loss, two of
    them between the decisions, from which parameters inside `loss_of` get no gradient. Bits only.

    units, decay: as in `RunningBaseline`.
    temperature: τ > 0 of the relaxation.
    """

    def __init__(self, units: int, *, temperature: float = 0.5, decay: float = 0.95, **options):
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)
        self.scale = _Regression(units, decay)

    def _check(self, logits: Tensor) -> None:
        super()._check(logits)
        self.scale.check(logits, self.neurons.event_dims)

    def _estimate(self, logits: Tensor, loss_of: Loss) -> Tensor:
        if not _wants_gradient(logits):
            return super()._estimate(logits, loss_of)
        a = self._repeated(logits.detach()).clone().requires_grad_()
        temperature = check_positive("temperature", self.temperature)
        b, z, z_given_b = _relaxed_pair(a, self.generator)
        soft = (torch.cat([z, z_given_b]) / temperature).sigmoid()
        losses, at_z, at_z_given_b = self._losses(loss_of, torch.cat([b, soft])).chunk(3)
        (slope,) = torch.autograd.grad(at_z.sum() - at_z_given_b.sum(), a, retain_graph=True)
        residual = b - self.neurons.probabilities(a.detach())
        score, control = self._broadcast(losses) * residual, self._broadcast(at_z_given_b) * residual - slope
        estimate = (score - self.scale.coefficient * control).mean(0)
        self.scale.update(score, control)
        return self._with_gradient(losses, logits, estimate)


def _relaxed_pair(a: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """b, z = a + logit u with b = 1[z > 0], and z̃ from the distribution of z given b, as functions of the logits a."""
    u, v = uniform(a, generator), uniform(a, generator)
    z = a + u.logit()
    b = (z.detach() > 0).to(a.dtype)
    # logit(p) + logit(v'), with v' = v p + 1 − p if b = 1 and v (1 − p) if b = 0, without cancellation:
    given_one = softplus(a + v.log()) - torch.log1p(-v)
    given_zero = v.log() - softplus(torch.log1p(-v) - a)
    return b, z, torch.where(b > 0, given_one, given_zero)
