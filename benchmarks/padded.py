"""What a training step on sequences of different lengths costs, forward and backward: `run_padded` in its ways and torch.nn.

`python benchmarks/padded.py` prints a table and stores it in `benchmarks/results/padded.json`. Milliseconds are processor
time on one thread, the median of five runs in which the methods of a row take turns, from inputs that want no gradient to
those of all parameters. One draw of lengths a row, of which `fill` is the share of real steps: even from a tenth of the time
on, or as names have it. "padded nn" ignores the lengths, as one is told not to: it takes the padding for data.
"packed nn" is what one is told to do: the module between pack_padded_sequence and pad_packed_sequence. `blocks` counts those
of the rule, of so many distinct lengths.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import mean_square, milliseconds, report
from shared.recurrent import run_padded
from shared.recurrent.padded import _cuts

NAMES = (18, 64, 64, 64)
SIZES = [(100, 32, 64, 128), (500, 32, 64, 64), (1000, 8, 64, 64), NAMES]  # time, batch, input, hidden
ROWS = [(kind, *sizes) for kind in (nn.LSTM, nn.GRU, nn.RNN) for sizes in SIZES]


def draw_lengths(steps: int, batch: int, like_names: bool) -> torch.Tensor:
    """Even from a tenth of the steps on; or from 4 to 12, and one that takes all."""
    generator = torch.Generator().manual_seed(0)
    if like_names:
        return torch.randint(4, 13, (batch,), generator=generator).index_fill_(0, torch.tensor([0]), steps)
    return torch.randint(steps // 10, steps + 1, (batch,), generator=generator)


def packed_nn(module: nn.RNNBase, inputs: torch.Tensor, lengths: torch.Tensor):
    packed = pack_padded_sequence(inputs, lengths, enforce_sorted=False)
    outputs, last = module(packed)
    return pad_packed_sequence(outputs, total_length=len(inputs))[0], last


def measure(kind: type, steps: int, batch: int, input_size: int, hidden_size: int) -> dict:
    torch.manual_seed(0)
    inputs, module = torch.randn(steps, batch, input_size), kind(input_size, hidden_size)
    lengths = draw_lengths(steps, batch, (steps, batch, input_size, hidden_size) == NAMES)

    def training_step(run, *given, **options):
        return lambda: mean_square(run(*given, **options)[0]).backward()

    both = (module, inputs, lengths)
    methods = {"padded nn": training_step(module, inputs), "packed nn": training_step(packed_nn, *both)}
    methods |= {name: training_step(run_padded, *both, method=name) for name in ("padded", "blocks")}
    methods["rule"] = training_step(run_padded, *both)
    took, fill = milliseconds(methods), int(lengths.sum()) / lengths.numel() / steps
    return {
        "module": kind.__name__,
        **{"time": steps, "batch": batch, "input": input_size, "hidden": hidden_size},
        **{"fill": fill, "lengths": len(lengths.unique()), "blocks": len(_cuts(None, lengths, hidden_size))},
        **{f"{name}, ms": took[name] for name in took},
        **{f"rule / {name}": took["rule"] / took[name] for name in ("padded nn", "packed nn")},
    }


if __name__ == "__main__":
    report("padded", measure, ROWS)
