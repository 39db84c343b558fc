"""Recurrent cells with one interface, and `unroll`, which runs any of them over a sequence."""

import numbers

import torch
from jaxtyping import Float
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]  # (batch, hidden) each


class Cell(nn.Module):
    """One step of a recurrent network: (x_t, state) -> (y_t, state), where a state is a tensor or a tuple of tensors.

    A cell defines `step`. It may define `project`, the part of its work that needs the inputs alone, which `unroll`
    then does for all time steps at once. It redefines `initial_state` if its state is more than one tensor
    (batch, hidden). Neither changes the cell, so `torch.func` can differentiate, batch and call it functionally.

    Raises ValueError if a size is not a whole number of at least 1.
    """

    def __init__(self, input_size: int, hidden_size: int):
        _check_size("input_size", input_size)
        _check_size("hidden_size", hidden_size)
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size

    def initial_state(self, batch_size: int) -> State:
        """Zeros, (batch, hidden), on the device and of the dtype of the parameters."""
        like = next(self.parameters())
        return torch.zeros(batch_size, self.hidden_size, dtype=like.dtype, device=like.device)

    def project(self, inputs: Float[Tensor, "*time batch input"]) -> Float[Tensor, "*time batch projected"]:
        """What `step` needs of the inputs, of one time step or of all: the inputs themselves, unless redefined."""
        return inputs

    def step(
        self, projected_t: Float[Tensor, "batch projected"], state: State
    ) -> tuple[Float[Tensor, "batch output"], State]:
        """The output and the next state, from the projected input and the last state.

        Raises NotImplementedError in a cell that does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(projected_t, state)")

    def forward(self, x_t: Float[Tensor, "batch input"], state: State) -> tuple[Float[Tensor, "batch output"], State]:
        """One step from the inputs themselves: `step` of what `project` gives."""
        return self.step(self.project(x_t), state)


class TanhCell(Cell):
    """The simple recurrent network of Elman (1990) with tanh: h_t = tanh(U x_t + W h_{t−1} + b), and y_t = h_t.

    It is `torch.nn.RNN` of one layer, whose two biases add up to b. Parameters: `U` (hidden, input), `W` (hidden, hidden)
    and `b` (hidden,), drawn in this order and from the same distribution as there, uniform in ±1/√hidden.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        bound = hidden_size**-0.5
        self.U = nn.Parameter(torch.empty(hidden_size, input_size).uniform_(-bound, bound))
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))

    def project(self, inputs: Float[Tensor, "*time batch input"]) -> Float[Tensor, "*time batch hidden"]:
        """U x_t + b."""
        return nn.functional.linear(inputs, self.U, self.b)

    def step(
        self, projected_t: Float[Tensor, "batch hidden"], state: Float[Tensor, "batch hidden"]
    ) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]:
        """h_t, as the output and as the next state."""
        h = torch.tanh(projected_t + state @ self.W.T)
        return h, h


def unroll(
    cell: Cell, inputs: Float[Tensor, "time batch input"], state: State | None = None
) -> tuple[Float[Tensor, "time batch output"], State]:
    """Run a cell over a sequence: the outputs of all time steps, and the last state.

    state: where to begin, like `cell.initial_state(batch)`, which is the default. Gradients flow back into it: detach
        the last state of one part of a sequence to carry it over to the next without them.
    Time and memory are linear in the number of steps, forward and backward. Hooks on the cell do not run, since
    `unroll` calls its `project`, once, and its `step`.

    Raises ValueError for inputs or a state of the wrong shape or for no time steps, and TypeError for what is no tensor,
    not of the cell's dtype (as whole numbers never are) or not on its device.
    """
    state = _starting_state(cell, inputs, state)
    outputs = []
    for projected_t in cell.project(inputs).unbind(0):  # indexing would make the backward pass quadratic in time
        y_t, state = cell.step(projected_t, state)
        outputs.append(y_t)
    return torch.stack(outputs), state


class _Layers:
    """A torch.nn.RNN, GRU or LSTM with the interface of a `Cell`, but for the form of the state outside.

    The state of a step is a tuple of tensors (batch, hidden): h of each layer and then, in an LSTM, c of each layer.
    """

    def __init__(self, module: nn.RNN | nn.GRU | nn.LSTM):
        for name, value, allowed in (
            ("bidirectional", module.bidirectional, "False: a state of its backward direction comes from later steps"),
            ("batch_first", module.batch_first, "False: inputs are (time, batch, input)"),
            ("proj_size", module.proj_size, "0: an output must have the size of the state"),
            ("dropout", module.training and module.dropout, "0 in training: a step must give the same again"),
        ):
            if value:
                raise ValueError(f"{name} of the torch.nn.{type(module).__name__} must be {allowed} (got {value})")
        self.module, self.weights = module, module.all_weights
        self.input_size, self.parameters = module.input_size, module.parameters

    def initial_state(self, batch_size: int) -> State:
        """As the module has it: zeros (layers, batch, hidden), or two of these."""
        zeros = self.weights[0][0].new_zeros(len(self.weights), batch_size, self.module.hidden_size)
        return (zeros, zeros) if isinstance(self.module, nn.LSTM) else zeros

    def split(self, state: State) -> tuple[Tensor, ...]:
        return tuple(layer for one in _parts(state) for layer in one.unbind(0))

    def join(self, parts: tuple[Tensor, ...]) -> State:
        layers = len(self.weights)
        joined = tuple(torch.stack(parts[i : i + layers]) for i in range(0, len(parts), layers))
        return joined if isinstance(self.module, nn.LSTM) else joined[0]

    def project(self, inputs: Tensor, layer: int = 0) -> Tensor:
        """The part of a layer's sums that needs its input alone."""
        W, _, *b = self.weights[layer]
        waits = isinstance(self.module, nn.GRU)  # which multiplies the second bias by a gate
        return nn.functional.linear(inputs, W, (b[0] if waits else b[0] + b[1]) if b else None)

    def step(self, projected_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        after = []
        for layer in range(len(self.weights)):
            z = projected_t if layer == 0 else self.project(after[-1][0], layer)
            after.append(self._step(z, state[layer :: len(self.weights)], *self.weights[layer][1::2]))
        return after[-1][0], tuple(part for kind in zip(*after, strict=True) for part in kind)

    def _step(self, z: Tensor, state: tuple[Tensor, ...], W: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...]:
        """One layer's new h, and its new c in an LSTM."""
        if isinstance(self.module, nn.GRU):
            (h,) = state
            (r, u, n), (r_h, u_h, n_h) = z.chunk(3, -1), nn.functional.linear(h, W, b).chunk(3, -1)
            n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
            return (n + torch.sigmoid(u + u_h) * (h - n),)
        z = torch.addmm(z, state[0], W.T)
        if isinstance(self.module, nn.LSTM):
            i, f, g, o = z.chunk(4, -1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        return (torch.tanh(z) if self.module.nonlinearity == "tanh" else torch.relu(z),)


def _parts(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _starting_state(cell: Cell, inputs: Tensor, state: State | None) -> State:
    """`state`, or else the cell's own initial state, once it and the inputs have been found to suit the cell."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor (got {_form(inputs)})")
    if inputs.ndim != 3 or len(inputs) == 0 or inputs.shape[2] != cell.input_size:
        raise ValueError(
            f"inputs must have shape (time, batch, {cell.input_size}) with at least one time step "
            f"(got {tuple(inputs.shape)})"
        )
    default = cell.initial_state(inputs.shape[1])
    state = default if state is None else state
    if _form(state) != _form(default):
        raise TypeError(f"state must be a {_form(default)}, like the cell's initial state (got {_form(state)})")
    in_tuple = isinstance(default, tuple)
    given, wanted = (state, default) if in_tuple else ((state,), (default,))
    _check_kind("inputs", inputs, wanted[0])
    for i, (part, like) in enumerate(zip(given, wanted, strict=True)):
        name = f"state[{i}]" if in_tuple else "state"
        if part.shape != like.shape:  # a batch of 1 would broadcast in silence
            raise ValueError(f"{name} must have shape {tuple(like.shape)} for these inputs (got {tuple(part.shape)})")
        _check_kind(name, part, like)
    return state


def _check_size(name: str, size: int) -> None:
    if not isinstance(size, numbers.Integral) or size < 1:
        raise ValueError(f"{name} must be a whole number of at least 1 (got {size!r})")


def _form(value) -> str:
    """What a state is made of, in words: "tensor", "tuple (tensor, tensor)", or else the name of its type."""
    if isinstance(value, tuple):
        return f"tuple ({', '.join(map(_form, value))})"
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _check_kind(name: str, value: Tensor, like: Tensor) -> None:
    if (value.dtype, value.device) != (like.dtype, like.device):
        kind, got = (f"{one.dtype} on {one.device}" for one in (like, value))
        raise TypeError(f"{name} must be {kind}, as the cell is (got {got})")


from shared.recurrent.fast import fast_unroll, linear_scan  # noqa: E402 (these modules use what is above)
from shared.recurrent.gated import (  # noqa: E402
    CoupledLSTMCell,
    GatedCell,
    GRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    NoForgetLSTMCell,
    NormalisedPrototypeCell,
    PeepholeLSTMCell,
    PrototypeCell,
    PseudoLSTMCell,
    ResetAfterGRUCell,
    chrono_init_,
    from_torch,
    to_torch,
)
from shared.recurrent.padded import (  # noqa: E402
    last_outputs,
    length_mask,
    masked_mean,
    reverse_padded,
    run_padded,
)

__all__ = [
    "Cell",
    "CoupledLSTMCell",
    "GRUCell",
    "GatedCell",
    "LSTMCell",
    "MinGRUCell",
    "MinLSTMCell",
    "NoForgetLSTMCell",
    "NormalisedPrototypeCell",
    "PeepholeLSTMCell",
    "PrototypeCell",
    "PseudoLSTMCell",
    "ResetAfterGRUCell",
    "State",
    "TanhCell",
    "chrono_init_",
    "fast_unroll",
    "from_torch",
    "last_outputs",
    "length_mask",
    "linear_scan",
    "masked_mean",
    "reverse_padded",
    "run_padded",
    "to_torch",
    "unroll",
]
