"""The recurrent network with fast weights of Ba et al. (2016), as its equations have it: a matrix, read and written."""

import math
import numbers

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from shared.recurrent import Cell, _check_size

FastState = tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden hidden"]]
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


class FastWeightsCell(Cell):
    """Ba, Hinton, Mnih, Leibo and Ionescu, "Using fast weights to attend to the recent past" (2016), section 3.

    With φ the nonlinearity, λ `decay`, η `rate` and S `inner_steps`, a step is

        z_t = U x_t + W h_{t−1}
        h⁰_t = φ(z_t)                                       the preliminary state, not normalised
        hˢ⁺¹_t = φ(LN[z_t + A_{t−1} hˢ_t])                  for s = 0 … S − 1; the state is h_t = hˢ_t with s = S
        A_t = λ A_{t−1} + η h_t h_tᵀ

    and y_t = h_t. LN subtracts the mean over the units of one example, divides by their standard deviation, and applies
    `gain` and `bias`, the same in each inner step. `layer_norm=False` leaves `bias` alone of it. With λ = η = 0 and from
    A = 0 the cell is a layer-normalised recurrent network without fast weights.

    A state is the pair (h, A), with A (batch, hidden, hidden) as the last step left it; any other may be given to start
    from. Parameters: `U` (hidden, input), uniform in ±1/√hidden; `W` (hidden, hidden), 0.05 times the identity, as in a
    reproduction of the paper; `gain` and `bias` (hidden,), ones and zeros. The paper calls U C.

    `unroll` keeps a matrix for every step and sequence, for the backward pass; `chunked_unroll` gives the same without.

    Raises ValueError for sizes or `inner_steps` that are no whole numbers of at least 1, `decay` outside 0 … 1, `rate`
    that is not finite, and an unknown nonlinearity.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        inner_steps: int = 1,
        decay: float = 0.95,
        rate: float = 0.5,
        nonlinearity: str = "relu",
        layer_norm: bool = True,
    ):
        super().__init__(input_size, hidden_size)
        _check_count("inner_steps", inner_steps)
        for name, value in (("decay", decay), ("rate", rate)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number (got {value!r})")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be between 0, which forgets at once, and 1, which keeps all (got {decay!r})")
        if nonlinearity not in tuple(ACTIVATIONS):
            raise ValueError(f"nonlinearity must be one of {', '.join(ACTIVATIONS)} (got {nonlinearity!r})")
        self.inner_steps, self.decay, self.rate = inner_steps, float(decay), float(rate)
        self.nonlinearity = nonlinearity
        bound = hidden_size**-0.5
        self.U = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.W = nn.Parameter(0.05 * torch.eye(hidden_size))
        self.gain = nn.Parameter(torch.ones(hidden_size)) if layer_norm else None
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size: int) -> FastState:
        """Zeros: no activity, and nothing written."""
        h = super().initial_state(batch_size)
        return h, h.new_zeros(batch_size, self.hidden_size, self.hidden_size)

    def project(self, inputs: Float[Tensor, "*time batch input"]) -> Float[Tensor, "*time batch hidden"]:
        """U x_t."""
        return linear(inputs, self.U)

    def step(
        self, projected_t: Float[Tensor, "batch hidden"], state: FastState
    ) -> tuple[Float[Tensor, "batch hidden"], FastState]:
        """h_t, as the output, and (h_t, A_t)."""
        h, A = state
        z = projected_t + h @ self.W.T
        h = ACTIVATIONS[self.nonlinearity](z)
        for _ in range(self.inner_steps):
            sums = z + (A @ h[..., None])[..., 0]
            normalised = sums + self.bias if self.gain is None else layer_norm(sums, h.shape[-1:], self.gain, self.bias)
            h = ACTIVATIONS[self.nonlinearity](normalised)
        A = self.decay * A + self.rate * h[..., :, None] * h[..., None, :]
        return h, (h, A)


def _check_count(name: str, count: int) -> None:
    """As `_check_size`, which takes True for 1."""
    if isinstance(count, bool):
        raise ValueError(f"{name} must be a whole number of at least 1 (got {count!r})")
    _check_size(name, count)
