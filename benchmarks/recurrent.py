"""What a training step costs, forward and backward: loops written in four ways, and the modules of `torch.nn`.

`python benchmarks/recurrent.py` prints a table and stores it in `benchmarks/results/recurrent.json`. Milliseconds are
processor time on one thread, the median of five runs in which the methods of a row take turns, from inputs that want
no gradient to the gradients of all parameters; megabytes are those of the tensors that graphs keep for the backward
pass. `torch.compile` is given the loop of `unroll`, where it is short; its first run, in seconds by the clock, compiles.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch.nn.functional import linear

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import mean_square, megabytes, milliseconds, report
from shared.recurrent import (
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    ResetAfterGRUCell,
    TanhCell,
    fast_unroll,
    to_torch,
    unroll,
)

SIZES = [(50, 32, 64, 128), (200, 32, 200, 200), (1000, 4, 64, 64)]  # time, batch, input, hidden
BY_HAND = (TanhCell, LSTMCell)
SHORT = 50  # compiling takes half a second a step
ROWS = [(kind, *sizes) for kind in (*BY_HAND, ResetAfterGRUCell, MinGRUCell, MinLSTMCell) for sizes in SIZES]


def first_attempt(cell, inputs, state=None):
    """A TanhCell or an LSTMCell as one writes it down at first: each gate is a layer of its own, and each input is x[t]."""
    weights = torch.cat([cell.U, cell.W], 1).split(cell.hidden_size)
    layers = list(zip(weights, cell.b.split(cell.hidden_size), strict=True))
    state = cell.initial_state(inputs.shape[1]) if state is None else state
    outputs = []
    for t in range(len(inputs)):
        seen = torch.cat([inputs[t], state if isinstance(cell, TanhCell) else state[0]], 1)
        sums = [linear(seen, W, b) for W, b in layers]
        if isinstance(cell, TanhCell):
            h = state = torch.tanh(sums[0])
        else:
            i, f, o = (torch.sigmoid(sums[k]) for k in (0, 1, 3))
            c = f * state[1] + i * torch.tanh(sums[2])
            h = o * torch.tanh(c)
            state = h, c
        outputs.append(h)
    return torch.stack(outputs), state


def measure(kind: type, steps: int, batch: int, input_size: int, hidden_size: int) -> dict:
    torch.manual_seed(0)
    inputs, cell = torch.randn(steps, batch, input_size), kind(input_size, hidden_size)

    def training_step(run, *before):
        return lambda: mean_square(run(*before, inputs)[0]).backward()

    methods = {"unroll": training_step(unroll, cell)}
    if kind in BY_HAND:
        methods = {"first attempt": training_step(first_attempt, cell), **methods}
    if kind is not ResetAfterGRUCell:  # for which `fast_unroll` is `unroll`
        methods["fast_unroll"] = training_step(fast_unroll, cell)
    if kind in (*BY_HAND, ResetAfterGRUCell):
        methods["torch.nn"] = training_step(to_torch(cell))
    compiled = {}
    if kind in BY_HAND and steps <= SHORT:
        torch.compiler.reset()
        methods["compiled"] = training_step(torch.compile(unroll), cell)
        with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=empty):
            start = time.perf_counter()
            methods["compiled"]()  # without what an earlier run has compiled
            compiled["to compile, s"] = time.perf_counter() - start
    took = milliseconds(methods)
    best = "fast_unroll" if "fast_unroll" in took else "unroll"
    return {
        "cell": kind.__name__,
        **{"time": steps, "batch": batch, "input": input_size, "hidden": hidden_size},
        **{f"{name}, ms": took[name] for name in took},
        **compiled,
        **{f"{best} / {name}": took[best] / took[name] for name in took if name != best},
        **{f"{name}, MB": megabytes(methods[name]) for name in ("unroll", "fast_unroll") if name in methods},
    }


if __name__ == "__main__":
    report("recurrent", measure, ROWS)
