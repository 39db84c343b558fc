"""Arithmetic on bitmaps: item i is bit i % 64 of word i // 64, and bits behind the last item are 0."""

import numpy as np
from jaxtyping import Int, UInt64

WORD = np.dtype("<u8")  # little-endian on every machine, so that item i is bit i % 8 of byte i // 8 too
Words = UInt64[np.ndarray, " words"]


def positions(words: Words) -> Int[np.ndarray, " found"]:
    """Of the items in a bitmap."""
    octets = words.view(np.uint8)
    occupied = octets != 0
    if 2 * np.count_nonzero(occupied) > len(octets):
        return np.flatnonzero(np.unpackbits(octets, bitorder="little").view(bool))
    occupied = np.flatnonzero(occupied)
    bits = np.flatnonzero(np.unpackbits(octets[occupied], bitorder="little").view(bool))
    return (occupied[bits >> 3] << 3) + (bits & 7)


def earlier(words: Words, by: int) -> Words:
    """The bitmap whose item i is item i + `by` of the one given; past the end there is none."""
    whole, part = divmod(by, 64)
    moved, rest = np.zeros_like(words), words[whole:]
    moved[: len(rest)] = rest >> part
    if part:
        moved[: max(len(rest) - 1, 0)] |= rest[1:] << (64 - part)
    return moved


def sum_of(rows: list[Words]) -> list[Words]:
    """How many of the bitmaps have each item: the binary digits of that number, the lowest first, as bitmaps.

    Adders of one binary digit, 64 items at once: three digits of one weight leave one, and a carry of the next weight.
    """
    digits, carries = [], rows
    while carries:
        digit, *rest = carries
        carries = []
        while rest:
            other, *rest = rest
            half = digit ^ other
            if rest:
                third, *rest = rest
                carries.append((digit & other) | (half & third))
                digit = half ^ third
            else:
                carries.append(digit & other)
                digit = half
        digits.append(digit)
    return digits


def at_least(k: int, rows: list[Words]) -> Words:
    """The bitmap of the items that at least k ≥ 1 of these have."""
    enough = None  # whether the digits so far are at least those of k; yes before the first, which is 1 in every item
    for i, digit in enumerate(sum_of(rows)):
        if k >> i & 1:
            enough = digit if enough is None else digit & enough
        elif enough is not None:
            enough = digit | enough
    return enough
