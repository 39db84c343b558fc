"""Where and how a chapter runs: the device, the seeds, the clock, and a line that says so."""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

DEVICES = ("cuda", "mps", "cpu")
RUN_MIME = "application/vnd.unrolled.run+json"


def device() -> torch.device:
    """The device to compute on: `UNROLLED_DEVICE` if it is set, else the first of cuda, mps and cpu that is there.

    Raises ValueError if `UNROLLED_DEVICE` names a device that does not exist or is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = os.environ.get("UNROLLED_DEVICE", "").strip()
    if not wanted:
        return torch.device(next(name for name in DEVICES if there[name]))
    kind, _, index = wanted.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in DEVICES or (index and not (index.isdigit() and int(index) < count)):
        raise ValueError(f"UNROLLED_DEVICE must be one of {', '.join(DEVICES)} (got {wanted!r})")
    if not there[kind]:
        available = ", ".join(name for name in DEVICES if there[name])
        raise ValueError(f"UNROLLED_DEVICE is {wanted!r}, but this machine has only: {available}")
    return torch.device(wanted)


def device_name(where: torch.device | None = None) -> str:
    """What a reader calls the device: the GPU's model, or the processor's architecture and the number of threads."""
    where = device() if where is None else where
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    threads = torch.get_num_threads()
    cpu = f"{platform.machine() or 'unknown'} CPU, {threads} thread{'s' * (threads != 1)}"
    return f"Apple GPU (mps), {cpu}" if where.type == "mps" else cpu


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch, and return a CPU generator with the same seed for functions that take one.

    Raises TypeError if `seed` is not an integer and ValueError if it is outside 0 … 2³²−1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer (got {seed!r})")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1 (got {seed})")
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    return torch.Generator().manual_seed(int(seed))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside the block: sums keep one order, so numbers do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Stopwatch:
    """Wall-clock seconds since it was made, waiting for the GPU to finish where there is one."""

    def __init__(self, where: torch.device | None = None):
        self.device = torch.device("cpu") if where is None else where
        self.start = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds from then until now."""
        return self._now() - self.start


def milliseconds(task: Callable[[], object], repeats: int = 5) -> np.ndarray:
    """Wall-clock milliseconds of `task()`, shape (repeats,): each the best of three runs, so that accidents count less."""
    times = [[_seconds(task) for _ in range(3)] for _ in range(repeats)]
    return 1000 * np.min(times, axis=1)


def _seconds(task: Callable[[], object]) -> float:
    watch = Stopwatch()
    task()
    return watch.seconds


def report(*data) -> None:
    """Say which device, versions and data a chapter uses, in words for the reader and as a record for the book's stamp.

    `data` are data sets from `shared.datasets` (anything with a `name` whose `str` describes it).
    """
    from IPython.display import display

    where = device()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    lines = [f"Device: {device_name(where)}; Python {versions['python']}, torch {versions['torch']}."]
    lines += [f"Data: {one}" for one in data]
    record = {"device": device_name(where), "versions": versions, "data": [one.name for one in data]}
    display({"text/plain": "\n".join(lines), RUN_MIME: record}, raw=True)
