"""Batches of sequences of different lengths: what every epoch keeps, what padding does, and what it costs."""

import collections
import math
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence, unpad_sequence
from torch.utils.data import DataLoader

from shared.batching import BucketSampler, Padded, Waste, pad, padded_tokens


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def samplers(draw):
    """A sampler, and what it was made from."""
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=60, unique=draw(st.booleans())))
    options = {"buckets": draw(st.integers(1, min(len(lengths), 6)) | st.integers(1, len(lengths)))}
    if draw(st.booleans()):
        options["batch_size"] = draw(st.integers(1, 12) | st.integers(1, 70))
    else:
        options["max_tokens"] = draw(st.integers(max(lengths), 400))
    seed = draw(st.integers(0, 2**32 - 1))
    return lengths, options, seed, BucketSampler(lengths, **options, generator=seeded(seed))


@settings(max_examples=150, deadline=None)
@given(drawn=samplers())
def test_an_epoch_has_each_example_once_in_batches_of_its_length(drawn):
    lengths, options, seed, sampler = drawn
    groups, at = [], 0
    for position in range(options["buckets"]):  # of nearly equal size, from the shortest to the longest
        n = len(lengths) // options["buckets"] + (position < len(lengths) % options["buckets"])
        group = sorted(lengths)[at : at + n]
        size = options.get("batch_size") or options["max_tokens"] // group[-1]
        groups.append((group, math.ceil(n / size), size))
        at += n
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler) == sum(count for _, count, _ in groups)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(type(i) is int for batch in batches for i in batch)
        if "max_tokens" in options:
            assert all(len(batch) * max(lengths[i] for i in batch) <= options["max_tokens"] for batch in batches)
        if len(set(lengths)) == len(lengths):  # then each batch is of one group, in which its lengths all are
            for group, count, size in groups:
                of_group = [len(batch) for batch in batches if lengths[batch[0]] in group]
                assert all({lengths[i] for i in b} <= set(group) for b in batches if lengths[b[0]] in group)
                assert len(of_group) == count
                assert max(of_group) - min(of_group) <= 1
                assert max(of_group) <= size
    again = BucketSampler(torch.tensor(lengths), **options, generator=seeded(seed))
    assert [list(again) for _ in range(3)][-1] == batches


def test_groups_of_distinct_lengths_are_never_mixed_and_have_no_small_last_batch():
    lengths = random.Random(0).sample(range(1, 1000), 103)
    sampler = BucketSampler(lengths, buckets=5, batch_size=6, generator=seeded())
    rank = {length: position for position, length in enumerate(sorted(lengths))}
    ends = [21, 42, 63, 83, 103]
    sizes = collections.defaultdict(list)
    for batch in sampler:
        of_batch = {sum(rank[lengths[i]] >= end for end in ends) for i in batch}
        assert len(of_batch) == 1
        sizes[of_batch.pop()].append(len(batch))
    assert [sorted(sizes[group]) for group in range(5)] == [[5, 5, 5, 6]] * 3 + [[5, 5, 5, 5]] * 2


def test_the_budget_sets_the_batch_size_of_each_group():
    lengths = [2] * 20 + [5] * 20
    batches = list(BucketSampler(lengths, buckets=2, max_tokens=20, generator=seeded()))
    assert collections.Counter((lengths[b[0]], len(b)) for b in batches) == {(2, 10): 2, (5, 4): 5}
    assert BucketSampler([20, 20], buckets=1, max_tokens=20, generator=seeded()).__len__() == 2


def test_epochs_differ_within_groups_and_in_the_order_of_batches():
    lengths = list(range(1, 101))
    sampler = BucketSampler(lengths, buckets=5, batch_size=5, generator=seeded())
    first, second = list(sampler), list(sampler)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    order = [(batch[0] // 20) for batch in first]
    assert order != sorted(order)
    assert order != [(batch[0] // 20) for batch in second]
    other = BucketSampler(lengths, buckets=5, batch_size=5, generator=seeded(1))
    assert list(other) != first


def test_shuffling_is_fair():
    """Over many epochs each example meets each other one of its group equally often, and every place in the order."""
    sampler = BucketSampler([1, 2, 3, 4, 11, 12, 13, 14], buckets=2, batch_size=2, generator=seeded())
    mates, firsts, epochs = collections.Counter(), collections.Counter(), 6000
    for _ in range(epochs):
        batches = list(sampler)
        mates.update(frozenset(batch) for batch in batches)
        firsts[batches[0][0]] += 1
    assert set(mates) == {frozenset(p) for p in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))} | {
        frozenset((a + 4, b + 4)) for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    }
    assert all(abs(n / epochs - 1 / 3) < 0.03 for n in mates.values())
    assert all(abs(firsts[i] / epochs - 1 / 8) < 0.02 for i in range(8))


def test_one_group_is_plain_shuffling():
    lengths = [1, 50] * 500
    batches = list(BucketSampler(lengths, buckets=1, batch_size=100, generator=seeded()))
    assert [len(batch) for batch in batches] == [100] * 10
    assert all(25 < sum(lengths[i] == 1 for i in batch) < 75 for batch in batches)


def test_equal_lengths_are_cut_without_regard_to_their_order_in_the_data():
    halves = collections.Counter()
    generator = seeded()
    for _ in range(300):
        batches = list(BucketSampler([7] * 10, buckets=2, batch_size=5, generator=generator))
        halves.update(next(b for b in batches if 0 in b))  # those that share a group with the first example
    assert halves.pop(0) == 300
    assert all(abs(n / 300 - 4 / 9) < 0.12 for n in halves.values())
    assert len(halves) == 9


WORDS = [torch.arange(n) + 1 for n in random.Random(1).choices(range(1, 20), k=57)]


def collate(examples):
    return pad(examples, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it_epoch_after_epoch(workers):
    lengths = [len(word) for word in WORDS]
    make = {"buckets": 4, "max_tokens": 90}
    sampler = BucketSampler(lengths, **make, generator=seeded())
    loader = DataLoader(WORDS, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    expected = BucketSampler(lengths, **make, generator=seeded())
    for _ in range(2):
        for (padded, loaded), batch in zip(loader, expected, strict=True):
            assert padded.shape == (max(loaded), len(batch))
            assert padded.numel() <= 90
            assert loaded.tolist() == [lengths[i] for i in batch]
            assert bool((padded.count_nonzero(0) == loaded).all())
    assert len(loader) == len(sampler)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": []}, "lengths must be one number an example (got shape (0,))"),
        ({"lengths": [[1], [2]]}, "lengths must be one number an example (got shape (2, 1))"),
        ({"lengths": [3, 0]}, "lengths must be whole numbers of at least 1 (got 0 as the shortest)"),
        ({"lengths": [3, 2.5]}, "lengths must be whole numbers of at least 1 (got torch.float32)"),
        ({"lengths": [True]}, "lengths must be whole numbers of at least 1 (got torch.bool)"),
        ({"batch_size": None}, "exactly one of batch_size and max_tokens must be given (got None and None)"),
        ({"max_tokens": 9}, "exactly one of batch_size and max_tokens must be given (got 2 and 9)"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1 (got 0)"),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1 (got 2.0)"),
        ({"batch_size": None, "max_tokens": True}, "max_tokens must be a whole number of at least 1 (got True)"),
        ({"buckets": 0}, "buckets must be a whole number of at least 1 (got 0)"),
        ({"buckets": 4}, "buckets must be at most the number of examples, 3 (got 4)"),
        (
            {"batch_size": None, "max_tokens": 7},
            "max_tokens must be at least the longest length, that of example 1, 8 (got 7)",
        ),
    ],
)
def test_bad_arguments_of_the_sampler_are_named_before_anything_is_drawn(change, message):
    generator = seeded()
    arguments = {"lengths": [3, 8, 5], "buckets": 2, "batch_size": 2, **change}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BucketSampler(arguments.pop("lengths"), **arguments, generator=generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_the_sampler_needs_a_generator():
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator \(got 3\)$"):
        BucketSampler([1], buckets=1, batch_size=1, generator=3)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    features=st.sampled_from([(), (3,), (2, 3)]),
    side=st.sampled_from(["right", "left"]),
    dtype=st.sampled_from([torch.int64, torch.uint8, torch.float32, torch.float64]),
)
def test_padding_is_that_of_torch_and_comes_off_again(lengths, features, side, dtype):
    sequences = [torch.randint(1, 100, (n, *features), generator=seeded(n)).to(dtype) for n in lengths]
    padded, found = pad(sequences, 0, padding_side=side)
    # Left, as right of what is turned round: torch has a `padding_side` of its own only since 2.5.
    turn = (lambda steps: steps) if side == "right" else (lambda steps: steps.flip(0))
    assert torch.equal(padded, turn(pad_sequence([turn(one) for one in sequences], padding_value=0)))
    assert padded.dtype == dtype
    assert found.dtype == torch.int64
    assert found.device.type == "cpu"
    assert found.tolist() == lengths
    for one, column in zip(sequences, padded.unbind(1), strict=True):
        real, rest = (
            (column[: len(one)], column[len(one) :]) if side == "right" else column.tensor_split([-len(one)])[::-1]
        )
        assert torch.equal(real, one)
        assert not rest.any()
    if side == "right":
        assert all(map(torch.equal, unpad_sequence(padded.clone(), found), sequences))  # it transposes in place
        pack_padded_sequence(padded, found, enforce_sorted=False)


def test_padding_behind_is_the_default_and_lets_gradients_and_odd_values_through():
    two = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0])]
    padded, _ = pad(two, math.nan)
    assert padded.T.tolist()[0] == [1.0, 2.0]
    assert padded[1, 1].isnan()
    for side in ("right", "left"):
        (gradient,) = torch.autograd.grad((pad(two, 0.0, side).padded[:, 0] * torch.tensor([5.0, 7.0])).sum(), two[0])
        assert gradient.tolist() == [5.0, 7.0]
    assert pad([torch.tensor([0.0])], 0).padded.tolist() == [[0.0]]  # a zero among floats is no letter
    assert pad([torch.tensor([True, False]), torch.tensor([True])], False).padded.T.tolist()[1] == [True, False]
    assert isinstance(pad(two, 0), Padded)


@pytest.mark.parametrize(
    ("sequences", "value", "message"),
    [
        ([], 0, "sequences must hold at least one (got none)"),
        ([torch.ones(2), torch.ones(0)], 0, "sequences must have at least one letter (got shape (0,) as number 1)"),
        ([torch.tensor(1.0)], 0, "sequences must have at least one letter (got shape () as number 0)"),
        (
            [torch.tensor([1, 2]), torch.tensor([3, 0])], 0,
            "value must not be one of the letters (got 0, which sequence 1 has at [1]); use a number of its own for padding",
        ),
        (
            [torch.tensor([[1, 2], [5, 4]])], 5,
            "value must not be one of the letters (got 5, which sequence 0 has at [1, 0]); use a number of its own for padding",
        ),
        ([torch.tensor([1])], 0.5, "value must be a whole number that torch.int64 can hold (got 0.5)"),
        ([torch.tensor([1])], math.nan, "value must be a whole number that torch.int64 can hold (got nan)"),
        ([torch.ones(1, dtype=torch.uint8)], -1, "value must be a whole number that torch.uint8 can hold (got -1)"),
        (
            [torch.tensor([1]), torch.tensor([0.5])], 0,
            "sequences must have the same dtype, device and features (got (torch.int64, device(type='cpu'), ()) and "
            "(torch.float32, device(type='cpu'), ()))",
        ),
        (
            [torch.ones(1, 2), torch.ones(1, 3)], 0,
            "sequences must have the same dtype, device and features (got (torch.float32, device(type='cpu'), (2,)) and "
            "(torch.float32, device(type='cpu'), (3,)))",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_of_pad_are_named(sequences, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pad(sequences, value)


def test_other_bad_arguments_of_pad():
    with pytest.raises(ValueError, match=re.escape("""padding_side must be "right" or "left" (got 'top')""")):
        pad([torch.ones(1)], 0, "top")
    with pytest.raises(TypeError, match=r"^sequences must be tensors \(got list as number 1\)$"):
        pad([torch.ones(1), [2.0]], 0)


@settings(max_examples=100, deadline=None)
@given(drawn=samplers())
def test_waste_is_what_padding_adds(drawn):
    lengths, _, _, sampler = drawn
    batches = list(sampler)
    waste = padded_tokens(lengths, batches)
    slots = sum(pad([torch.ones(lengths[i]) for i in batch], 0).padded.numel() for batch in batches)
    assert waste == (sum(lengths), slots - sum(lengths))
    assert waste.share == pytest.approx(1 - sum(lengths) / slots)
    assert padded_tokens(torch.tensor(lengths), (torch.tensor(batch) for batch in batches)) == waste


def test_waste_by_hand_and_its_bad_arguments():
    assert padded_tokens([3, 1, 4, 4], [[0, 1], [2, 3]]) == Waste(real=12, padding=2)
    assert Waste(12, 4).share == 0.25
    assert padded_tokens([3, 1], [[0]]).share == 0.0
    with pytest.raises(ValueError, match=r"^batches must hold at least one batch \(got none\)$"):
        padded_tokens([3], [])
    with pytest.raises(ValueError, match=r"^batches must hold at least one example each \(got none in batch 1\)$"):
        padded_tokens([3], [[0], []])
    with pytest.raises(ValueError, match=r"^lengths must be whole numbers of at least 1 \(got 0 as the shortest\)$"):
        padded_tokens([0], [[0]])
    with pytest.raises(IndexError):
        padded_tokens([3], [[1]])


def test_more_groups_waste_less():
    lengths = (torch.rand(2000, generator=seeded()).log() * -10).long() + 1
    for size in ({"batch_size": 32}, {"max_tokens": 1000}):
        shares = []
        for buckets in (1, 2, 5, 20):
            sampler = BucketSampler(lengths, buckets=buckets, **size, generator=seeded())
            shares.append(sum(padded_tokens(lengths, sampler).share for _ in range(5)) / 5)
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 1.5 * shares[2]
