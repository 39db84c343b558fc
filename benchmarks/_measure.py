"""What the benchmarks share: processor time, memory kept for the backward pass, and where results are stored."""

import json
import statistics
import time
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from shared import runtime

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = 5


def mean_square(outputs):
    return outputs.square().mean()


def milliseconds(methods: dict) -> dict:
    """Processor time, the median of some runs after one that does not count; the methods take turns."""
    seconds = {name: [] for name in methods}
    for _ in range(1 + RUNS):
        for name, method in methods.items():
            start = time.process_time()
            method()
            seconds[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(all_runs[1:]) for name, all_runs in seconds.items()}


def megabytes(method) -> float:
    """Of the tensors that graphs keep for the backward pass."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        method()
    return sum(storage.nbytes() for storage in kept.values()) / 1e6


def report(name: str, measure, rows: list[tuple], decimals: int = 2) -> None:
    """Print a table of what `measure` finds, row by row on one thread, and store it in `results/name.json`."""
    with runtime.one_thread():
        table = pd.DataFrame([measure(*row) for row in rows]).round(decimals)
        where = runtime.device_name(torch.device("cpu"))
    print(table.to_string(index=False, na_rep=""))
    found = [{key: value for key, value in row.items() if value == value} for row in table.to_dict("records")]
    record = {"device": where, "torch": torch.__version__, "date": date.today().isoformat(), "rows": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
