"""Two kinds of stochastic neurons, and a value that is given another's gradient."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot, softplus


def straight_through(value: Float[Tensor, "*shape"], surrogate: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`value`, to the last digit, but with the gradient that `surrogate` would have in its place.

    Hinton's straight-through estimator (2012; Bengio, Léonard and Courville, 2013): a bit with the gradient of its
    probability, a rounded number with that of the number. The surrogate must be finite. Raises ValueError if the two differ
    in shape or dtype.
    """
    if value.shape != surrogate.shape or value.dtype != surrogate.dtype:
        raise ValueError(
            f"value must have the shape and dtype of surrogate, {tuple(surrogate.shape)} and {surrogate.dtype} "
            f"(got {tuple(value.shape)} and {value.dtype})"
        )
    # The bracket is exactly 0. An autograd.Function that torch.func can use costs several times as much on small layers.
    return value.detach() + (surrogate - surrogate.detach())


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in (0, 1), of which neither end is ever drawn, of the shape, dtype and device of `like`."""
    # With 0 excluded, logits are finite, and a unit whose probability rounds to 0 never fires.
    u = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return u.clamp_(min=torch.finfo(like.dtype).tiny)


class Binary:
    """A neuron that fires, b = 1, with probability σ(a). Logits and bits have the shape (*batch, units)."""

    event_dims = 1  # the last axes of the logits, over which one example extends

    @staticmethod
    def probabilities(logits: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """P(b = 1) of each neuron."""
        return logits.sigmoid()

    @staticmethod
    def sample(
        probabilities: Float[Tensor, "*batch units"], generator: torch.Generator | None
    ) -> Float[Tensor, "*batch units"]:
        """A bit of each neuron, drawn from `generator` or, if it is None, from torch's own."""
        # Three times as fast on a CPU as torch.bernoulli.
        return uniform(probabilities, generator).lt_(probabilities)

    @staticmethod
    def decide(logits: Float[Tensor, "*batch units"]) -> Float[Tensor, "*batch units"]:
        """The deterministic neuron: the more probable value, and 0 at a tie."""
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def relax(
        logits: Float[Tensor, "*batch units"], temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "*batch units"]:
        """A number in (0, 1) that rounds to a sample: σ((a + logit u)/τ), binary Concrete (Maddison et al., 2017)."""
        return ((logits + uniform(logits, generator).logit()) / temperature).sigmoid()

    @staticmethod
    def states(logits: Float[Tensor, "*batch units"]) -> Float[Tensor, "states units"]:
        """All 2^units vectors of bits."""
        every = itertools.product([0.0, 1.0], repeat=logits.shape[-1])
        return torch.tensor(list(every), dtype=logits.dtype, device=logits.device)

    @staticmethod
    def log_probability(values: Tensor, logits: Float[Tensor, "*batch units"]) -> Tensor:
        """log P(b) of each example's bits, in nats."""
        return -softplus(logits * (1 - 2 * values)).sum(-1)


class OneHot:
    """A neuron that takes one of k categories with probabilities softmax(a).

    Logits have the shape (*batch, units, categories), values too: a one at the category taken, else zeros.
    """

    event_dims = 2

    @staticmethod
    def probabilities(logits: Float[Tensor, "*batch units k"]) -> Float[Tensor, "*batch units k"]:
        """The probability of each category."""
        return logits.softmax(-1)

    @staticmethod
    def sample(
        probabilities: Float[Tensor, "*batch units k"], generator: torch.Generator | None
    ) -> Float[Tensor, "*batch units k"]:
        """A category of each neuron, drawn from `generator` or, if it is None, from torch's own."""
        # The first category at which the running sum of probabilities exceeds a uniform number.
        below = probabilities.cumsum(-1)[..., :-1] <= uniform(probabilities[..., :1], generator)
        return _one_hot(below.sum(-1), probabilities)

    @staticmethod
    def decide(logits: Float[Tensor, "*batch units k"]) -> Float[Tensor, "*batch units k"]:
        """The deterministic neuron: the most probable category, the first of them at a tie."""
        return _one_hot(logits.argmax(-1), logits)

    @staticmethod
    def relax(
        logits: Float[Tensor, "*batch units k"], temperature: float, generator: torch.Generator | None
    ) -> Float[Tensor, "*batch units k"]:
        """Probabilities whose largest is at a sample: softmax((a + Gumbel noise)/τ) (Jang et al.; Maddison et al., 2017)."""
        gumbel = -(-uniform(logits, generator).log()).log()
        return ((logits + gumbel) / temperature).softmax(-1)

    @staticmethod
    def states(logits: Float[Tensor, "*batch units k"]) -> Float[Tensor, "states units k"]:
        """All k^units ways in which the units take their categories."""
        units, k = logits.shape[-2:]
        every = torch.tensor(list(itertools.product(range(k), repeat=units)), device=logits.device)
        return _one_hot(every, logits)

    @staticmethod
    def log_probability(values: Tensor, logits: Float[Tensor, "*batch units k"]) -> Tensor:
        """log P of each example's categories, in nats."""
        return (values * logits.log_softmax(-1)).sum((-1, -2))


def _one_hot(category: Tensor, like: Tensor) -> Tensor:
    return one_hot(category, like.shape[-1]).to(like.dtype)
