"""What a collection of codes says about its neurons: how they are used, and what they tell about labels and each other.

Entropies and information are of the shares in the collection ("plug-in" estimates). In N items the entropy of a variable
that takes m values is too low by about (m − 1)/(2 N ln 2) bits (Miller, 1955), and so the information between variables of
m and c values is too high by about (m − 1)(c − 1)/(2 N ln 2) bits: 0.0008 for 8 slots, 10 classes and 60 000 items. Values
that do not occur do not count in m and c.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.discrete.codes import check_codes, to_symbols

CHUNK = 4096  # items whose one-hot values are in memory at once; float32 counts exactly to 2²⁴


def shares(codes: Int[Tensor, "items neurons"], size: int) -> Float[Tensor, "neurons size"]:
    """Of the items, the share in which each neuron takes each slot (float64).

    Raises ValueError for what are no codes (items, neurons), and if there is no item.
    """
    _check(codes, size)
    neurons = codes.shape[-1]
    counts = torch.bincount(to_symbols(codes, size).flatten(), minlength=neurons * size)
    return counts.view(neurons, size).double() / len(codes)


def entropy(codes: Int[Tensor, "items neurons"], size: int) -> Float[Tensor, " neurons"]:
    """Entropy of each neuron's slot, in bits (float64). Biased downwards, see above. Raises ValueError as `shares` does."""
    return _bits(shares(codes, size))


def perplexity(codes: Int[Tensor, "items neurons"], size: int) -> Float[Tensor, " neurons"]:
    """2^entropy: of how many equally frequent slots a neuron's entropy would be, from 1 to `size` (float64)."""
    return entropy(codes, size).exp2()


def mutual_information(
    codes: Int[Tensor, "items neurons"], labels: Int[Tensor, " items"], size: int
) -> Float[Tensor, " neurons"]:
    """Information, in bits, between each neuron's slot and the items' labels, any whole numbers (float64).

    Biased upwards, see above. Raises ValueError as `shares` does, and for labels that are not one whole number an item.
    """
    _check(codes, size)
    if labels.shape != codes.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be one whole number for each of the {len(codes)} items "
            f"(got shape {tuple(labels.shape)}, {labels.dtype})"
        )
    _, labels = labels.unique(return_inverse=True)
    classes = int(labels.max()) + 1
    # A neuron's slot and the item's label together are one slot of a neuron that has size · classes.
    joint = shares(codes * classes + labels[:, None], size * classes).unflatten(-1, (size, classes))
    bits = _bits(joint.sum(-1)) + _bits(joint[0].sum(0)) - _bits(joint.flatten(-2))
    return bits.clamp(min=0)  # a difference may round to below


def pairwise_information(codes: Int[Tensor, "items neurons"], size: int) -> Float[Tensor, "neurons neurons"]:
    """Information, in bits, between the slots of each two neurons, on the diagonal their entropies (float64).

    All joint counts stand in one Gram matrix of one-hot values, vocabulary × vocabulary. Biased upwards, see above; raises
    ValueError as `shares` does.
    """
    _check(codes, size)
    neurons = codes.shape[-1]
    slots = torch.arange(size, device=codes.device)
    counts = torch.zeros(neurons * size, neurons * size, dtype=torch.float64, device=codes.device)
    for chunk in codes.split(CHUNK):
        values = (chunk[..., None] == slots).flatten(-2).float()
        counts += values.T @ values
    joint = (counts / len(codes)).view(neurons, size, neurons, size).transpose(1, 2)
    together = _bits(joint.flatten(-2))
    alone = together.diagonal()
    return (alone[:, None] + alone - together).clamp(min=0)


def _bits(p: Float[Tensor, "*batch outcomes"]) -> Float[Tensor, "*batch"]:
    """The entropy of distributions, in bits."""
    return torch.special.entr(p).sum(-1) / math.log(2)


def _check(codes: Tensor, size: int) -> None:
    check_codes(codes, size)
    if codes.ndim != 2 or len(codes) == 0:
        raise ValueError(f"codes must have the shape (items, neurons), with an item (got {tuple(codes.shape)})")
