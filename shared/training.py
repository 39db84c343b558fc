"""Experiments over settings and seeds in parallel, the interval their results support, and the choice of a setting."""

import itertools
import numbers
import pickle
import random
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import torch

from shared import runtime

Settings = Mapping[str, Iterable] | Iterable[Mapping[str, object]]


class ExperimentFailed(RuntimeError):  # noqa: N818 (it reads as a sentence)
    """An experiment raised an error, which is this one's cause; the message names the setting and the seed."""


def replicate(
    experiment: Callable[..., dict],
    settings: Settings,
    seeds: Iterable[int],
    *,
    workers: int = -1,
    progress: bool = True,
):
    """Run `experiment(seed=seed, **setting)` for every setting and every seed in parallel, and tabulate the results.

    experiment: returns a dict of numbers, strings, lists, arrays or tensors. It may be defined in a notebook; what
        it refers to travels with every run, so let it load large data itself (`shared.datasets` reads a set once).
    settings: dicts of keyword arguments, or one dict of lists, which stands for all their combinations.
    seeds: different whole numbers; Python, NumPy and torch are seeded with each before its run.
    workers: processes; -1 for one a core. Each run has one thread and a random state of its own, so the numbers do not
        depend on `workers`, nor on the backend: inside `joblib.parallel_config(backend="dask")` a cluster runs them
        (where Dask's own threads draw from Python's `random` as well: there, draw from torch or NumPy).

    Returns a pandas DataFrame with a row for each setting and seed, in that order, and columns for the setting, `seed`
    and the results. Raises ExperimentFailed as soon as a run fails, RuntimeError if a worker process dies, and
    ValueError or TypeError for settings, seeds or results that make no table.
    """
    import joblib
    import pandas
    from tqdm import tqdm

    settings, seeds = _settings(settings), _seeds(seeds)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers == 0:
        raise ValueError(f"workers must be a whole number other than 0 (got {workers!r})")
    runs = list(itertools.product(settings, seeds))
    jobs = [joblib.delayed(_run)(i, experiment, *run, torch.get_default_dtype()) for i, run in enumerate(runs)]
    backend, _ = joblib.parallel.get_active_backend()
    return_as = "generator_unordered" if backend.supports_return_generator else "list"
    rows = [None] * len(runs)
    try:
        outcomes = joblib.Parallel(n_jobs=min(workers, len(runs)), return_as=return_as)(jobs)
        try:
            bar = tqdm(outcomes, total=len(runs), unit="run", leave=False) if progress else outcomes
            for position, result, error, trace in bar:
                setting, seed = runs[position]
                if error is not None:
                    if error.__traceback__ is None:  # lost on the way from another process
                        error.__cause__ = _WorkerTraceback(trace)
                    raise ExperimentFailed(_failure(setting, seed, error)) from error
                rows[position] = _row(setting, seed, result)
        finally:
            _cancel(outcomes)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process was killed, most often because memory ran out: try fewer workers (got workers={workers})"
        ) from error
    return pandas.DataFrame(rows)


class _WorkerTraceback(Exception):  # noqa: N818 (shown above the error as its cause; never raised)
    pass


def _settings(settings: Settings) -> list[dict]:
    if isinstance(settings, Mapping):
        for key, values in settings.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise ValueError(f"settings[{key!r}] must be a list of values (got {values!r})")
        combinations = itertools.product(*settings.values())
        settings = [dict(zip(settings, values, strict=True)) for values in combinations]
    if not isinstance(settings, Iterable):
        raise TypeError(f"settings must be dicts of keyword arguments, or one dict of lists (got {settings!r})")
    settings = list(settings)
    if not settings:
        raise ValueError("settings must hold at least one setting (got none)")
    for setting in settings:
        if not isinstance(setting, Mapping):
            raise TypeError(f"each of settings must be a dict of keyword arguments (got {setting!r})")
        if "seed" in setting:
            raise ValueError("settings must not contain 'seed': give the seeds as seeds")
    return [dict(setting) for setting in settings]


def _seeds(seeds: Iterable[int]) -> list[int]:
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be a list of whole numbers (got {seeds!r})")
    seeds = list(seeds)
    if not all(isinstance(seed, numbers.Integral) and not isinstance(seed, bool) for seed in seeds):
        raise TypeError(f"seeds must be a list of whole numbers (got {seeds!r})")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"seeds must lie between 0 and 2**32 − 1 (got {seeds!r})")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers (got {seeds!r})")
    return [int(seed) for seed in seeds]


_one_at_a_time = threading.RLock()  # runs that share a process (threads of a Dask worker) would share its random state


def _run(position: int, experiment: Callable, setting: dict, seed: int, dtype: torch.dtype) -> tuple:
    """One run, in whatever process: (position, results, error, traceback)."""
    from threadpoolctl import threadpool_limits

    with _one_at_a_time, _own_state(dtype), threadpool_limits(1), runtime.one_thread():
        try:
            runtime.seed_everything(seed)
            result = experiment(seed=seed, **setting)
            if not isinstance(result, Mapping):
                raise TypeError(f"an experiment must return a dict of results (got {type(result).__name__})")
            return position, {key: _plain(key, value) for key, value in result.items()}, None, ""
        except Exception as error:
            return position, None, _portable(error), traceback.format_exc()


@contextmanager
def _own_state(dtype: torch.dtype) -> Iterator[None]:
    """A block with torch's default dtype `dtype`, after which this and all random states are as before."""
    python, numpy, default = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.set_default_dtype(default)
        np.random.set_state(numpy)
        random.setstate(python)


def _plain(key: str, value):
    """`value` without torch: tensors as NumPy arrays, single numbers as Python's own."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.ndim == 0 else value.copy()
    if isinstance(value, list | tuple):
        return [_plain(key, one) for one in value]
    if value is None or isinstance(value, numbers.Number | str):
        return value
    raise TypeError(f"result {key!r} must be a number, string, list, array or tensor (got {type(value).__name__})")


def _portable(error: Exception) -> Exception:
    """`error`, or its words where it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _failure(setting: dict, seed: int, error: Exception) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in {**setting, "seed": seed}.items())
    return f"the run with {arguments} failed ({type(error).__name__}: {error})"


def _row(setting: dict, seed: int, result: dict) -> dict:
    clash = ", ".join(sorted({*setting, "seed"} & set(result)))
    if clash:
        raise ValueError(
            f"an experiment's results must have other names than its settings and seed (both have {clash})"
        )
    return {**setting, "seed": seed, **result}


def _cancel(outcomes) -> None:
    """Stop the runs that are still under way, so that an error or an interruption leaves nothing computing."""
    if hasattr(outcomes, "close"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib remarks on the runs it cancels
            outcomes.close()


def interval(values, confidence: float = 0.95) -> tuple:
    """Mean over seeds with a confidence interval by Student's t: (mean, low, high).

    values: one number for each seed, shape (seeds,), or one array of a fixed shape such as a curve, (seeds, points).
        Assumes independent seeds and a roughly normal scatter of their values.
    Returns floats for (seeds,), else arrays of the shape of one value. Raises ValueError for fewer than two seeds, for
    values of different shapes or not finite, and for a confidence outside 0 … 1.
    """
    from scipy.special import stdtrit  # Student's quantiles, at a small part of the cost of scipy.stats

    array = np.asarray(values)
    if array.dtype == object:  # such as a column of curves
        array = np.asarray(list(array))
    array = array.astype(float)
    if array.ndim == 0 or len(array) < 2:
        raise ValueError(f"values must hold at least two seeds (got shape {array.shape})")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite (got {np.count_nonzero(~np.isfinite(array))} that are not)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 (got {confidence!r})")
    n = len(array)
    mean = array.mean(0)
    half = stdtrit(n - 1, (1 + confidence) / 2) * array.std(0, ddof=1) / np.sqrt(n)
    if array.ndim == 1:
        return float(mean), float(mean - half), float(mean + half)
    return mean, mean - half, mean + half


def tune(experiment: Callable[..., dict], settings: Settings, seeds: Iterable[int], measure: str, **options):
    """The setting with the smallest mean of the result `measure` over the seeds, and the table of all runs.

    A setting with a run that is not finite counts as the worst. `table.attrs["note"]` is empty, or a sentence if the
    best value lies at the edge of a grid of one varying number: a better one may lie beyond it, so this is not tuned.
    `options` are those of `replicate`, whose errors this raises too; ValueError if no setting has a finite mean.
    """
    settings, seeds = _settings(settings), _seeds(seeds)
    table = replicate(experiment, settings, seeds, **options)
    if measure not in table:
        raise ValueError(f"measure must be one of the results: {', '.join(table)} (got {measure!r})")
    means = table[measure].to_numpy(dtype=float).reshape(len(settings), len(seeds)).mean(1)
    means[~np.isfinite(means)] = np.inf
    if np.isinf(means).all():
        raise ValueError(f"no setting has a finite mean of {measure!r}")
    best = settings[int(means.argmin())]
    table.attrs["note"] = _edge(best, settings)
    return best, table


def _edge(best: dict, settings: list[dict]) -> str:
    varying = [key for key in best if any(setting.get(key) != best[key] for setting in settings)]
    if len(varying) != 1:
        return ""
    (key,) = varying
    values = [setting.get(key) for setting in settings]
    if not all(isinstance(value, numbers.Real) for value in values) or min(values) < best[key] < max(values):
        return ""
    return f"{key}={best[key]} is best, but at the edge of {min(values)} to {max(values)}: try values beyond it."
