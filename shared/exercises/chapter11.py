"""Checkers for the exercises of chapter 11, deconstruction with discrete embeddings."""

import math
from collections.abc import Sequence

import torch

from shared.exercises import Wrong, checker, off

CASES = 20
TINY = 1e-6


class _Watched(Sequence):
    """A sequence that counts how many of its entries are looked at."""

    def __init__(self, entries: list):
        self.entries = entries
        self.looks = 0

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, i):
        found = self.entries[i]
        self.looks += len(found) if isinstance(i, slice) else 1
        return found


def _tensor(ours, right):
    ours = torch.as_tensor(ours)
    if ours.shape != right.shape:
        raise Wrong(f"the result should have shape {tuple(right.shape)} (got {tuple(ours.shape)}).")
    return ours.detach().to(right.dtype)


@checker("11.1", "Silence is a slot like any other, except that nothing reaches it from behind.")
def silent_gradient(answer):
    """`answer(a, g, temperature)` returns the gradient of the logits (…, k), given that of the k − 1 visible values."""
    for case in range(CASES):
        k, temperature = 2 + (case + 2) % 4, 0.3 + 2 * torch.rand(()).item()
        a, g = torch.randn(6, 3, k, dtype=torch.float64), torch.randn(6, 3, k - 1, dtype=torch.float64)
        p = (a / temperature).softmax(-1)
        whole = torch.cat([torch.zeros_like(g[..., :1]), g], -1)
        right = p * (whole - (p * whole).sum(-1, keepdim=True)) / temperature
        ours = _tensor(answer(a.clone(), g.clone(), temperature), right)
        if off(ours, right) < TINY:
            continue
        if off(ours, right * temperature) < TINY:
            raise Wrong(f"divide by the temperature, here {temperature:.2f}: a counts only as a/τ.")
        if off(ours, -right) < TINY:
            raise Wrong("the sign is wrong: a slot whose g is above the mean has a positive gradient.")
        cold = a.softmax(-1)
        if off(ours, cold * (whole - (cold * whole).sum(-1, keepdim=True)) / temperature) < TINY:
            raise Wrong("the probabilities depend on the temperature too.")
        if off(ours, p * whole / temperature) < TINY or off(ours, p * whole) < TINY:
            raise Wrong("the mean of the gradients is missing: raising one probability lowers all the others.")
        if ours[..., 0].abs().max() < TINY:
            raise Wrong("the silent slot's logit has a gradient: it gains what the others lose.")
        behind = torch.cat([g, torch.zeros_like(g[..., :1])], -1)
        if off(ours, p * (behind - (p * behind).sum(-1, keepdim=True)) / temperature) < TINY:
            raise Wrong("the silent slot is the first, not the last.")
        if off(ours, p * (whole - whole.mean(-1, keepdim=True)) / temperature) < TINY:
            raise Wrong("the mean is to be taken with the probabilities as weights.")
        if ours.sum(-1).abs().max() > TINY:
            total = ours.sum(-1).abs().max().item()
            raise Wrong(
                f"adding the same to all logits changes nothing: each neuron's sums to 0 (yours to {total:.2g})."
            )
        raise Wrong(f"off by {off(ours, right):.2g} of the largest entry.")


@checker("11.2", "Every neuron's own entropy, in bits, and their sum.")
def bits(answer):
    """`answer(codes, size)` returns what a picture costs by equation 11.6, in bits."""
    for case in range(CASES):
        size, neurons, items = 2 + case % 7, 1 + case % 5, 40 + 7 * case
        p = torch.rand(neurons, size, dtype=torch.float64) ** 3
        p[:, size // 2] *= case % 2  # now and then a slot that is never taken
        codes = torch.multinomial(p, items, replacement=True).T
        shares = torch.stack([(codes == slot).double().mean(0) for slot in range(size)], 1)
        nats = torch.special.entr(shares).sum(1)
        right = (nats.sum() / math.log(2)).item()
        returned = torch.as_tensor(answer(codes.clone(), size))
        if returned.numel() != 1:
            raise Wrong(f"return one number, the sum over neurons (got shape {tuple(returned.shape)}).")
        ours = returned.item()
        if abs(ours - right) < 1e-5 * max(1, right):
            continue
        if math.isnan(ours):
            raise Wrong("NaN: a slot that is never taken costs nothing, but its logarithm is −∞.")
        if abs(ours - nats.sum().item()) < 1e-5:
            raise Wrong(f"that is in nats; divide by ln 2 (yours {ours:.3f}, right {right:.3f}).")
        if abs(ours - right / neurons) < 1e-5:
            raise Wrong(f"that is the mean of the {neurons} neurons; a picture pays for all of them.")
        if abs(ours - neurons * math.log2(size)) < 1e-5:
            raise Wrong("that is what the code could say; the bill goes by what it does say.")
        pooled = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
        if abs(ours - neurons * torch.special.entr(pooled).sum().item() / math.log(2)) < 1e-5:
            raise Wrong(
                "you counted the slots of all neurons together; slot 3 of one has nothing to do with slot 3 of another."
            )
        if abs(ours + right) < 1e-5:
            raise Wrong("the sign is wrong: entropies are not negative.")
        raise Wrong(f"for {neurons} neurons of {size} slots you return {ours:.3f}, and it should be {right:.3f} bits.")


@checker("11.3", "Nats of the neuron and nats of the slot; their sum is the nats of the symbol.")
def two_parts(answer):
    """`answer(scores, symbols, size)` returns the nats of which neuron, and of what it says, of each symbol."""
    for case in range(CASES):
        size, neurons = 2 + case % 5, 2 + case % 4
        scores = torch.randn(12, neurons * size, dtype=torch.float64)
        symbols = torch.randint(neurons * size, (12,))
        p = scores.softmax(-1).view(12, neurons, size)
        rows = torch.arange(12)
        of_neuron = p.sum(-1)[rows, symbols // size]
        right = torch.stack([-of_neuron.log(), (of_neuron / p[rows, symbols // size, symbols % size]).log()])
        returned = answer(scores.clone(), symbols.clone(), size)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise Wrong("return two tensors: the nats of which neuron, and the nats of what it says.")
        ours = torch.stack([_tensor(one, right[0]) for one in returned])
        if off(ours, right) < TINY:
            continue
        if off(ours.flip(0), right) < TINY:
            raise Wrong("the two are exchanged.")
        if off(ours, -right) < TINY:
            raise Wrong("the sign is wrong: nats of surprise are −ln p.")
        if off(ours, right / math.log(2)) < TINY:
            raise Wrong("those are bits; nats are asked for.")
        if off(ours[1], right.sum(0)) < TINY:
            raise Wrong("the second is the surprise of the whole symbol; take off what was paid for the neuron.")
        interleaved = -p.flatten(1).view(12, size, neurons).sum(1)[rows, symbols % neurons].log()
        by_scores = scores.view(12, neurons, size).logsumexp(-1)
        if off(ours[0], -by_scores[rows, symbols // size]) < TINY:
            raise Wrong("the scores are not yet logarithms of probabilities: they do not add up to 1.")
        if off(ours[0], interleaved) < TINY:
            raise Wrong("a symbol is size · neuron + slot: the slots of a neuron stand side by side.")
        raise Wrong(
            f"the first is off by {off(ours[0], right[0]):.2g}, the second by {off(ours[1], right[1]):.2g} of the largest."
        )


@checker("11.4", "And it looked at a few entries only.")
def intersection(answer):
    """`answer(short, long)` returns the positions that stand in both sorted lists, looking at few entries of the long one."""
    for case in range(CASES):
        long = sorted(torch.randperm(30_000)[:20_000].tolist())
        short = sorted({*torch.randperm(30_000)[: 5 + case].tolist(), *long[:: 4000 + case]})
        if case == 1:
            long = []
        elif case == 2:
            short = []
        elif case == 3:
            short = [-5, *short, 31_000]
        watched = _Watched(long)
        there = set(long)
        right = [i for i in short if i in there]
        ours = [int(i) for i in answer(list(short), watched)]
        if ours != right:
            missing, extra = len(set(right) - set(ours)), len(set(ours) - set(right))
            if not missing and not extra:
                raise Wrong("the positions are right, but not in order, or not once each.")
            raise Wrong(
                f"for lists of {len(short)} and {len(long)} you miss {missing} positions and return {extra} wrong ones."
            )
        allowed = 40 * (len(short) + 1)
        if watched.looks > allowed:
            raise Wrong(
                f"right, but you looked at {watched.looks:,} entries of a list of {len(long):,} to find {len(short)} "
                f"positions; halving needs about {math.ceil(math.log2(len(long) + 1))} looks for each."
            )
