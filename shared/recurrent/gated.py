"""Cells with gates, from the prototype that only wants to remember to the LSTM, and what became of it.

Each cell is one small change to one before it. A gate is a layer of logistic units: i says how much is written, f how much
of the state is kept (1 keeps all), o how much is read; φ is tanh. Weights of all parts of a cell lie in one `U`, `W` and
`b`, in the order of its `parts`, so that a step takes one product with the state, or two where it reads it twice.
"""

import math
import numbers

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.recurrent import Cell, TanhCell

Hidden = Float[Tensor, "batch hidden"]
Projected = Float[Tensor, "batch parts_hidden"]


class GatedCell(Cell):
    """What gated cells have in common: parameters in rows by part, and the product with the inputs.

    Parameters: `U` (parts·hidden, input), `W` (parts·hidden, hidden) and `b` (parts·hidden,), drawn uniformly from ±1/√hidden,
    as in `torch.nn`. Its cells are written y_t, s_t from x_t, s_{t−1}, each part with rows of its own of U, W and b.
    """

    parts: tuple[str, ...]
    recurrent = True  # whether there is a W

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        rows = len(self.parts) * hidden_size
        self.U = self._uniform(rows, input_size)
        if self.recurrent:
            self.W = self._uniform(rows, hidden_size)
        self.b = self._uniform(rows)

    def _uniform(self, *shape: int) -> nn.Parameter:
        bound = self.hidden_size**-0.5
        return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def bias(self, part: str) -> Float[Tensor, " hidden"]:
        """The bias of one part, as a view without gradient: `cell.bias("f").fill_(1.0)` sets it.

        Raises ValueError if the cell has no such part.
        """
        if part not in self.parts:
            raise ValueError(f"part must be one of {', '.join(self.parts)} in a {type(self).__name__} (got {part!r})")
        return self.b.detach().view(len(self.parts), -1)[self.parts.index(part)]

    def project(self, inputs: Float[Tensor, "*time batch input"]) -> Float[Tensor, "*time batch parts_hidden"]:
        """U x_t + b, of all parts."""
        return nn.functional.linear(inputs, self.U, self.b)


class PrototypeCell(GatedCell):
    """The state is written to, and nothing else changes it; three gates select what is written, kept and read.

        i, f, o = σ(U x_t + W s_{t−1} + b)
        s̃_t = φ(U x_t + W (o ⊙ s_{t−1}) + b)
        s_t = f ⊙ s_{t−1} + i ⊙ s̃_t,        y_t = s_t

    R2RT, "Written memories" (2016). Nothing bounds the state, which is why it is a prototype.
    """

    parts = ("i", "f", "o", "candidate")

    def seen(self, s: Hidden) -> Hidden:
        """What gates, candidate and output see of the state."""
        return s

    def step(self, projected_t: Projected, s: Hidden) -> tuple[Hidden, Hidden]:
        gates, candidate = 3 * self.hidden_size, self.hidden_size
        x_gates, x_candidate = projected_t.split((gates, candidate), -1)
        W_gates, W_candidate = self.W.split((gates, candidate))
        seen = self.seen(s)
        i, f, o = torch.sigmoid(x_gates + seen @ W_gates.T).chunk(3, -1)
        s_new = torch.tanh(x_candidate + (o * seen) @ W_candidate.T)
        s = f * s + i * s_new
        return self.seen(s), s


class NormalisedPrototypeCell(PrototypeCell):
    """The prototype, of whose state gates, candidate and output see the normalised value (s − mean) / √(variance + 1).

    Mean and (population) variance are those of the units of one example: layer normalisation with ε = 1 and without
    gain and bias. A small state is seen as it is, but for its mean; the mean square of what is seen stays below 1. R2RT's post
    names such a cell; which normalisation it means is not known, and this one is the book's choice.
    """

    def seen(self, s: Hidden) -> Hidden:
        return nn.functional.layer_norm(s, (self.hidden_size,), eps=1.0)


class PseudoLSTMCell(PrototypeCell):
    """The prototype, of whose state gates, candidate and output see φ(s): R2RT's pseudo LSTM ("Written memories", 2016)."""

    def seen(self, s: Hidden) -> Hidden:
        return torch.tanh(s)


class GRUCell(GatedCell):
    """The gated recurrent unit of Cho et al. (2014): what is not kept is written, which bounds the state.

        r, z = σ(U x_t + W s_{t−1} + b)
        s̃_t = φ(U x_t + W (r ⊙ s_{t−1}) + b)
        s_t = z ⊙ s_{t−1} + (1 − z) ⊙ s̃_t,        y_t = s_t

    `torch.nn.GRU` reads after its product with W: that is `ResetAfterGRUCell`.
    """

    parts = ("r", "z", "candidate")

    def step(self, projected_t: Projected, s: Hidden) -> tuple[Hidden, Hidden]:
        gates, candidate = 2 * self.hidden_size, self.hidden_size
        x_gates, x_candidate = projected_t.split((gates, candidate), -1)
        W_gates, W_candidate = self.W.split((gates, candidate))
        r, z = torch.sigmoid(x_gates + s @ W_gates.T).chunk(2, -1)
        s_new = torch.tanh(x_candidate + (r * s) @ W_candidate.T)
        s = z * s + (1 - z) * s_new
        return s, s


class ResetAfterGRUCell(GatedCell):
    """The GRU of `torch.nn`: its candidate reads after the product, s̃_t = φ(U x_t + b + r ⊙ (W s_{t−1} + b_read)).

    One product with the state serves all parts. Its additional parameter is `b_read` (hidden,).
    """

    parts = ("r", "z", "candidate")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.b_read = self._uniform(hidden_size)

    def step(self, projected_t: Projected, s: Hidden) -> tuple[Hidden, Hidden]:
        gates, candidate = 2 * self.hidden_size, self.hidden_size
        x_gates, x_candidate = projected_t.split((gates, candidate), -1)
        s_gates, s_candidate = (s @ self.W.T).split((gates, candidate), -1)
        r, z = torch.sigmoid(x_gates + s_gates).chunk(2, -1)
        s_new = torch.tanh(x_candidate + r * (s_candidate + self.b_read))
        s = z * s + (1 - z) * s_new
        return s, s


class LSTMCell(GatedCell):
    """Long short-term memory with forget gate, Hochreiter and Schmidhuber (1997) and Gers et al. (2000); `torch.nn.LSTM`.

        i, f, o = σ(U x_t + W h_{t−1} + b)
        c̃_t = φ(U x_t + W h_{t−1} + b)
        c_t = f ⊙ c_{t−1} + i ⊙ c̃_t
        h_t = o ⊙ φ(c_t),        y_t = h_t

    The state is the pair (h, c). It reads after it writes: gates and candidate see h, what the last step has read.
    """

    parts = ("i", "f", "candidate", "o")

    def initial_state(self, batch_size: int) -> tuple[Hidden, Hidden]:
        """Zeros, for h and for c."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros

    def step(self, projected_t: Projected, state: tuple[Hidden, Hidden]) -> tuple[Hidden, tuple[Hidden, Hidden]]:
        h, c = state
        i, f, candidate, o = (projected_t + h @ self.W.T).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class PeepholeLSTMCell(LSTMCell):
    """The LSTM whose gates also see the cell, each unit its own, Gers and Schmidhuber (2000).

        i, f = σ(U x_t + W h_{t−1} + p ⊙ c_{t−1} + b),        o = σ(U x_t + W h_{t−1} + p ⊙ c_t + b)

    Its additional parameter is `p` (3, hidden), for i, f and o.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.p = self._uniform(3, hidden_size)

    def step(self, projected_t: Projected, state: tuple[Hidden, Hidden]) -> tuple[Hidden, tuple[Hidden, Hidden]]:
        h, c = state
        p_i, p_f, p_o = self.p
        i, f, candidate, o = (projected_t + h @ self.W.T).chunk(4, -1)
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(candidate)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        return h, (h, c)


class CoupledLSTMCell(LSTMCell):
    """The LSTM that writes what it does not keep, i = 1 − f, so that |c| < 1: the coupled gates of Greff et al. (2017)."""

    parts = ("f", "candidate", "o")

    def step(self, projected_t: Projected, state: tuple[Hidden, Hidden]) -> tuple[Hidden, tuple[Hidden, Hidden]]:
        h, c = state
        f, candidate, o = (projected_t + h @ self.W.T).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(candidate)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class NoForgetLSTMCell(LSTMCell):
    """The LSTM of 1997 in that it keeps everything, f = 1; its φ is tanh here, and its gradient the full one, not cut at the gates."""

    parts = ("i", "candidate", "o")

    def step(self, projected_t: Projected, state: tuple[Hidden, Hidden]) -> tuple[Hidden, tuple[Hidden, Hidden]]:
        h, c = state
        i, candidate, o = (projected_t + h @ self.W.T).chunk(3, -1)
        c = c + torch.sigmoid(i) * torch.tanh(candidate)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class LinearGatedCell(GatedCell):
    """A cell whose gates see the input alone, so that its step is linear in the state: s_t = a_t ⊙ s_{t−1} + u_t, y_t = s_t.

    It has no W. A cell defines `coefficients`.
    """

    recurrent = False

    def coefficients(
        self, projected: Float[Tensor, "*time batch parts_hidden"]
    ) -> tuple[Float[Tensor, "*time batch hidden"], Float[Tensor, "*time batch hidden"]]:
        """a and u, of one time step or of all."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(projected)")

    def step(self, projected_t: Projected, s: Hidden) -> tuple[Hidden, Hidden]:
        a, u = self.coefficients(projected_t)
        s = a * s + u
        return s, s


class MinGRUCell(LinearGatedCell):
    """The minimal GRU of Feng et al. (2024): z = σ(U x_t + b), s̃_t = U x_t + b, s_t = z ⊙ s_{t−1} + (1 − z) ⊙ s̃_t.

    Here z is the share that is kept, as in the GRU above; in the paper it is the share that is written. There is no W.
    """

    parts = ("z", "candidate")

    def coefficients(self, projected):
        z, candidate = projected.chunk(2, -1)
        return torch.sigmoid(z), torch.sigmoid(-z) * candidate


class MinLSTMCell(LinearGatedCell):
    """The minimal LSTM of Feng et al. (2024), f and i as shares of their sum: s_t = f/(f+i) ⊙ s_{t−1} + i/(f+i) ⊙ s̃_t.

    i, f = σ(U x_t + b) and s̃_t = U x_t + b. There is no W.
    """

    parts = ("i", "f", "candidate")

    def coefficients(self, projected):
        i, f, candidate = projected.chunk(3, -1)
        log_i, log_f = nn.functional.logsigmoid(i), nn.functional.logsigmoid(f)
        return torch.sigmoid(log_f - log_i), torch.sigmoid(log_i - log_f) * candidate


def chrono_init_(cell: GatedCell, longest: int, generator: torch.Generator | None = None) -> None:
    """Set the biases of a cell's gates so that its units forget after 2 to `longest` steps, evenly spread on average.

    b_f ~ log U[1, longest − 1], and b_i = −b_f where there is a write gate of its own: Tallec and Ollivier, "Can recurrent
    neural networks warp time?" (2018), equation 16. A unit with bias b keeps a share σ(b) of its state a step, hence for
    about 1 + e^b steps. In a GRU and a minimal GRU, z is the gate that keeps.

    Raises ValueError if the cell has no gate that keeps, or if `longest` is not a number above 2.
    """
    keep = next((part for part in ("f", "z") if part in getattr(cell, "parts", ())), None)
    if keep is None:
        raise ValueError(f"cell must have a gate f or z that keeps (got {type(cell).__name__})")
    if not (isinstance(longest, numbers.Real) and 2 < longest < math.inf):
        raise ValueError(f"longest must be a number of steps above 2 (got {longest!r})")
    b = cell.bias(keep)
    b.copy_(torch.empty_like(b).uniform_(1, longest - 1, generator=generator).log_())
    if "i" in cell.parts:
        cell.bias("i").copy_(-b)


def from_torch(module: nn.RNN | nn.GRU | nn.LSTM) -> Cell:
    """The cell that computes what a `torch.nn` module of one layer does: TanhCell, ResetAfterGRUCell or LSTMCell.

    The two biases of the module are added where only their sum matters. The cell has the module's dtype and device, and
    copies of its weights.

    Raises TypeError for another module, and ValueError for more than one layer or direction, or other options.
    """
    kinds = {nn.RNN: TanhCell, nn.GRU: ResetAfterGRUCell, nn.LSTM: LSTMCell}
    kind = next((ours for theirs, ours in kinds.items() if isinstance(module, theirs)), None)
    if kind is None:
        raise TypeError(f"module must be a torch.nn.RNN, GRU or LSTM (got {type(module).__name__})")
    plain = {"num_layers": 1, "bidirectional": False, "proj_size": 0, "bias": True, "batch_first": False}
    for name, wanted in (plain | {"nonlinearity": "tanh"}).items():
        if getattr(module, name, wanted) != wanted:
            raise ValueError(f"{name} of the module must be {wanted!r} (got {getattr(module, name)!r})")
    cell = kind(module.input_size, module.hidden_size).to(module.weight_hh_l0)
    with torch.no_grad():
        cell.U.copy_(module.weight_ih_l0)
        cell.W.copy_(module.weight_hh_l0)
        cell.b.copy_(module.bias_ih_l0 + module.bias_hh_l0)
        if kind is ResetAfterGRUCell:
            cell.bias("candidate").copy_(module.bias_ih_l0[-module.hidden_size :])
            cell.b_read.copy_(module.bias_hh_l0[-module.hidden_size :])
    return cell


def to_torch(cell: TanhCell | ResetAfterGRUCell | LSTMCell) -> nn.RNN | nn.GRU | nn.LSTM:
    """The `torch.nn` module of one layer that computes what a cell does, with copies of its weights: see `from_torch`.

    Raises TypeError for a cell that `torch.nn` does not have.
    """
    kinds = {TanhCell: nn.RNN, ResetAfterGRUCell: nn.GRU, LSTMCell: nn.LSTM}
    if type(cell) not in kinds:  # a subclass computes something else
        raise TypeError(f"cell must be a {', '.join(kind.__name__ for kind in kinds)} (got {type(cell).__name__})")
    module = kinds[type(cell)](cell.input_size, cell.hidden_size).to(cell.W)
    with torch.no_grad():
        module.weight_ih_l0.copy_(cell.U)
        module.weight_hh_l0.copy_(cell.W)
        module.bias_ih_l0.copy_(cell.b)
        module.bias_hh_l0.zero_()
        if isinstance(cell, ResetAfterGRUCell):
            module.bias_hh_l0[-cell.hidden_size :].copy_(cell.b_read)
    return module
