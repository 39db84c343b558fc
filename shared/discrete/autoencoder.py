"""An autoencoder whose embedding is a code: one-hot neurons between an encoder and a decoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared.discrete.codes import check_codes, check_slots, visible
from shared.recurrent import _check_size
from shared.stochastic import OneHot, StraightThrough
from shared.stochastic.schedules import check_positive


class DiscreteAutoencoder(nn.Module):
    """An encoder, a layer of one-hot neurons and a decoder. R2RT, "Deconstruction with discrete embeddings" (2017).

    Neurons are drawn in training and take their most probable slot in evaluation mode; the gradient passes straight through,
    with the softmax's Jacobian. Slot 0 is silent: its value does not reach the decoder.

    encoder: maps inputs (batch, …) to logits (batch, neurons · size), neuron by neuron.
    decoder: maps (batch, neurons · (size − 1)) to what is compared with the inputs.
    generator: the source of randomness, on the device of the logits; None for torch's own.

    Raises ValueError for neurons below 1 or a size below 2.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        neurons: int,
        size: int,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_size("neurons", neurons)
        check_slots(size)
        self.encoder = encoder
        self.decoder = decoder
        self.neurons = neurons
        self.size = size
        self.layer = StraightThrough(neurons=OneHot, generator=generator)

    @property
    def temperature(self) -> float:
        """τ > 0, 1 at first: slots have the probabilities softmax(logits/τ). Not part of the state_dict.

        The layer's slope is 1/τ. Setting it raises ValueError for what is no number above 0.
        """
        return 1 / self.layer.slope

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.layer.slope = 1 / check_positive("temperature", value)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Tensor:
        """The decoder's output for codes drawn (in evaluation mode decided) for `x`. Raises ValueError as `logits` does."""
        return self.decoder(self.layer(self.logits(x))[..., 1:].flatten(-2))

    def logits(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch neurons size"]:
        """The encoder's logits, not divided by the temperature.

        Raises ValueError if the encoder returns another shape than (batch, neurons · size), as it may for inputs of a size
        that it was not made for.
        """
        logits, wanted = self.encoder(x), (len(x), self.neurons * self.size)
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"encoder must return logits of shape (batch, neurons * size), {wanted} for inputs of shape "
                f"{tuple(x.shape)} (got {got})"
            )
        return logits.unflatten(-1, (self.neurons, self.size))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch ..."]) -> Int[Tensor, "batch neurons"]:
        """Codes (Int64): each neuron's most probable slot, the first at a tie, in training mode too."""
        return self.logits(x).argmax(-1)

    def decode(self, codes: Int[Tensor, "batch neurons"]) -> Tensor:
        """The decoder's output for these codes. Raises ValueError for what are no codes of these neurons."""
        check_codes(codes, self.size, self.neurons)
        return self.decoder(visible(codes, self.size, self._like().dtype))

    def silence(self) -> Tensor:
        """The decoder's output, with its gradient, for one code of which every neuron is silent: what is drawn for nothing."""
        return self.decoder(self._like().new_zeros(1, self.neurons * (self.size - 1)))

    def _like(self) -> Tensor:
        """A tensor of the dtype and on the device of the decoder's parameters, torch's default ones if it has none."""
        return next(self.decoder.parameters(), torch.empty(0)).detach()

    def extra_repr(self) -> str:
        return f"neurons={self.neurons}, size={self.size}, temperature={self.temperature}"
