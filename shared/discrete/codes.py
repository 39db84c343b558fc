"""Codes, their symbols, and what a decoder sees of them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.recurrent import _check_size


def to_symbols(codes: Int[Tensor, "*batch neurons"], size: int) -> Int[Tensor, "*batch neurons"]:
    """The symbols of codes, size · neuron + slot, in the order of the neurons (Int64).

    Raises ValueError for codes that are not slots from 0 to size − 1, and for a size below 2.
    """
    check_codes(codes, size)
    return codes.long() + size * torch.arange(codes.shape[-1], device=codes.device)


def to_codes(symbols: Int[Tensor, "*batch neurons"], size: int) -> Int[Tensor, "*batch neurons"]:
    """The codes of symbols, which stand in any order along the last axis, every neuron's once (Int64).

    Raises ValueError for a symbol outside the vocabulary, for a neuron that is missing or there more than once, and for a
    size below 2.
    """
    check_slots(size)
    _check_whole("symbols", symbols)
    symbols, neurons = symbols.long(), symbols.shape[-1]
    outside = (symbols < 0) | (symbols >= size * neurons)
    if outside.any():
        raise ValueError(
            f"symbols must be from 0 to {size * neurons - 1}, as {neurons} neurons of {size} slots have them "
            f"(got {int(symbols[outside][0])})"
        )
    neuron = symbols // size
    times = torch.zeros_like(symbols).scatter_add_(-1, neuron, torch.ones_like(symbols))
    if (times != 1).any():
        *where, repeated = (times > 1).nonzero()[0].tolist()
        missing = int((times[tuple(where)] == 0).nonzero()[0])
        raise ValueError(
            f"symbols must have each of the {neurons} neurons once (got neuron {repeated} "
            f"{int(times[(*where, repeated)])} times and neuron {missing} not at all{f', at {where}' if where else ''})"
        )
    return torch.empty_like(symbols).scatter_(-1, neuron, symbols % size)


def visible(
    codes: Int[Tensor, "*batch neurons"], size: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch visible"]:
    """What a decoder sees, (*batch, neurons · (size − 1)): the one-hot values without those of slot 0.

    `dtype` is torch's default one unless given. Raises ValueError as `to_symbols` does.
    """
    check_codes(codes, size)
    slots = torch.arange(1, size, device=codes.device)
    return (codes[..., None] == slots).flatten(-2).to(dtype or torch.get_default_dtype())


def check_slots(size: int) -> None:
    """Raise ValueError if neurons cannot have `size` slots: a silent one and at least one that is seen."""
    _check_size("size", size)
    if size < 2:
        raise ValueError(f"size must be at least 2, the silent slot and one more (got {size})")


def check_codes(codes: Int[Tensor, "*batch neurons"], size: int, neurons: int | None = None) -> None:
    """Raise ValueError if `codes` are no codes of neurons (of that many neurons, if given) of `size` slots."""
    check_slots(size)
    _check_whole("codes", codes)
    if neurons is not None and codes.shape[-1] != neurons:
        raise ValueError(f"codes must have the shape (*batch, {neurons}) (got {tuple(codes.shape)})")
    if codes.numel() and (codes.min() < 0 or codes.max() >= size):
        raise ValueError(f"codes must be slots from 0 to {size - 1} (got {int(codes.min())} to {int(codes.max())})")


def _check_whole(name: str, values: Tensor) -> None:
    if (
        not isinstance(values, Tensor)
        or values.is_floating_point()
        or values.is_complex()
        or values.dtype == torch.bool
    ):
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a tensor of whole numbers (got {got})")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} must have the shape (*batch, neurons), with a neuron (got {tuple(values.shape)})")
