"""What truncation costs: `shared.truncation` against its windows as one batch, and against full backpropagation.

`python benchmarks/truncation.py` prints a table and stores it in `benchmarks/results/truncation.json`. Milliseconds are
processor time on one thread, the median of five runs in which the methods of a row take turns; megabytes are those
of the tensors that graphs keep for the backward pass, not what that pass itself fills and frees.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import mean_square, megabytes, milliseconds, report
from shared.recurrent import TanhCell, unroll
from shared.truncation import truncated_backward

SIZES = {"time": 400, "batch": 16, "input": 32, "hidden": 64}
SHORT = {"time": 40, "batch": 200, "input": 4, "hidden": 4}  # the sizes of R2RT's speed test
ROWS = [
    ("TanhCell", SIZES, 20, 1),
    ("RNN", SIZES, 20, 1),
    ("GRU", SIZES, 20, 1),
    ("LSTM", SIZES, 20, 1),
    ("RNN", SIZES, 20, 5),
    ("RNN", SIZES, 20, 20),
    ("LSTM", SIZES, 20, 20),
    ("RNN", SIZES, 200, 1),
    ("RNN", SIZES, 400, 1),
    ("RNN", SHORT, 20, 1),
]


def full(cell, inputs):
    outputs, _ = unroll(cell, inputs) if isinstance(cell, TanhCell) else cell(inputs)
    mean_square(outputs).backward()


def windows(module, inputs, depth):
    """The same gradient by windows, all in one batch, each from the state that was there and with the loss at its end.

    An LSTM shows its states step by step only. The windows that the beginning cuts short are one run together.
    """
    _, batch, size = inputs.shape
    with torch.no_grad():
        if isinstance(module, nn.LSTM):
            states = [tuple(torch.zeros(1, batch, module.hidden_size) for _ in range(2))]
            for x_t in inputs[:-depth].split(1):
                states.append(module(x_t, states[-1])[1])
            start = tuple(torch.cat(parts, 1) for parts in zip(*states, strict=True))
        else:
            earlier = module(inputs[:-depth])[0].flatten(0, 1)
            start = torch.cat([earlier.new_zeros(batch, module.hidden_size), earlier])[None]
    whole, _ = module(inputs.unfold(0, depth, 1).permute(3, 0, 1, 2).reshape(depth, -1, size), start)
    cut, _ = module(inputs[: depth - 1])
    mean_square(torch.cat([cut, whole[-1].unflatten(0, (-1, batch))])).backward()


def measure(kind: str, sizes: dict, depth: int, stride: int) -> dict:
    torch.manual_seed(0)
    inputs = torch.randn(sizes["time"], sizes["batch"], sizes["input"])
    cell = (TanhCell if kind == "TanhCell" else getattr(nn, kind))(sizes["input"], sizes["hidden"])
    module = nn.RNN(sizes["input"], sizes["hidden"]) if kind == "TanhCell" else cell
    methods = {
        "ours": lambda: truncated_backward(cell, inputs, mean_square, depth=depth, stride=stride),
        "full": lambda: full(cell, inputs),
        "full torch.nn": lambda: full(module, inputs),
    }
    if stride == 1 and depth < 100:  # beyond, the windows fill the memory
        methods["windows"] = lambda: windows(module, inputs, depth)
    took = milliseconds(methods)
    return {
        "cell": kind,
        **sizes,
        "depth": depth,
        "stride": stride,
        **{f"{name}, ms": took[name] for name in took},
        **{f"ours / {name}": took["ours"] / took[name] for name in took if name != "ours"},
        **{f"{name}, MB": megabytes(methods[name]) for name in took if name != "full torch.nn"},
    }


if __name__ == "__main__":
    report("truncation", measure, ROWS)
