"""A stack cut in pieces, each with its optimizer: what a piece does at its turn, and all of them in one process."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared.synthetic_gradients.predictors import GradientPredictor
from shared.synthetic_gradients.schedule import Event, Operation, in_order, operations, sends_to, waits_for


class Run(NamedTuple):
    """What a training returns.

    layers and predictors: trained copies, on the CPU.
    losses: the mean loss of each step, as the last piece met it, (steps,).
    seconds: when each step was over in all pieces, (steps,), counted from the moment at which the first piece could begin.
    snapshots: the stack as it was after some numbers of steps.
    events: what each piece did when.
    """

    layers: nn.Sequential
    predictors: tuple[GradientPredictor, ...]
    losses: np.ndarray
    seconds: np.ndarray
    snapshots: dict[int, nn.Sequential]
    events: list[Event]


class _Plan(NamedTuple):
    schedule: str
    pieces: int
    order: Tensor  # (steps, batch), the examples of each step
    labels: Tensor
    inputs: Tensor | None
    optimizer: Callable
    predictor_optimizer: Callable
    micro_batches: int
    staleness: int
    delay: float
    snapshots: frozenset
    threads: int

    @property
    def options(self) -> dict:
        return {"micro_batches": self.micro_batches, "staleness": self.staleness}


class _Piece:
    """A piece of the stack at work: it does one operation after the other, and keeps what later ones need."""

    def __init__(self, plan: _Plan, layers: nn.Module, predictor: nn.Module | None):
        self.plan, self.layers, self.predictor = plan, layers, predictor
        parameters = list(layers.parameters())
        self.optimizer = plan.optimizer(parameters) if parameters else None
        self.predictor_optimizer = plan.predictor_optimizer(predictor.parameters()) if predictor is not None else None
        self.entered, self.left, self.predicted = {}, {}, {}
        self.losses, self.kept = [], {}

    def _rows(self, step: int, part: int) -> Tensor:
        return self.plan.order[step].tensor_split(self.plan.micro_batches)[part]

    def do(self, operation: Operation, message: Tensor | None, last: bool) -> Tensor | None:
        """Carry out an operation on what a neighbour has sent, and return what another neighbour should get."""
        kind, step, part = operation
        return getattr(self, "_" + kind)(step, part, message, last)

    def _forward(self, step, part, h, last):
        if h is None:
            h = self.plan.inputs[self._rows(step, part)]
        else:
            h.requires_grad_()
        out = self.layers(h)
        self.entered[step, part], self.left[step, part] = h, out
        return out.detach()

    @torch.no_grad()
    def _predict(self, step, part, _, last):
        h = self.left[step, part].flatten(1)
        self.predicted[step, part] = self.predictor(h, self._labels(step))

    def _backward(self, step, part, gradient, last):
        h, out = self.entered.pop((step, part)), self.left[step, part]
        batch = self.plan.order.shape[1]
        if last:
            loss = cross_entropy(out, self.plan.labels[self._rows(step, part)], reduction="sum") / batch
            self.losses.append((step, loss.item()))
            loss.backward()
        elif out.requires_grad:
            if gradient is None:
                gradient = self.predicted.pop((step, part)) / batch
            out.backward(gradient.view_as(out))
        self.left[step, part] = out.detach()
        return h.grad

    def _update(self, step, part, _, last):
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.predictor is None:
            self.left.clear()
        if step + 1 in self.plan.snapshots:
            self.kept[step + 1] = {name: value.clone() for name, value in self.layers.state_dict().items()}

    def _learn(self, step, part, gradient, last):
        h = self.left.pop((step, part)).flatten(1)
        target = self.plan.order.shape[1] * gradient.flatten(1)  # of each example's own loss
        self.predictor.error(h, self._labels(step), target, None).backward()
        self.predictor_optimizer.step()
        self.predictor_optimizer.zero_grad()

    def _labels(self, step):
        return self.plan.labels[self.plan.order[step]] if self.predictor.classes else None

    def result(self) -> tuple:
        """What the run makes of a piece, once it is over."""
        return self.layers, self.predictor, self.losses, self.kept


def _plan(pieces, predictors, inputs, labels, order, schedule, snapshots, **rest) -> _Plan:
    """Check everything, so that no process meets an error that could have been seen before."""
    for one in (*pieces, *predictors):
        if not isinstance(one, nn.Module):
            raise TypeError(f"pieces and predictors must be modules (got {type(one).__name__})")
    if any(not isinstance(one, GradientPredictor) for one in predictors):
        raise TypeError("predictors must be GradientPredictors: processes exchange gradients, not losses")
    if order.dtype != torch.int64 or order.ndim != 2 or not order.numel():
        raise ValueError(
            f"order must hold whole numbers, (steps, batch) (got {order.dtype} of shape {tuple(order.shape)})"
        )
    if labels.dtype != torch.int64 or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must be {len(inputs)} whole numbers (got {labels.dtype} of shape {tuple(labels.shape)})"
        )
    if order.min() < 0 or order.max() >= len(inputs):
        raise ValueError(f"order must name examples from 0 to {len(inputs) - 1} (got {order.min()} to {order.max()})")
    if not rest["delay"] >= 0:
        raise ValueError(f"delay must be seconds, zero or more (got {rest['delay']!r})")
    if isinstance(rest["threads"], bool) or not isinstance(rest["threads"], int) or rest["threads"] < 1:
        raise ValueError(f"threads must be a whole number, 1 or more (got {rest['threads']!r})")
    snapshots = frozenset(snapshots)
    if snapshots - set(range(1, len(order) + 1)):
        raise ValueError(f"snapshots must be numbers of steps from 1 to {len(order)} (got {sorted(snapshots)})")
    if rest["micro_batches"] > order.shape[1]:
        raise ValueError(
            f"micro_batches must be at most {order.shape[1]}, the batch size (got {rest['micro_batches']})"
        )
    steps, options = len(order), {key: rest[key] for key in ("micro_batches", "staleness")}
    next(operations(schedule, 0, len(pieces), steps, **options))  # raises what there is to raise
    wanted = len(pieces) - 1 if schedule == "decoupled" else 0
    if len(predictors) != wanted:
        raise ValueError(f"predictors must be {wanted} for {len(pieces)} pieces {schedule} (got {len(predictors)})")
    return _Plan(
        schedule=schedule,
        pieces=len(pieces),
        order=order,
        labels=labels,
        inputs=inputs,
        snapshots=snapshots,
        **rest,
    )


def _collect(pieces: Sequence[nn.Module], results: list[tuple], events: list[Event], steps: int) -> Run:
    layers, predictors, losses, kept = zip(*results, strict=True)
    means = np.zeros(steps)
    for step, loss in losses[-1]:
        means[step] += loss
    over = np.zeros(steps)
    for event in events:
        over[event.step] = max(over[event.step], event.stop if event.kind == "update" else 0)
    snapshots = {}
    for step in sorted(kept[0]):
        copies = [copy.deepcopy(piece) for piece in pieces]
        for one, saved in zip(copies, kept, strict=True):
            one.load_state_dict(saved[step])
        snapshots[step] = nn.Sequential(*copies)
    return Run(nn.Sequential(*layers), tuple(filter(None, predictors)), means, over, snapshots, events)


def train_in_turn(
    pieces: Sequence[nn.Module],
    predictors: Sequence[GradientPredictor],
    inputs: Float[Tensor, "examples ..."],
    labels: Int[Tensor, " examples"],
    order: Int[Tensor, "steps batch"],
    *,
    optimizer: Callable,
    predictor_optimizer: Callable | None = None,
    schedule: str = "decoupled",
    micro_batches: int = 1,
    staleness: int = 1,
    snapshots: Iterable[int] = (),
) -> Run:
    """What `Workers.train` does, to the last operation and with the same result, but in this process, one operation at a time.

    The events say how long each operation takes when nothing else is going on: what `timeline` wants to know. Raises ValueError
    and TypeError as `Workers.train` does.
    """
    plan = _plan(
        pieces,
        predictors,
        inputs,
        labels,
        order,
        schedule,
        snapshots,
        optimizer=optimizer,
        predictor_optimizer=predictor_optimizer or optimizer,
        micro_batches=micro_batches,
        staleness=staleness,
        delay=0.0,
        threads=1,
    )
    count = len(pieces)
    at_work = [
        _Piece(plan, copy.deepcopy(piece), copy.deepcopy(predictor))
        for piece, predictor in zip(pieces, [*predictors, *[None] * (count - len(predictors))], strict=True)
    ]
    messages, events, begun = {}, [], time.perf_counter()
    for piece, operation in in_order(schedule, count, len(order), **plan.options):
        kind, *which = operation
        message = messages.pop((waits_for(schedule, kind, piece, count), piece, *which), None)
        start = time.perf_counter()
        sent = at_work[piece].do(operation, message, piece == count - 1)
        events.append(Event(piece, *operation, start - begun, time.perf_counter() - begun))
        receiver = sends_to(kind, piece, count)
        if receiver is not None:
            messages[(piece, receiver, *which)] = sent
    return _collect(pieces, [one.result() for one in at_work], events, len(order))
