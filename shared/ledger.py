"""The ledger: claims of a source, what this run measured, and a verdict computed from the interval.

    gap = ledger.over_seeds(losses_chunked - losses_true, unit="nats", data="Tiny Shakespeare")
    ledger.claim("true-beats-chunked", "…", source="…", reported="…", measured=gap, holds=gap > 0)

A condition such as `gap > 0` describes a region. The verdict is *reproduced* when the whole 95 % interval lies in the region,
*contradicted* when the whole interval lies outside it, and *undecided* when the interval straddles its edge.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from shared.training import interval

CLAIM_MIME = "application/vnd.unrolled.claim+json"
SYMBOLS = {"reproduced": "✓", "contradicted": "✗", "undecided": "?"}
MINIMUM_SEEDS = 3

_claims: dict[str, dict] = {}  # this chapter's claims by id, in the order in which they were made


@dataclass(frozen=True)
class Measured:
    """What a run measured: one value per seed with its mean and 95 % interval, or one value that no chance entered.

    Made by `over_seeds` or `exact`. Compare it with a number (`gap > 0`, `error < 1e-9`, `slope.between(-0.6, -0.4)`) to get the
    condition that a claim needs.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    unit: str
    data: str
    exact: bool

    def __gt__(self, bound: float) -> "Condition":
        return Condition(self, float(bound), math.inf, f"> {_number(bound)}")

    def __lt__(self, bound: float) -> "Condition":
        return Condition(self, -math.inf, float(bound), f"< {_number(bound)}")

    def between(self, low: float, high: float) -> "Condition":
        """The condition that the value lies between `low` and `high`. Raises ValueError unless `low < high`."""
        if low >= high:
            raise ValueError(f"low must be below high (got {low} and {high})")
        return Condition(self, float(low), float(high), f"between {_number(low)} and {_number(high)}")

    @property
    def summary(self) -> str:
        """The measurement in words: "0.031 nats (95 % interval 0.012 to 0.050, 5 seeds, MNIST)"."""
        unit = f" {self.unit}" if self.unit else ""
        data = f", {self.data}" if self.data else ""
        if self.exact:
            return f"{_number(self.mean, '.6g')}{unit} (computed, the same in every run{data})"
        mean, low, high = _same_decimals(self.mean, self.low, self.high)
        return f"{mean}{unit} (95 % interval {low} to {high}, {len(self.values)} seeds{data})"


@dataclass(frozen=True)
class Condition:
    """A region in which a measurement should lie, as a comparison such as `gap > 0` makes it. It is neither true nor false.

    Raises ValueError for a bound that is NaN, and TypeError where it is asked for its truth, as by `if` or in `0 < gap < 1`.
    """

    measured: Measured
    low: float
    high: float
    text: str

    def __post_init__(self):
        if math.isnan(self.low) or math.isnan(self.high):
            raise ValueError("a measurement cannot be compared with NaN: the bound of a condition must be a number")

    def __bool__(self):
        raise TypeError(
            "a condition is neither true nor false before it is a claim; for two bounds write x.between(low, high)"
        )

    @property
    def verdict(self) -> str:
        """ "reproduced", "contradicted" or "undecided", from the whole interval and the region."""
        if self.low < self.measured.low and self.measured.high < self.high:
            return "reproduced"
        if self.measured.high <= self.low or self.high <= self.measured.low:
            return "contradicted"
        return "undecided"


def over_seeds(values, unit: str = "", data: str = "") -> Measured:
    """One value per seed, shape (seeds,), with its mean and 95 % interval (Student's t).

    `unit` is written after the numbers ("nats", "%"), `data` names the data set. Raises ValueError if there are fewer than three
    values, if they have more than one dimension, or if one of them is NaN or infinite.
    """
    array = np.asarray(torch.as_tensor(values).detach().cpu() if torch.is_tensor(values) else values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"measured values must have one dimension, the seeds (got shape {array.shape})")
    if array.size < MINIMUM_SEEDS:
        raise ValueError(
            f"a claim needs at least {MINIMUM_SEEDS} seeds (got {array.size}); for a result without chance use ledger.exact"
        )
    if not np.isfinite(array).all():
        bad = [i for i, x in enumerate(array) if not math.isfinite(x)]
        raise ValueError(f"measured values must be finite (seed number {bad[0]} gave {array[bad[0]]})")
    mean, low, high = (float(x) for x in interval(array))
    return Measured(tuple(array.tolist()), mean, low, high, unit, data, exact=False)


def exact(value, unit: str = "", data: str = "") -> Measured:
    """A single value in which nothing is drawn at random: a worked number, an enumeration, an agreement.

    Raises ValueError if it is NaN or infinite.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a measured value must be finite (got {number})")
    return Measured((number,), number, number, number, unit, data, exact=True)


def claim(
    id: str, text: str, *, source: str, reported: str, measured: Measured, holds: Condition, quick: bool = False
) -> None:
    """Enter a claim of a source, and what this run says of it, in the chapter's ledger, and show it.

    `text` is the claim as a sentence; `source` says whose it is and `reported` what they report ("no number" if none).
    `measured` comes from `over_seeds` or `exact`; `holds` is the condition on it under which the claim holds. The verdict is computed.
    With `quick=True` the claim must come out *reproduced* at the quick settings too, where it is tested.

    Raises TypeError if `measured` or `holds` is something else, ValueError if `holds` is a condition on another measurement, if a
    text is empty, or if the id already belongs to another claim. Running the same cell again replaces its claim.
    """
    if not isinstance(measured, Measured):
        raise TypeError(f"measured must come from ledger.over_seeds or ledger.exact (got {type(measured).__name__})")
    if not isinstance(holds, Condition):
        raise TypeError(f"holds must be a condition on measured, such as measured > 0 (got {type(holds).__name__})")
    if holds.measured is not measured:
        raise ValueError(f"claim {id!r}: holds is a condition on another measurement than measured")
    for name, value in [("id", id), ("text", text), ("source", source), ("reported", reported)]:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"claim {id!r}: {name} must be a text that is not empty (got {value!r})")
    if id in _claims and _claims[id]["text"] != text:
        raise ValueError(f"the claim id {id!r} is already used, for: {_claims[id]['text']}")
    record = {
        "id": id,
        "text": text,
        "source": source,
        "reported": reported,
        "measured": asdict(measured) | {"summary": measured.summary},
        "condition": holds.text,
        "verdict": holds.verdict,
        "quick": quick,
    }
    _claims[id] = record
    _show(f"> **Claim.** {text}  \n> {_sentence(record)}", record)


def verdict(id: str) -> str:
    """The verdict of a claim made earlier in this chapter. Raises KeyError if there is none with that id."""
    return _claims[id]["verdict"]


def ids() -> list[str]:
    """The ids of this chapter's claims, in the order in which they were made."""
    return list(_claims)


def measured(id: str) -> str:
    """What was measured for a claim made earlier in this chapter, in words. Raises KeyError if there is none with that id."""
    return _claims[id]["measured"]["summary"]


def table() -> None:
    """Show this chapter's ledger."""
    counts = {name: sum(c["verdict"] == name for c in _claims.values()) for name in SYMBOLS}
    rows = ["| claim | source and what it reports | measured here | verdict |", "|---|---|---|---|"]
    for c in _claims.values():
        cells = [
            c["text"],
            f"{c['source']}: {c['reported']}",
            c["measured"]["summary"],
            f"{SYMBOLS[c['verdict']]} {c['verdict']}",
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    total = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    _show("\n".join(rows) + f"\n\n{len(_claims)} claims: {total}.")


def difference(ours, reference) -> float:
    """The largest absolute difference, as a fraction of the largest absolute value in `reference` (absolute if that is zero).

    Both arguments are tensors, arrays or numbers of one shape, or sequences of such. Raises ValueError if the shapes differ.
    """
    if (
        isinstance(ours, Sequence)
        and isinstance(reference, Sequence)
        and len(ours) == len(reference)
        and not _numbers(ours)
    ):
        return max(difference(a, b) for a, b in zip(ours, reference, strict=True))
    a, b = _array(ours), _array(reference)
    if a.shape != b.shape:
        raise ValueError(f"the two sides have different shapes: {a.shape} and {b.shape}")
    scale = np.abs(b).max(initial=0.0)
    return float(np.abs(a - b).max(initial=0.0) / (scale if scale > 0 else 1.0))


def agree(what: str, ours, reference, *, tolerance: float = 1e-10) -> None:
    """Print how closely two computations of the same thing agree, as in "Both gradients agree to 3e-16."

    The closeness is `difference`, rounded up to one digit. Raises AssertionError if it exceeds `tolerance` (or is NaN).
    """
    gap = difference(ours, reference)
    if not gap <= tolerance:
        raise AssertionError(
            f"{what} do not agree: they differ by {gap:.1e} of the largest value, more than {tolerance:.0e}"
        )
    print(f"{what} agree {'exactly' if gap == 0 else f'to {_round_up(gap):.0e}'}.")


def _numbers(values) -> bool:
    return all(isinstance(x, int | float | np.number) for x in values)


def _array(x) -> np.ndarray:
    return np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, dtype=float)


def _round_up(x: float) -> float:
    unit = 10.0 ** math.floor(math.log10(x))
    return math.ceil(x / unit - 1e-9) * unit


def _same_decimals(mean: float, low: float, high: float) -> tuple[str, str, str]:
    """The three numbers with as many decimals as show two digits of the interval's half width."""
    half = (high - low) / 2
    if half == 0:
        return (_number(mean, ".4g"),) * 3
    decimals = 1 - math.floor(math.log10(half))
    if decimals > 6 or decimals < -3:
        return tuple(_number(x, ".3g") for x in (mean, low, high))
    return tuple(_number(round(x, decimals), f",.{max(decimals, 0)}f") for x in (mean, low, high))


def _number(value: float, form: str = "g") -> str:
    """The number in the given format, with a minus sign before a negative one."""
    text = format(value, form)
    return "−" + text[1:] if text.startswith("-") else text


def _sentence(record: dict) -> str:
    symbol = SYMBOLS[record["verdict"]]
    return (
        f"*{record['source']}* reports: {record['reported']}. Measured: {record['measured']['summary']}; "
        f"the claim asks for {record['condition']}. {symbol} **{record['verdict']}**"
    )


def _show(markdown: str, record: dict | None = None) -> None:
    from IPython.display import display

    display({"text/markdown": markdown, "text/plain": markdown} | ({CLAIM_MIME: record} if record else {}), raw=True)
