"""What synthetic gradients cost and gain: layers in one process, windows of recurrent networks, and a stack over processes.

`python benchmarks/synthetic_gradients.py` prints tables and stores them in `benchmarks/results/`.

Rows of "synthetic_gradients" are training steps on one thread, forward, backward and the update of everything by Adam, in
milliseconds of processor time, the median of five runs in which the methods of a row take turns:

- at a number of hidden layers of a number of units, for a batch: backpropagation, and synthetic gradients at a cut after each
  hidden layer, with linear predictors that see the label, and with predictors of one hidden layer. "counted" is the same ratio
  in multiplications, without updates.
- "window" is one of truncated backpropagation, of a number of steps, for a batch, and units: a plain chunk, and `window_backward`
  with a predictor of one hidden layer, of as many units.

Rows of "synthetic_gradients_processes" are steps of a stack of five hidden layers, split over two processes: wall-clock
milliseconds in the second half of a run of 24 updates, the median of three runs that take turns; "predicted" are those of `timeline`,
from operations that were timed one at a time. Run it on two cores with nothing else to do.
"""

import statistics
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import milliseconds, report
from shared.recurrent import LSTMCell, unroll
from shared.synthetic_gradients import (
    DecoupledStack,
    GradientPredictor,
    Workers,
    period,
    timeline,
    train_in_turn,
    typical_seconds,
    window_backward,
)

PIXELS, CLASSES, SPLIT_DEPTH, RUNS = 784, 10, 5, 3
STACKS = [(2, 512, 256), (4, 512, 256), (6, 512, 256), (4, 128, 256), (4, 1024, 256)]  # hidden layers, units, batch
WINDOWS = [(5, 20, 64), (5, 64, 256), (20, 64, 256)]  # steps, batch, units
SPLITS = [(width, delay) for width in (128, 512) for delay in (0.0, 0.005, 0.02)]  # units, seconds
ADAM = partial(torch.optim.Adam, lr=1e-3)


def layered(hidden_layers: int, width: int) -> list[nn.Module]:
    sizes = [PIXELS, *[width] * hidden_layers]
    layers = [nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()) for a, b in pairwise(sizes)]
    return [*layers, nn.Linear(width, CLASSES)]


def measure_stack(hidden_layers: int, width: int, batch: int) -> dict:
    torch.manual_seed(0)
    x, y = torch.randn(batch, PIXELS), torch.randint(CLASSES, (batch,))

    def training_step(hidden):
        places = [] if hidden is None else range(1, hidden_layers + 1)
        stack = DecoupledStack(
            layered(hidden_layers, width), {place: GradientPredictor(width, CLASSES, hidden) for place in places}
        )
        optimizer = ADAM(stack.parameters())

        def step():
            optimizer.zero_grad()
            stack.backward(x, lambda out: cross_entropy(out, y, reduction="none"), y)
            optimizer.step()

        return step

    took = milliseconds(
        {"backprop": training_step(None), "linear": training_step(()), "hidden layer": training_step((width,))}
    )
    layers = 2 * PIXELS * width + 3 * width**2 * (hidden_layers - 1) + 3 * width * CLASSES
    linear = 3 * hidden_layers * (width + CLASSES) * width
    return {
        **{"kind": "stack", "layers or steps": hidden_layers, "units": width, "batch": batch},
        **{f"{name}, ms": took[name] for name in took},
        "linear / backprop": took["linear"] / took["backprop"],
        "counted, linear": 1 + linear / layers,
        "hidden layer / backprop": took["hidden layer"] / took["backprop"],
        "counted, hidden layer": 1 + (linear + 4 * hidden_layers * width**2) / layers,
    }


def measure_window(steps: int, batch: int, width: int) -> dict:
    torch.manual_seed(0)
    inputs, cell, lstm = torch.randn(steps, batch, width), LSTMCell(width, width), nn.LSTM(width, width)
    row = {"kind": "window", "layers or steps": steps, "units": width, "batch": batch}
    for name, model in (("LSTMCell", cell), ("nn.LSTM", lstm)):
        predictor = GradientPredictor(2 * width, hidden=(width,))
        optimizer = ADAM([*model.parameters(), *predictor.parameters()])
        start = window_backward(model, inputs, _squares, predictor).state

        def window(model=model, predictor=predictor, optimizer=optimizer, start=start):
            optimizer.zero_grad()
            window_backward(model, inputs, _squares, predictor, start)
            optimizer.step()

        def chunk(model=model, optimizer=optimizer, start=start):
            optimizer.zero_grad()
            _squares(_run(model, inputs, start)).mean().backward()
            optimizer.step()

        took = milliseconds({"chunk": chunk, "window": window})
        row |= {f"{name} {kind}, ms": took[kind] for kind in took}
        row[f"{name}, window / chunk"] = took["window"] / took["chunk"]
    return row


def _squares(outputs):
    return outputs.square().mean(2).sum(0)


def _run(model, inputs, start):
    return model(inputs, start)[0] if isinstance(model, nn.LSTM) else unroll(model, inputs, start)[0]


def measure_split(workers: Workers, width: int, delay: float, batch: int = 256, updates: int = 24) -> dict:
    torch.manual_seed(0)
    x, y = torch.randn(2_000, PIXELS), torch.randint(CLASSES, (2_000,))
    order, layers = torch.randint(len(x), (updates, batch)), layered(SPLIT_DEPTH, width)
    methods = {
        "one thread": (SPLIT_DEPTH + 1, {"schedule": "locked"}, {"threads": 1}),
        "two threads": (SPLIT_DEPTH + 1, {"schedule": "locked"}, {"threads": 2}),
        "locked": (2, {"schedule": "locked"}, {}),
        "4 parts": (2, {"schedule": "pipelined", "micro_batches": 4}, {}),
        "8 parts": (2, {"schedule": "pipelined", "micro_batches": 8}, {}),
        "decoupled": (2, {"schedule": "decoupled", "staleness": 2}, {}),
    }
    took, model = {name: [] for name in methods}, {}
    for _ in range(RUNS):
        for name, (cut, options, more) in methods.items():
            pieces = [nn.Sequential(*part) for part in (layers[:cut], layers[cut:]) if part]
            predictors = [GradientPredictor(width, CLASSES)] if name == "decoupled" else []
            run = workers.train(pieces, predictors, x, y, order, optimizer=ADAM, delay=delay, **options, **more)
            took[name].append(1000 * period(run.events, 3))
            if name not in model and len(pieces) > 1:
                alone = train_in_turn(pieces, predictors, x, y, order[:10], optimizer=ADAM, **options)
                model[name] = 1000 * period(
                    timeline(seconds=typical_seconds(alone.events), steps=60, delay=delay, **options), 3
                )
    took = {name: statistics.median(times) for name, times in took.items()}
    others = min(took[name] for name in took if name != "decoupled")
    return {
        **{"units": width, "batch": batch, "delay, ms": 1000 * delay},
        **{f"{name}, ms": took[name] for name in took},
        **{f"{name}, predicted": model[name] for name in model},
        "locked / decoupled": took["locked"] / took["decoupled"],
        "best other / decoupled": others / took["decoupled"],
    }


if __name__ == "__main__":
    measures = {"stack": measure_stack, "window": measure_window}
    rows = [("stack", *one) for one in STACKS] + [("window", *one) for one in WINDOWS]
    report("synthetic_gradients", lambda kind, *sizes: measures[kind](*sizes), rows, decimals=3)
    with Workers(2) as workers:
        report("synthetic_gradients_processes", partial(measure_split, workers), SPLITS)
