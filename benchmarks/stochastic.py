"""What stochastic neurons cost: a draw, a training step against that of sigmoids, and several samples in one evaluation.

`python benchmarks/stochastic.py` prints a table and stores it in `benchmarks/results/stochastic.json`. Milliseconds are
processor time of one call on one thread: the median of five runs, of about a fifth of a second each, in which the two
methods of a row take turns. A training step is forward and backward, without the optimiser's update. Rows:

- "draw": forward of `StraightThrough`, with its checks and its graph, against `torch.bernoulli` alone.
- "layer": a step of `nn.Linear` and `StraightThrough` against `nn.Linear` and a sigmoid.
- "samples": a step of `LeaveOneOut` with 16 samples in one evaluation of the loss against the same 16 one by one.
- "net": a step of 784-100-10 with cross-entropy at batch 50, the hidden layer with an estimator against sigmoids.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import mean_square, milliseconds, report
from shared.stochastic import (
    Arm,
    Binary,
    Concrete,
    DisArm,
    LeaveOneOut,
    Rebar,
    Reinforce,
    RunningBaseline,
    StraightThrough,
)

INPUT, HIDDEN, CLASSES, BATCH = 784, 100, 10, 50
SECONDS = 0.2
ESTIMATORS = {
    "StraightThrough": StraightThrough,
    "StraightThrough, pass-through": lambda: StraightThrough(adjusted=False),
    "StraightThrough, deterministic": lambda: StraightThrough(deterministic=True),
    "Concrete": Concrete,
    "Concrete, hard": lambda: Concrete(hard=True),
    "Reinforce": Reinforce,
    "RunningBaseline": lambda: RunningBaseline(HIDDEN),
    "LeaveOneOut, 2 samples": LeaveOneOut,
    "LeaveOneOut, 16 samples": lambda: LeaveOneOut(samples=16),
    "Arm": Arm,
    "DisArm": DisArm,
    "Rebar": lambda: Rebar(HIDDEN),
}


def draw(units: int, batch: int):
    layer, logits = StraightThrough(), torch.randn(batch, units, requires_grad=True)
    probabilities = logits.detach().sigmoid()
    return lambda: layer(logits), lambda: torch.bernoulli(probabilities)


def layer(units: int, batch: int):
    inputs = torch.randn(batch, INPUT)

    def training_step(activation):
        net = nn.Sequential(nn.Linear(INPUT, units), activation)

        def step():
            net.zero_grad()
            mean_square(net(inputs)).backward()

        return step

    return training_step(StraightThrough()), training_step(nn.Sigmoid())


def net(name: str, batch: int):
    inputs, targets = torch.randn(batch, INPUT), torch.randint(CLASSES, (batch,))

    def training_step(hidden_to_losses):
        below, above = nn.Linear(INPUT, HIDDEN), nn.Linear(HIDDEN, CLASSES)

        def step():
            below.zero_grad()
            above.zero_grad()
            hidden_to_losses(below(inputs), lambda values: losses_of(above(values), targets)).mean().backward()

        return step

    estimator = ESTIMATORS[name]()
    return training_step(estimator.expectation), training_step(lambda logits, loss_of: loss_of(logits.sigmoid()))


def losses_of(outputs, targets):
    """Cross-entropies, (..., batch), of outputs (..., batch, classes)."""
    every = targets.expand(outputs.shape[:-1])
    return cross_entropy(outputs.flatten(0, -2), every.flatten(), reduction="none").view(every.shape)


def samples(count: int, batch: int):
    logits, targets = torch.randn(batch, HIDDEN, requires_grad=True), torch.randint(CLASSES, (batch,))
    above, estimator = nn.Linear(HIDDEN, CLASSES), LeaveOneOut(samples=count)

    def loss_of(values):
        return losses_of(above(values), targets)

    def at_once():
        return estimator.expectation(logits, loss_of)

    def one_by_one():
        p = logits.detach().sigmoid()
        bits = [Binary.sample(p, None) for _ in range(count)]
        losses = [loss_of(values) for values in bits]
        mean = sum(losses) / count
        estimate = sum((f - mean).detach()[:, None] * (b - p) for f, b in zip(losses, bits, strict=True)) / (count - 1)
        carrier = (logits * estimate).sum(-1)
        return mean + carrier - carrier.detach()

    def training_step(expected):
        def step():
            above.zero_grad()
            logits.grad = None
            expected().mean().backward()

        return step

    return training_step(at_once), training_step(one_by_one)


ROWS = [
    (draw, 4096, 64),
    (layer, 4096, 64),
    (layer, 100, BATCH),
    (samples, 16, BATCH),
    *((net, name, BATCH) for name in ESTIMATORS),
]


def repeated(method, times: int):
    def repeat():
        for _ in range(times):
            method()

    return repeat


def measure(kind, of, batch: int) -> dict:
    torch.manual_seed(0)
    methods = dict(zip(("ours", "other"), kind(of, batch), strict=True))
    methods["ours"]()
    start = time.process_time()
    methods["ours"]()
    times = max(1, round(SECONDS / (time.process_time() - start)))
    took = milliseconds({name: repeated(method, times) for name, method in methods.items()})
    ours, other = (took[name] / times for name in ("ours", "other"))
    return {"row": kind.__name__, "of": of, "batch": batch, "ms": ours, "other, ms": other, "ratio": ours / other}


if __name__ == "__main__":
    report("stochastic", measure, ROWS)
