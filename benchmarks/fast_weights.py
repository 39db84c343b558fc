"""What fast weights cost, forward and backward: the network of Ba et al. in its forms, and linear ones chunk by chunk.

`python benchmarks/fast_weights.py` prints tables and stores them in `benchmarks/results/`. Milliseconds are processor time
on one thread, the median of five runs in which the methods of a row take turns; megabytes are those of the tensors that
graphs keep for the backward pass.

Rows of "fast_weights" are training steps of a FastWeightsCell, at a number of steps, sequences, units and inner steps, from
inputs that want no gradient to the gradients of all parameters:

- "unroll" reads and writes a matrix at each step. "matrices", "attention" and "chunked" are `chunked_unroll` with chunks of
  one step, with one chunk, and with chunks as it chooses them.
- "stacked states" is attention as one writes it down at first, a list of the states so far that is stacked at each step, and
  autograd; "LSTM" is `torch.nn.LSTM` of as many units.

Rows of "fast_weights_linear" are rules at a number of steps, sequences and dimensions (of keys and values alike), from
inputs to the gradients of all of them:

- "loop" is A_t step by step, a matrix for each sequence, without indexing; "indexing" the same with x[t], as it is often
  written, which makes the backward pass quadratic in time.
- "plain chunks" is the least that one can do for the sum rule without decay: no options, no checks, one block of code.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import layer_norm, normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import mean_square, megabytes, milliseconds, report
from shared.fast_weights import FastWeightsCell, chunked_unroll, delta_rule, linear_attention
from shared.recurrent import unroll

INPUT = 50
CELL_SIZES = [  # time, batch, units, inner steps
    (7, 128, 50, 1),
    (11, 128, 50, 1),
    (11, 128, 50, 3),
    (50, 64, 100, 1),
    (200, 32, 100, 1),
    (400, 16, 64, 1),
    (1000, 8, 32, 1),
]
LINEAR_SIZES = [(1024, 8, 64), (1024, 4, 128), (128, 32, 32)]  # time, batch, dimensions
LINEAR_RULES = ["sum", "sum, decay a step", "delta", "delta, decay and strength a step"]
CHUNKS = (16, 32, 64, 128)


def stacked_states(cell, inputs):
    """A FastWeightsCell from A = 0: each read attends to the list of states so far, with φ = relu."""
    h, states = cell.initial_state(inputs.shape[1])[0], []
    for t, projected_t in enumerate(cell.project(inputs).unbind(0)):
        z = projected_t + h @ cell.W.T
        h = torch.relu(z)
        if states:
            past = torch.stack(states, 1)
            ages = torch.arange(t - 1, -1, -1, dtype=h.dtype, device=h.device)
            decays = cell.rate * cell.decay**ages
        for _ in range(cell.inner_steps):
            read = ((past @ h[:, :, None]) * decays[:, None] * past).sum(1) if states else 0
            h = torch.relu(layer_norm(z + read, h.shape[1:], cell.gain, cell.bias))
        states.append(h)
    return torch.stack(states), None


def measure_cell(steps: int, batch: int, hidden_size: int, inner_steps: int) -> dict:
    torch.manual_seed(0)
    inputs = torch.randn(steps, batch, INPUT)
    cell = FastWeightsCell(INPUT, hidden_size, inner_steps=inner_steps)
    lstm = nn.LSTM(INPUT, hidden_size)

    def training_step(run, *given, **options):
        return lambda: mean_square(run(*given, **options)[0]).backward()

    methods = {
        "unroll": training_step(unroll, cell, inputs),
        "stacked states": training_step(stacked_states, cell, inputs),
        "matrices": training_step(chunked_unroll, cell, inputs, chunk=1),
        "attention": training_step(chunked_unroll, cell, inputs, chunk=steps),
        "chunked": training_step(chunked_unroll, cell, inputs),
        "LSTM": training_step(lstm, inputs),
    }
    took, kept = milliseconds(methods), {name: megabytes(method) for name, method in methods.items()}
    return {
        **{"time": steps, "batch": batch, "hidden": hidden_size, "inner steps": inner_steps},
        **{f"{name}, ms": took[name] for name in took},
        **{f"chunked / {name}": took["chunked"] / took[name] for name in took if name != "chunked"},
        **{f"{name}, MB": kept[name] for name in kept},
        "chunked / unroll, of MB": kept["chunked"] / kept["unroll"],
    }


def linear_loop(q, k, v, strength, decay):
    """A_t = α_t A_{t−1} + u_t k_tᵀ, with u = v or, given a strength, β (v − α A k)."""
    A, outputs = v.new_zeros(v.shape[1], v.shape[2], k.shape[2]), []
    steps = [one.unbind(0) if torch.is_tensor(one) else [one] * len(q) for one in (q, k, v, strength, decay)]
    for q_t, k_t, v_t, b, a in zip(*steps, strict=True):
        A = (a[:, None, None] if torch.is_tensor(a) else a) * A
        if b is not None:
            v_t = (b[:, None] if torch.is_tensor(b) else b) * (v_t - (A @ k_t[:, :, None])[:, :, 0])
        A = A + v_t[:, :, None] * k_t[:, None, :]
        outputs.append((A @ q_t[:, :, None])[:, :, 0])
    return torch.stack(outputs)


def indexing_loop(q, k, v):
    """The sum rule with q[t], k[t] and v[t]."""
    A, outputs = v.new_zeros(v.shape[1], v.shape[2], k.shape[2]), []
    for t in range(len(q)):
        A = A + v[t][:, :, None] * k[t][:, None, :]
        outputs.append((A @ q[t][:, :, None])[:, :, 0])
    return torch.stack(outputs)


def plain_chunks(q, k, v, chunk=64):
    """The sum rule without decay; `chunk` divides the number of steps."""
    q, k, v = (one.unflatten(0, (-1, chunk)).transpose(1, 2).contiguous() for one in (q, k, v))
    after = (k.mT @ v).cumsum(0)
    before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
    return ((q @ k.mT).tril() @ v + q @ before).transpose(1, 2).flatten(0, 1)


def measure_linear(rule: str, steps: int, batch: int, size: int) -> dict:
    torch.manual_seed(0)
    q, k, v = (torch.randn(steps, batch, size) for _ in range(3))
    k = normalize(k, dim=-1)
    each_step = "a step" in rule
    strength = None if rule.startswith("sum") else torch.rand(steps, batch) if each_step else 1.0
    decay = 0.9 + 0.1 * torch.rand(steps, batch) if each_step else 1.0

    def training_step(run, *inputs, **options):
        def step():
            leaves = [one.clone().requires_grad_() if torch.is_tensor(one) else one for one in inputs]
            outputs = run(*leaves, **options)
            mean_square(outputs if torch.is_tensor(outputs) else outputs[0]).backward()

        return step

    function, given = (linear_attention, (decay,)) if strength is None else (delta_rule, (strength, decay))
    chunks = {f"chunks of {chunk}": training_step(function, q, k, v, *given, chunk=chunk) for chunk in CHUNKS}
    methods = {"loop": training_step(linear_loop, q, k, v, strength, decay), **chunks}
    if rule == "sum":
        methods["indexing"] = training_step(indexing_loop, q, k, v)
        methods["plain chunks"] = training_step(plain_chunks, q, k, v)
    took, default = milliseconds(methods), "chunks of 32"
    return {
        **{"rule": rule, "time": steps, "batch": batch, "size": size},
        **{f"{name}, ms": took[name] for name in took},
        **{f"32 / {name}": took[default] / took[name] for name in ("loop", "indexing", "plain chunks") if name in took},
        **{f"{name}, MB": megabytes(methods[name]) for name in ("loop", default)},
    }


if __name__ == "__main__":
    report("fast_weights", measure_cell, CELL_SIZES, decimals=3)
    rows = [(rule, *sizes) for sizes in LINEAR_SIZES for rule in LINEAR_RULES]
    report("fast_weights_linear", measure_linear, rows, decimals=3)
