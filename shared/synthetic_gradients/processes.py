"""A stack split over processes, each of which holds a piece: trained in lockstep, in a pipeline, or with synthetic gradients."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared.synthetic_gradients.pieces import Run, _collect, _Piece, _Plan, _plan
from shared.synthetic_gradients.predictors import GradientPredictor
from shared.synthetic_gradients.schedule import Event, operations, sends_to, slots, waits_for

MEGABYTES = 32  # of shared memory between two neighbours, for each direction
STARTING = 120.0  # seconds that importing torch may take at the most


class Workers:
    """Processes that hold the pieces of a stack, for as long as the `with` block lasts.

        with Workers(2) as workers:
            run = workers.train([below, above], [predictor], inputs, labels, order, optimizer=partial(Adam, lr=1e-3))

    Starting takes seconds, since each process imports torch; so one set of workers can train many times, also stacks of fewer
    pieces than there are processes. Neighbours exchange tensors in shared memory. In each process one thread computes, unless `train`
    is told otherwise.

    size: how many processes.
    timeout: the longest that anybody at work waits for anybody, in seconds.

    The processes are spawned: in a script, what starts them must stand behind `if __name__ == "__main__":`, and pieces and optimizers
    must be known to `pickle` (modules of torch, functions of a file, but nothing that was defined in a notebook).

    If a process dies, or meets an error, or somebody waits too long, `train` raises RuntimeError that says which piece and why. Then,
    as after an interruption, all processes are ended. If this process is killed, they end themselves.

    Raises ValueError for a size that is no whole number of at least 1, and for a timeout that is not above 0.
    """

    def __init__(self, size: int, *, timeout: float = 60.0):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a whole number, 1 or more (got {size!r})")
        if not timeout > 0:
            raise ValueError(f"timeout must be seconds, more than zero (got {timeout!r})")
        context = multiprocessing.get_context("spawn")
        self.size, self.timeout, self.processes, self.controls = size, timeout, [], []
        links = [
            (*context.Pipe(), *(context.RawArray("b", MEGABYTES << 20) for _ in range(2))) for _ in range(size - 1)
        ]
        ends = [[None, None] for _ in range(size)]  # for each piece its links to the pieces below and above
        for i, (lower, upper, up, down) in enumerate(links):
            ends[i][1], ends[i + 1][0] = (lower, up, down), (upper, down, up)
        try:
            for piece in range(size):
                here, there = context.Pipe()
                self.controls.append(here)
                arguments = (piece, timeout, there, *ends[piece])
                self.processes.append(context.Process(target=_work, args=arguments, daemon=True, name=f"piece {piece}"))
                with _patient_threads():
                    self.processes[-1].start()
                there.close()
            for lower, upper, *_ in links:  # only the workers' copies stay open, so that an end is noticed
                lower.close()
                upper.close()
            self._gather("here", size, STARTING)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also while they work. Closing twice does nothing."""
        for process in self.processes:
            if process.pid is not None:
                process.terminate()
        for process in self.processes:
            if process.pid is not None:
                process.join(1)
                if process.is_alive():  # stopped, or deaf
                    process.kill()
                    process.join()
        for control in self.controls:
            control.close()
        self.processes, self.controls = [], []

    def train(
        self,
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
        delay: float = 0.0,
        snapshots: Iterable[int] = (),
        threads: int = 1,
    ) -> Run:
        """Train the stack of `pieces` on cross-entropy, each in its own process; what is given stays as it is.

        predictors: for "decoupled" one for each piece but the last, of the gradient at its end; else none.
        order: for each step, which examples make its batch.
        optimizer, predictor_optimizer: given parameters, they make their optimizer, such as `functools.partial(Adam, lr=1e-3)`.
        schedule: who works when. "locked" and "pipelined" make the steps of backpropagation (unless a module normalises over the
            batch, for then a part differs from the whole). One piece, "locked": ordinary training.
            "locked": a batch goes up through all pieces and its gradient comes down, so that one piece works at a time.
            "pipelined": the same with each batch in `micro_batches` parts, one behind the other.
            "decoupled": each piece but the last goes back from a prediction and updates at once. Its predictor learns from the
                gradient that comes down for the batch of `staleness` steps before, and waits for it.
        micro_batches: a whole number of at least 1, and 1 unless the schedule is "pipelined".
        staleness: a whole number, 0 or more; only "decoupled" heeds it.
        delay: seconds that every message is held back: the link of slower machines.
        snapshots: after how many steps the stack should be kept.
        threads: with which each process computes.

        Results do not depend on how fast the processes are. Raises ValueError and TypeError for bad input, before anything is done,
        and RuntimeError as the class describes.
        """
        if not self.processes:
            raise RuntimeError("these workers have ended; start others")
        if not 1 <= len(pieces) <= self.size:
            raise ValueError(f"pieces must be 1 to {self.size}, one for each process (got {len(pieces)})")
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
            delay=delay,
            threads=threads,
        )
        count = len(pieces)
        above = plan._replace(inputs=None)
        jobs = []
        for i, piece in enumerate(pieces):
            predictor = predictors[i] if i < len(predictors) else None
            try:
                jobs.append(pickle.dumps((plan if i == 0 else above, piece, predictor)))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise TypeError(f"piece {i} and its optimizers must be known to pickle ({error})") from error
        try:
            for control, job in zip(self.controls, jobs, strict=False):
                # in a thread, since a process that does not read would hold up the others
                threading.Thread(target=_post, args=(control, job), daemon=True).start()
            self._gather("ready", count, STARTING)
            begun = time.perf_counter()
            for control in self.controls[:count]:
                with contextlib.suppress(OSError):
                    control.send(begun)
            results = [pickle.loads(one) for one in self._gather("done", count, self.timeout + 5)]
        except BaseException:
            self.close()
            raise
        events = sorted((event for _, made in results for event in made), key=lambda event: event.start)
        return _collect(pieces, [result for result, _ in results], events, len(order))

    def _gather(self, what: str, count: int, patience: float) -> list:
        """One message from each of the first workers. Workers at work say so every second."""
        answers, left = {}, set()  # left: those who ended because a neighbour did
        while len(answers) < count:
            missing = [i for i in range(count) if i not in answers]
            suspects = [i for i in missing if i not in left] or missing
            if not wait([self.controls[i] for i in suspects], patience):
                names = " and ".join(f"piece {i}" for i in suspects)
                raise RuntimeError(f"no sign of life from {names} in {patience:g} seconds")
            for i in suspects:
                try:
                    while i not in answers and self.controls[i].poll():
                        kind, content = self.controls[i].recv()
                        if kind == "failed":
                            raise RuntimeError(f"piece {i} failed: {content}")
                        if kind == what:
                            answers[i] = content
                except (EOFError, OSError):
                    self.processes[i].join(2)
                    code = self.processes[i].exitcode
                    if code != _LEFT or i in left:
                        raise RuntimeError(f"the process of piece {i} {_ending(code)}") from None
                    left.add(i)
        return [answers[i] for i in range(count)]


def _post(control, job: bytes) -> None:
    with contextlib.suppress(OSError):  # who waits for the answer notices
        control.send_bytes(job)


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """A block in which processes are started whose threads sleep while they wait, and do not take time from others."""
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = before or "PASSIVE"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


_LEFT = 3  # the exit code of a process that could not go on without its neighbour


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended by itself, with exit code {code}"


class _GoneError(Exception):
    """A neighbour is there no longer."""


class _Link:
    """To one neighbour: tensors in shared memory, in slots that are used in turn, and a pipe that says when one is filled.

    No slot is filled again before it has been read, because no schedule lets a piece run ahead by more than there are slots.
    """

    def __init__(self, pipe, outgoing, incoming, timeout: float, name: str):
        self.pipe, self.rooms, self.timeout, self.name = pipe, (outgoing, incoming), timeout, name

    def begin(self, plan: _Plan) -> None:
        self.slots = slots(plan.schedule, plan.micro_batches, plan.staleness)
        self.size = len(self.rooms[0]) // self.slots // 64 * 64
        self.delay, self.counts = plan.delay, [0, 0]

    def _slot(self, way: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        offset = self.counts[way] % self.slots * self.size
        self.counts[way] += 1
        count = torch.Size(shape).numel()
        return torch.frombuffer(self.rooms[way], dtype=dtype, count=count, offset=offset).view(shape)

    def send(self, tensor: Tensor) -> None:
        if tensor.nbytes > self.size:
            raise ValueError(f"a message has {tensor.nbytes} bytes, more than the {self.size} that there is room for")
        self._slot(0, tuple(tensor.shape), tensor.dtype).copy_(tensor)
        try:
            self.pipe.send((time.perf_counter(), tuple(tensor.shape), tensor.dtype))
        except OSError:
            raise _GoneError from None

    def receive(self) -> Tensor:
        try:
            if not self.pipe.poll(self.timeout):
                raise TimeoutError(f"it waited {self.timeout:g} seconds for {self.name}")
            sent, shape, dtype = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise _GoneError from None
        time.sleep(max(0.0, sent + self.delay - time.perf_counter()))
        return self._slot(1, shape, dtype)


def _work(piece: int, timeout: float, control, below, above) -> None:
    """What a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to handle
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    links = {}
    for link, neighbour in ((below, piece - 1), (above, piece + 1)):
        if link is not None:
            links[neighbour] = _Link(*link, timeout, f"piece {neighbour}")
    control.send(("here", None))
    while True:
        try:
            job = control.recv_bytes()
        except (EOFError, OSError):
            return
        operation = None
        try:
            plan, layers, predictor = pickle.loads(job)
            torch.set_num_threads(plan.threads)
            at_work = _Piece(plan, layers, predictor)
            for link in links.values():
                link.begin(plan)
            control.send(("ready", None))
            begun = heard = control.recv()
            events = []
            for operation in operations(plan.schedule, piece, plan.pieces, len(plan.order), **plan.options):
                source = waits_for(plan.schedule, operation.kind, piece, plan.pieces)
                target = sends_to(operation.kind, piece, plan.pieces)
                message = None if source is None else links[source].receive()
                start = time.perf_counter()
                made = at_work.do(operation, message, piece == plan.pieces - 1)
                if target is not None:
                    links[target].send(made)
                stop = time.perf_counter()
                events.append(Event(piece, *operation, start - begun, stop - begun))
                if stop > heard + 1:
                    heard = stop
                    control.send(("at work", None))
            control.send(("done", pickle.dumps((at_work.result(), events))))
        except _GoneError:
            os._exit(_LEFT)
        except Exception as error:
            when = f" in {operation.kind} of step {operation.step}" if operation else ""
            with contextlib.suppress(OSError):
                control.send(("failed", f"{type(error).__name__}{when}: {error}"))
            return
