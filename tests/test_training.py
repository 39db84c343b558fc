"""Replication: the same numbers wherever they are computed, and errors that say which run; intervals; tuning."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pandas
import pytest
import torch

from shared.training import ExperimentFailed, interval, replicate, tune

ROOT = Path(__file__).resolve().parent.parent
QUIETLY = {"workers": 1, "progress": False}


def train(seed, rate, size=20):
    """Everything whose last bits could depend on where it runs: sums over threads, random states, the default dtype."""
    weight, target = torch.randn(size, size, requires_grad=True), torch.randn(size)
    losses = []
    for _ in range(20):
        loss = (torch.tanh(weight @ target) - target).square().mean()
        losses.append(loss)
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - rate * gradient).detach().requires_grad_()
    numbers = np.random.rand(400_000)
    return {
        "loss": loss,
        "curve": losses,
        "weight": weight,
        "dot": np.dot(numbers, numbers),
        "total": torch.rand(400_000).sum(),
        "coin": random.random(),
        "dtype": str(weight.dtype),
    }


SETTINGS = {"rate": [0.1, 0.3], "size": [20, 30]}
SEEDS = [3, 1, 2]


@pytest.fixture(scope="module")
def reference():
    """Computed here, in a process with several threads and a default dtype of its own."""
    torch.set_default_dtype(torch.float64)
    try:
        yield replicate(train, SETTINGS, SEEDS, **QUIETLY)
    finally:
        torch.set_default_dtype(torch.float32)


def assert_identical(table, reference):
    assert list(table) == list(reference)
    for column in reference:
        for value, expected in zip(table[column], reference[column], strict=True):
            assert type(value) is type(expected), column
            assert np.array_equal(value, expected), column


def test_one_row_for_each_setting_and_seed_in_order(reference):
    assert list(reference) == ["rate", "size", "seed", "loss", "curve", "weight", "dot", "total", "coin", "dtype"]
    assert reference[["rate", "size", "seed"]].values.tolist() == [
        [rate, size, seed] for rate in (0.1, 0.3) for size in (20, 30) for seed in SEEDS
    ]
    assert reference["dtype"].unique().tolist() == ["torch.float64"]
    assert reference["coin"].nunique() == len(SEEDS)  # seeded by the seed, whatever the setting


def test_tensors_become_plain_numbers_and_arrays(reference):
    assert reference["loss"].dtype == float
    assert all(type(value) is float for value in reference["curve"][0])
    assert isinstance(reference["weight"][0], np.ndarray)


def test_numbers_do_not_depend_on_the_workers(reference):
    assert_identical(replicate(train, SETTINGS, SEEDS, workers=2, progress=False), reference)


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])  # the second has no results before all are there
def test_numbers_do_not_depend_on_the_backend(reference, backend):
    with joblib.parallel_config(backend=backend):
        assert_identical(replicate(train, SETTINGS, SEEDS, workers=2, progress=False), reference)


def test_numbers_do_not_depend_on_a_cluster(reference):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: pip install 'unrolled[cluster]'")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        table = replicate(train, SETTINGS, SEEDS, progress=False)
        # Dask's own threads draw from Python's `random` during a run; of its state alone nothing can be promised there.
        assert_identical(table.drop(columns="coin"), reference.drop(columns="coin"))
        with pytest.raises(ExperimentFailed, match=r"rate=0\.5, seed=2"):
            replicate(fail, [{"rate": 0.5}], SEEDS, progress=False)


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_the_callers_state_is_left_alone():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        replicate(train, [{"rate": 0.1}], [0], **QUIETLY)
        with pytest.raises(ExperimentFailed):
            replicate(fail, [{"rate": 0.1}], [2], **QUIETLY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert draws() == expected


def test_torch_has_one_thread_by_its_own_switch(monkeypatch):
    """Where torch does not use the OpenMP that threadpoolctl finds, only this holds it."""
    monkeypatch.setattr("threadpoolctl.threadpool_limits", contextlib.nullcontext)
    table = replicate(lambda seed: {"threads": torch.get_num_threads()}, {}, [0], **QUIETLY)
    assert table["threads"].tolist() == [1]


def test_the_order_does_not_depend_on_which_run_ends_first():
    with joblib.parallel_config(backend="threading"):
        table = replicate(late_first, {"wait": [0.3, 0]}, [0, 1], workers=2, progress=False)
    assert table["wait"].tolist() == table["waited"].tolist() == [0.3, 0.3, 0, 0]


def late_first(seed, wait):
    time.sleep(wait)
    return {"waited": wait}


def test_progress_goes_to_stderr(capsys):
    replicate(late_first, {"wait": [0]}, [0], workers=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "/1" in err
    replicate(late_first, {"wait": [0]}, [0], **QUIETLY)
    assert capsys.readouterr() == ("", "")


def fail(seed, rate):
    if seed == 2:
        raise LookupError("no such bird")
    return {}


def test_a_failing_run_is_named_and_its_error_is_the_cause():
    with pytest.raises(ExperimentFailed) as caught:
        replicate(fail, [{"rate": 0.1}], SEEDS, **QUIETLY)
    assert str(caught.value) == "the run with rate=0.1, seed=2 failed (LookupError: no such bird)"
    assert isinstance(caught.value.__cause__, LookupError)


def fail_beside(seed, folder):
    """Seed 1 leaves its process's id and would then run for long; seed 2 fails once that has begun."""
    other = Path(folder, "process")
    if seed == 1:
        other.with_suffix(".new").write_text(str(os.getpid()))
        other.with_suffix(".new").rename(other)
        time.sleep(200)
    while not other.exists():
        time.sleep(0.01)
    raise LookupError("no such bird")


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_fails_elsewhere_stops_the_others_and_shows_where(tmp_path):
    with pytest.raises(ExperimentFailed, match=r"seed=2 failed \(LookupError: no such bird\)") as caught:
        replicate(fail_beside, [{"folder": str(tmp_path)}], [1, 2], workers=2, progress=False)
    assert isinstance(caught.value.__cause__, LookupError)
    assert 'raise LookupError("no such bird")' in str(caught.value.__cause__.__cause__)
    process, deadline = int((tmp_path / "process").read_text()), time.monotonic() + 60
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(process)


def fail_unsendably(seed):
    error = LookupError("salt and pepper")
    error.lock = threading.Lock()
    raise error


def test_an_error_that_cannot_be_sent_is_told_in_words():
    with pytest.raises(ExperimentFailed, match=r"failed \(RuntimeError: LookupError: salt and pepper\)"):
        replicate(fail_unsendably, {}, [0], **QUIETLY)


def die(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_in_one_sentence():
    with pytest.raises(RuntimeError, match=r"worker process was killed.*try fewer workers \(got workers=2\)"):
        replicate(die, {}, [0, 1], workers=2, progress=False)


NOTEBOOK = """
import pathlib, time
from shared.training import replicate

class Model:
    slope = 2

def experiment(seed, x):
    return {"y": Model.slope * x + seed}

def long(seed):
    pathlib.Path(FOLDER, str(seed)).touch()
    time.sleep(200)
    return {}

print(replicate(experiment, {"x": [1, 2]}, [0, 1], workers=2, progress=False)["y"].tolist())
print(replicate(lambda seed: {"y": -seed}, {}, [4, 5], workers=2, progress=False)["y"].tolist(), flush=True)
try:
    replicate(long, {}, [0, 1], workers=2)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_functions_defined_in_a_notebook_work_and_can_be_interrupted(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", NOTEBOOK.replace("FOLDER", repr(str(tmp_path)))],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while process.poll() is None and len(list(tmp_path.iterdir())) < 2:  # until both long runs have begun
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to the workers as well
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert out.splitlines() == ["[2, 3, 4, 5]", "[-4, -5]", "interrupted"], err


@pytest.mark.parametrize(
    ("settings", "seeds", "error", "said"),
    [
        ([], [0], ValueError, "settings must hold at least one"),
        ({"rate": []}, [0], ValueError, "settings must hold at least one"),
        ({"rate": 0.1}, [0], ValueError, r"settings\['rate'\] must be a list of values \(got 0\.1\)"),
        ({"cell": "lstm"}, [0], ValueError, r"settings\['cell'\] must be a list of values"),
        ([0.1], [0], TypeError, "each of settings must be a dict"),
        ([{"seed": 1}], [0], ValueError, "must not contain 'seed'"),
        ([{"rate": 0.1}], [], ValueError, "seeds must be one or more different numbers"),
        ([{"rate": 0.1}], [1, 1], ValueError, "seeds must be one or more different numbers"),
        ([{"rate": 0.1}], 3, TypeError, "seeds must be a list of whole numbers"),
        ([{"rate": 0.1}], [0.5], TypeError, "seeds must be a list of whole numbers"),
        ([{"rate": 0.1}], [True], TypeError, "seeds must be a list of whole numbers"),
        ([{"rate": 0.1}], [-1], ValueError, "seeds must lie between 0 and"),
        ([{"rate": 0.1}], [2**32], ValueError, "seeds must lie between 0 and"),
        (0.1, [0], TypeError, r"settings must be dicts of keyword arguments, or one dict of lists \(got 0\.1\)"),
    ],
)
def test_settings_and_seeds_that_make_no_table_are_refused(settings, seeds, error, said):
    with pytest.raises(error, match=said):
        replicate(train, settings, seeds, **QUIETLY)


@pytest.mark.parametrize("workers", [0, 1.5, True])
def test_bad_workers_are_refused(workers):
    with pytest.raises(ValueError, match="workers must be"):
        replicate(train, [{"rate": 0.1}], [0], workers=workers)


@pytest.mark.parametrize("clash", ["rate", "seed"])
def test_results_must_not_hide_a_setting_or_the_seed(clash):
    with pytest.raises(ValueError, match=f"both have {clash}"):
        replicate(lambda seed, rate: {clash: 1}, [{"rate": 0.1}], [0], **QUIETLY)


@pytest.mark.parametrize(
    ("result", "said"),
    [(None, "must return a dict"), (1.0, "must return a dict"), ({"net": object()}, "result 'net' must be a number")],
)
def test_results_that_fit_no_table_are_refused(result, said):
    with pytest.raises(ExperimentFailed, match=said):
        replicate(lambda seed: result, {}, [0], **QUIETLY)


def test_results_are_copies():
    shared_array = np.zeros(2)

    def experiment(seed):
        shared_array[0] = seed
        return {"array": shared_array}

    assert [array[0] for array in replicate(experiment, {}, [1, 2], **QUIETLY)["array"]] == [1, 2]


def test_interval_by_hand():
    """Of 1, 2, 3, 4: mean 2.5, standard deviation √(5/3), and t(3) = 3.182446 (from a printed table of Student's t)."""
    mean, low, high = interval([1, 2, 3, 4])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (mean, low, high) == (2.5, pytest.approx(2.5 - half, abs=1e-6), pytest.approx(2.5 + half, abs=1e-6))
    assert interval([1, 2, 3, 4], confidence=0.9)[2] == pytest.approx(2.5 + 2.353363 * math.sqrt(5 / 3) / 2, abs=1e-6)


def test_interval_covers_as_often_as_it_says():
    runs = np.random.default_rng(0).normal(1, 2, (5, 20_000))
    _, low, high = interval(runs)
    assert ((low < 1) & (high > 1)).mean() == pytest.approx(0.95, abs=0.006)


def test_interval_of_curves_is_one_interval_a_point():
    curves = [[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]]
    columns = pandas.DataFrame({"array": [np.array(c) for c in curves], "list": curves})
    for values in (curves, np.array(curves), torch.tensor(curves), columns["array"], columns["list"]):
        mean, low, high = interval(values)
        assert (mean[0], low[0], high[0]) == interval([1, 2, 4])
        assert (mean[1], low[1], high[1]) == (5, 5, 5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "at least two seeds"),
        (3.0, "at least two seeds"),
        ([], "at least two seeds"),
        ([1.0, math.nan], "must be finite .got 1 that"),
        ([[1.0, 2.0], [math.inf, 1.0]], "must be finite .got 1 that"),
        ([[1.0, 2.0], [1.0]], "inhomogeneous"),
    ],
)
def test_interval_refuses_what_supports_none(values, said):
    with pytest.raises(ValueError, match=said):
        interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_interval_refuses_an_impossible_confidence(confidence):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        interval([1, 2], confidence)


def bowl(seed, rate, depth=0):
    """Best at a rate of 0.3; diverges above 0.8 for one seed only; without any finite result at depth 1."""
    if depth or (rate > 0.8 and seed == 1):
        return {"loss": math.nan if seed else -math.inf}
    return {"loss": (rate - 0.3) ** 2 * (1 + seed) - 10 * (rate > 0.8)}


def test_tune_takes_the_smallest_mean():
    best, table = tune(bowl, {"rate": [0.1, 0.3, 0.7]}, [0, 1], "loss", **QUIETLY)
    assert best == {"rate": 0.3}
    assert len(table) == 6
    assert table.attrs["note"] == ""


def test_tune_counts_divergence_as_the_worst():
    assert tune(bowl, {"rate": [0.1, 0.4, 0.9]}, [0, 1], "loss", **QUIETLY)[0] == {"rate": 0.4}
    with pytest.raises(ValueError, match="no setting has a finite mean of 'loss'"):
        tune(bowl, {"rate": [0.1], "depth": [1]}, [0, 1], "loss", **QUIETLY)


@pytest.mark.parametrize("rates", [[0.4, 0.5, 0.6], [0.6, 0.5, 0.4], [0.1, 0.2]])
def test_tune_says_when_the_best_lies_at_the_edge(rates):
    best, table = tune(bowl, {"rate": rates}, [0, 1], "loss", **QUIETLY)
    edge = f"rate={best['rate']} is best, but at the edge of {min(rates)} to {max(rates)}: try values beyond it."
    assert table.attrs["note"] == edge


def test_tune_says_nothing_of_other_grids():
    for settings in ({"rate": [0.4, 0.5], "depth": [0, 1]}, {"rate": [0.4]}):
        assert tune(bowl, settings, [0, 1], "loss", **QUIETLY)[1].attrs["note"] == ""
    names = {"cell": ["lstm", "gru"]}
    best, table = tune(lambda seed, cell: {"loss": len(cell)}, names, [0, 1], "loss", **QUIETLY)
    assert (best, table.attrs["note"]) == ({"cell": "gru"}, "")


def test_tune_names_the_results_there_are():
    with pytest.raises(ValueError, match=r"measure must be one of the results.*loss.*got 'accuracy'"):
        tune(bowl, {"rate": [0.1]}, [0], "accuracy", **QUIETLY)
