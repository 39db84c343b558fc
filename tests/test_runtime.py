"""Device, seeds, threads, the clock and the report."""

import random

import numpy as np
import pytest
import torch

from shared import runtime


def test_the_environment_chooses_the_device(monkeypatch):
    monkeypatch.setenv("UNROLLED_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99", "gpu"])
def test_an_unknown_device_is_named(monkeypatch, name):
    monkeypatch.setenv("UNROLLED_DEVICE", name)
    with pytest.raises(ValueError, match=rf"UNROLLED_DEVICE must be one of cuda, mps, cpu \(got '{name}'\)"):
        runtime.device()


def test_an_absent_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("UNROLLED_DEVICE", "cuda")
    with pytest.raises(ValueError, match="this machine has only: cpu"):
        runtime.device()
    monkeypatch.delenv("UNROLLED_DEVICE")
    assert runtime.device() == torch.device("cpu")


def test_seeding_repeats_every_generator():
    def draw():
        generator = runtime.seed_everything(7)
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=generator).item()

    assert draw() == draw()


@pytest.mark.parametrize(
    ("seed", "error"), [(1.5, TypeError), ("1", TypeError), (True, TypeError), (-1, ValueError), (2**32, ValueError)]
)
def test_a_bad_seed_is_refused(seed, error):
    with pytest.raises(error, match="seed must be"):
        runtime.seed_everything(seed)


def test_one_thread_is_undone():
    before = torch.get_num_threads()
    with runtime.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_stopwatch_runs():
    watch = runtime.Stopwatch(torch.device("cpu"))
    assert 0 <= watch.seconds <= watch.seconds


def test_the_report_says_device_versions_and_data(monkeypatch):
    class Data:
        name = "digits"

        def __str__(self):
            return "digits: 10 images"

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    monkeypatch.setenv("UNROLLED_DEVICE", "cpu")
    runtime.report(Data())
    (bundle,) = shown
    assert bundle["text/plain"].endswith("Data: digits: 10 images")
    record = bundle[runtime.RUN_MIME]
    assert record["data"] == ["digits"]
    assert set(record["versions"]) == {"python", "torch", "numpy"}
    assert "CPU" in record["device"]


def test_milliseconds_are_the_best_of_three_runs(monkeypatch):
    clock = iter([0, 5, 0, 2, 0, 9, 0, 3, 0, 4, 0, 1])  # starts and ends of six runs, in seconds
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    calls = []
    assert runtime.milliseconds(lambda: calls.append(1), repeats=2).tolist() == [2000, 1000]
    assert len(calls) == 6
