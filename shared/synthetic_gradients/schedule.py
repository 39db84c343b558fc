"""Who does what when: the order of work of a stack that is split over processes, and a model of the time it takes."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

SCHEDULES = ("locked", "pipelined", "decoupled")


class Operation(NamedTuple):
    """A piece of work: forward, predict, backward, update or learn, for an update of the weights, `step`, and a part of its batch."""

    kind: str
    step: int
    part: int = 0


class Event(NamedTuple):
    """An operation of a piece, from `start` to `stop`, in seconds since the first piece could begin."""

    piece: int
    kind: str
    step: int
    part: int
    start: float
    stop: float


def operations(
    schedule: str, piece: int, pieces: int, steps: int, *, micro_batches: int = 1, staleness: int = 1
) -> Iterator[Operation]:
    """What piece number `piece` of `pieces`, counted from the bottom, does in its order.

    "pipelined": each batch is cut in `micro_batches` parts, which all go up, one behind the other, and then all come down; then
        each piece updates. The gradients are those of backpropagation (Huang et al., 2019, call it GPipe).
    "locked": the same with the whole batch as the only part, so that one piece works at a time.
    "decoupled": each piece but the last goes back from a prediction and updates at once. Its predictor learns from the gradient
        that comes down for the batch of `staleness` steps before, and waits for it: so results do not depend on how fast anybody is.

    Raises ValueError for another schedule, and for numbers that make none.
    """
    _check(schedule, pieces, steps, micro_batches, staleness)
    last = piece == pieces - 1
    for step in range(steps):
        if schedule != "decoupled":
            for kind in ("forward", "backward"):
                for part in range(micro_batches):
                    yield Operation(kind, step, part)
            yield Operation("update", step)
            continue
        yield Operation("forward", step)
        if not last:
            yield Operation("predict", step)
        yield Operation("backward", step)
        yield Operation("update", step)
        if not last and step >= staleness:
            yield Operation("learn", step - staleness)
    if schedule == "decoupled" and not last:
        for step in range(max(0, steps - staleness), steps):
            yield Operation("learn", step)


def waits_for(schedule: str, kind: str, piece: int, pieces: int) -> int | None:
    """The neighbour from which an operation needs something: an activation from below, a gradient from above; None for none."""
    if kind == "forward" and piece > 0:
        return piece - 1
    if kind == ("learn" if schedule == "decoupled" else "backward") and piece < pieces - 1:
        return piece + 1
    return None


def sends_to(kind: str, piece: int, pieces: int) -> int | None:
    """The neighbour that gets what an operation makes, or None."""
    if kind == "forward" and piece < pieces - 1:
        return piece + 1
    return piece - 1 if kind == "backward" and piece > 0 else None


def slots(schedule: str, micro_batches: int, staleness: int) -> int:
    """How many messages from one piece to a neighbour can be under way at once, unread or in use."""
    return staleness + 1 if schedule == "decoupled" else micro_batches


def in_order(schedule: str, pieces: int, steps: int, **options) -> Iterator[tuple[int, Operation]]:
    """All operations of all pieces, each with its piece, in an order in which none comes before what it needs."""
    programs = [operations(schedule, piece, pieces, steps, **options) for piece in range(pieces)]
    following = [next(program, None) for program in programs]
    sent = set()  # sender, receiver, step, part
    while any(following):
        for piece, program in enumerate(programs):
            while operation := following[piece]:
                kind, *which = operation
                needed = waits_for(schedule, kind, piece, pieces)
                if needed is not None and (needed, piece, *which) not in sent:
                    break
                yield piece, operation
                sent.add((piece, sends_to(kind, piece, pieces), *which))
                following[piece] = next(program, None)


def timeline(
    schedule: str,
    seconds: Sequence[Mapping[str, float]],
    steps: int,
    *,
    micro_batches: int = 1,
    staleness: int = 1,
    delay: float = 0.0,
) -> list[Event]:
    """The model: every operation takes the same time each time, and begins when its piece is free and what it needs is there.

    schedule, micro_batches, staleness: as in `Workers.train`.
    seconds: for each piece, from the bottom up, how long each kind of operation takes it (for one part of a batch): "forward",
        "backward", "update" and, decoupled, "predict" and "learn".
    steps: how many batches.
    delay: seconds from the end of an operation until what it sends can be read.

    Raises ValueError for another schedule, for numbers that make none and for a delay below zero; KeyError for an operation
    without a time.
    """
    if not delay >= 0:
        raise ValueError(f"delay must be seconds, zero or more (got {delay!r})")
    pieces, events, there = len(seconds), [], {}
    free = [0.0] * pieces
    for piece, (kind, *which) in in_order(schedule, pieces, steps, micro_batches=micro_batches, staleness=staleness):
        sender = waits_for(schedule, kind, piece, pieces)
        start = max(free[piece], there.get((sender, piece, *which), 0.0))
        free[piece] = start + seconds[piece][kind]
        there[(piece, sends_to(kind, piece, pieces), *which)] = free[piece] + delay
        events.append(Event(piece, kind, *which, start, free[piece]))
    return events


def period(events: Sequence[Event], burst: int = 1) -> float:
    """Seconds from one update to the next, in the second half of a run: the slowest piece's mean.

    burst: where steps come in bursts of so many, the mean is over whole bursts. Decoupled pieces that wait for a round of
        `staleness` + 1 steps work in bursts of these.

    Raises ValueError if there are fewer than four updates, or not a whole burst in the second half.
    """
    ends: dict[int, list[float]] = {}
    for event in events:
        if event.kind == "update":
            ends.setdefault(event.piece, []).append(event.stop)
    updates = min(map(len, ends.values()), default=0)
    steps = (updates - 1 - updates // 2) // burst * burst
    if updates < 4 or not steps:
        raise ValueError(f"events must hold four updates of each piece, and a burst in the second half (got {updates})")
    return max((times[-1] - times[-1 - steps]) / steps for times in ends.values())


def _check(schedule: str, pieces: int, steps: int, micro_batches: int, staleness: int) -> None:
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)} (got {schedule!r})")
    for name, value, least in (
        ("pieces", pieces, 1),
        ("steps", steps, 1),
        ("micro_batches", micro_batches, 1),
        ("staleness", staleness, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, {least} or more (got {value!r})")
    if schedule != "pipelined" and micro_batches != 1:
        raise ValueError(f"micro_batches must be 1 unless the schedule is pipelined (got {micro_batches})")


def typical_seconds(events: Sequence[Event]) -> list[dict[str, float]]:
    """For each piece the median time of each kind of operation, without those of the first two steps: what `timeline` wants."""
    found: list[dict[str, list[float]]] = [{} for _ in range(1 + max(event.piece for event in events))]
    for event in events:
        if event.step >= 2:
            found[event.piece].setdefault(event.kind, []).append(event.stop - event.start)
    return [{kind: statistics.median(times) for kind, times in piece.items()} for piece in found]
