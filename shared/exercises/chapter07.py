"""Checkers for the exercises of chapter 7, sequences of different lengths."""

import collections
import itertools
import random

import numpy as np
import torch

from shared.exercises import Wrong, checker, off

CASES = 20


def _batch(rng, *features):
    """A padded batch whose padding holds numbers, with lengths of which not all are equal."""
    time, batch = int(rng.integers(3, 9)), int(rng.integers(2, 6))
    lengths = torch.tensor(rng.integers(1, time + 1, batch))
    lengths[:2] = torch.tensor([time, time - 2])
    return torch.tensor(rng.normal(size=(time, batch, *features))), lengths[torch.randperm(batch)]


def _real(time, lengths):
    return torch.arange(time)[:, None] < lengths


@checker("7.1", "Nothing of the padding, neither its losses nor their number, is in the mean.")
def masked_loss(answer):
    """`answer(losses, lengths)` returns the mean loss over the real steps of a padded batch."""
    rng = np.random.default_rng()
    for case in range(CASES):
        clean, lengths = _batch(rng)
        real = _real(len(clean), lengths)
        spoiled = case >= CASES // 2  # at first the padding holds ordinary numbers
        given = torch.where(real, clean, [np.nan, np.inf][case % 2]) if spoiled else clean.clone()
        given.requires_grad_()
        ours = answer(given, lengths.clone())
        if not isinstance(ours, torch.Tensor) or ours.shape != ():
            raise Wrong("return one number, as a tensor without dimensions.")
        right = clean[real].mean()
        if spoiled and not torch.isfinite(ours):
            raise Wrong("right for ordinary padding; with infinities or NaN at the padding your loss is not finite.")
        if abs(ours - right) > 1e-6 * max(1, abs(right)):
            means = torch.stack([one[keep].mean() for one, keep in zip(clean.T, real.T, strict=True)])
            for wrong, what in (
                (clean.mean(), "that is the mean over the padding too."),
                (
                    clean[real].sum() / clean.numel(),
                    "you leave out the padded losses, but divide by the number of all.",
                ),
                (means.mean(), "that is a mean of each sequence's mean: in equation 7.3 every real step counts alike."),
                (clean[real].sum(), "that is the sum; divide it by the number of real steps."),
            ):
                if abs(ours - wrong) < 1e-6 * max(1, abs(wrong)):
                    raise Wrong(what)
            raise Wrong(f"the mean over real steps is {right:.4f}, and yours is {ours.item():.4f}.")
        (slope,) = torch.autograd.grad(ours, given)
        if not torch.equal(slope.nan_to_num(7.0) != 0, real):
            raise Wrong("the value is right, but its gradient is not zero at the padding, or not finite.")


@checker("7.2", "One index of time for each sequence, and no loop.")
def last_output(answer):
    """`answer(outputs, lengths)` returns the outputs at the last real steps, (batch, hidden)."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        outputs, lengths = _batch(rng, int(rng.integers(2, 5)))
        ours = torch.as_tensor(answer(outputs.clone(), lengths.clone()))
        right = torch.stack([outputs[n - 1, b] for b, n in enumerate(lengths.tolist())])
        if ours.shape != right.shape:
            raise Wrong(f"the result should have shape {tuple(right.shape)} (got {tuple(ours.shape)}).")
        if off(ours, right) > 1e-6:
            if off(ours, outputs[-1]) < 1e-6:
                raise Wrong("those are the outputs at the last step of the batch, after the padding.")
            late = torch.stack([outputs[min(n, len(outputs) - 1), b] for b, n in enumerate(lengths.tolist())])
            if off(ours, late) < 1e-6:
                raise Wrong("you are one step late: counted from zero, the last real step is length − 1.")
            wrong = (ours - right).abs().amax(1) > 1e-6
            raise Wrong(f"{int(wrong.sum())} of {len(wrong)} sequences have another step's output.")


@checker("7.3", "Every example once, buckets kept apart, and the order left to chance.")
def epoch(answer):
    """`answer(lengths, buckets, batch_size, rng)` returns the batches of an epoch, lists of indices."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        count, buckets, size = int(rng.integers(90, 120)), int(rng.integers(3, 6)), int(rng.integers(3, 6))
        lengths = rng.permutation(count).tolist()  # all different, so that it is plain what belongs together
        first, second = (answer(list(lengths), buckets, size, random.Random(seed)) for seed in (1, 2))
        batches = [[int(i) for i in batch] for batch in first]
        times = collections.Counter(i for batch in batches for i in batch)
        missing = count - len(times)
        if missing or set(times) != set(range(count)):
            raise Wrong(f"{missing} of {count} examples are in no batch.")
        if max(times.values()) > 1:
            raise Wrong(f"some examples come more than once, one of them {max(times.values())} times.")
        if max(map(len, batches)) > size:
            raise Wrong(f"a batch holds {max(map(len, batches))} examples, where {size} are allowed.")
        if not all(batches):
            raise Wrong("one of the batches is empty.")
        allowed = _most_batches(count, buckets, size)
        if len(batches) > allowed:
            raise Wrong(
                f"{len(batches)} batches, where {allowed} are more than enough: fill one before beginning another."
            )
        spread = max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches)
        if spread > -(-count // buckets):
            raise Wrong(f"a batch holds lengths {spread} apart, which cannot be from one bucket of {buckets}.")
        if [sorted(batch) for batch in batches] == [sorted(int(i) for i in batch) for batch in second]:
            raise Wrong("two epochs with different random states hold the same batches in the same order: shuffle.")
        bucket = [min(lengths[i] for i in batch) * buckets // count for batch in batches]
        if bucket in (sorted(bucket), sorted(bucket, reverse=True)):
            raise Wrong("the batches come bucket by bucket, in the order of their lengths: shuffle them too.")


def _most_batches(count, buckets, size):
    """The number of batches, if each bucket is cut into as few as it can be."""
    edges = [count * k // buckets for k in range(buckets + 1)]
    return sum(-(-(high - low) // size) for low, high in itertools.pairwise(edges)) + buckets


@checker("7.4", "Flipped, row b begins with T − T_b steps of padding; rolled back by as many, they stand at its end.")
def reversed_batch(answer):
    """`answer(values, lengths)` returns each sequence reversed within its own length, zeros at the padding."""
    rng = np.random.default_rng()
    for _ in range(CASES):
        values, lengths = _batch(rng, int(rng.integers(2, 4)))
        ours = torch.as_tensor(answer(values.clone(), lengths.clone()))
        right, real = torch.zeros_like(values), _real(len(values), lengths)
        for b, n in enumerate(lengths.tolist()):
            right[:n, b] = values[:n, b].flip(0)
        if ours.shape != right.shape:
            raise Wrong(f"the result should have shape {tuple(right.shape)} (got {tuple(ours.shape)}).")
        if off(ours, right) > 1e-6:
            if off(ours, values.flip(0)) < 1e-6 or off(ours, (values * real[..., None]).flip(0)) < 1e-6:
                raise Wrong("that is the tensor flipped: now the padding comes first, and a network would begin in it.")
            if off(ours[real], right[real]) < 1e-6:
                raise Wrong("the sequences are right; put zeros at the padding.")
            if off(ours, values * real[..., None]) < 1e-6:
                raise Wrong("nothing is reversed yet.")
            rows = (ours - right).abs().amax((0, 2)) > 1e-6
            raise Wrong(f"{int(rows.sum())} of {len(rows)} sequences are not reversed within their own length.")
