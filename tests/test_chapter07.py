"""Chapter 7: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import collections
import functools
import random
import unicodedata

import conftest
import numpy as np
import pytest
import torch

from shared import batching, recurrent, tasks
from shared.exercises import chapter07
from shared.recurrent import run_padded, unroll
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("07")[0])
GIVEN = {"np": np, "torch": torch, "random": random, "collections": collections, "unicodedata": unicodedata}
GIVEN |= {"batching": batching, "recurrent": recurrent, "tasks": tasks, "run_padded": run_padded, "unroll": unroll}
GIVEN |= {"chapter07": chapter07, "RNNS": {"RNN": torch.nn.RNN, "GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}}
GIVEN |= {"lent": 2, "symbols": "abcdef", "classes": ["one", "two"]}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def real(time, lengths):
    return torch.arange(time)[:, None] < lengths


def cut(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


def epoch(lengths, buckets, batch_size, rng, *, shuffle=True, within=True, lose=0, again=0):
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = []
    for k in range(buckets):
        group = order[len(order) * k // buckets : len(order) * (k + 1) // buckets]
        if within:
            rng.shuffle(group)
        batches += cut(group[lose:] + group[:again], batch_size)
    if shuffle:
        rng.shuffle(batches)
    return batches


def all_mixed(lengths, buckets, batch_size, rng):
    order = list(range(len(lengths)))
    rng.shuffle(order)
    return cut(order, batch_size)


def turned(values, lengths, zeros=True):
    result = torch.zeros_like(values) if zeros else values.clone()
    for b, n in enumerate(lengths.tolist()):
        result[:n, b] = values[:n, b].flip(0)
    return result


WRONG = [
    ("masked_loss", lambda losses, lengths: losses.mean(), "mean over the padding too"),
    (
        "masked_loss",
        lambda losses, lengths: (losses * real(len(losses), lengths)).mean(),
        "divide by the number of all",
    ),
    (
        "masked_loss",
        lambda losses, lengths: ((losses * real(len(losses), lengths)).sum(0) / lengths).mean(),
        "a mean of each sequence's mean",
    ),
    (
        "masked_loss",
        lambda losses, lengths: (losses * real(len(losses), lengths)).sum() / lengths.sum(),
        "infinities or NaN at the padding",
    ),
    ("masked_loss", lambda losses, lengths: losses[real(len(losses), lengths)].sum(), "that is the sum"),
    ("masked_loss", lambda losses, lengths: 1.0, "as a tensor without dimensions"),
    ("masked_loss", lambda losses, lengths: losses[real(len(losses), lengths)].mean() + 1, "and yours is"),
    ("last_output", lambda outputs, lengths: outputs[-1], "after the padding"),
    (
        "last_output",
        lambda outputs, lengths: outputs[lengths.clamp(max=len(outputs) - 1), torch.arange(len(lengths))],
        "one step late",
    ),
    ("last_output", lambda outputs, lengths: outputs[lengths - 1], "should have shape"),
    ("last_output", lambda outputs, lengths: outputs[0], "have another step's output"),
    ("epoch", functools.partial(epoch, lose=1), "are in no batch"),
    ("epoch", functools.partial(epoch, again=2), "more than once"),
    ("epoch", functools.partial(epoch, shuffle=False), "in the order of their lengths"),
    ("epoch", functools.partial(epoch, shuffle=False, within=False), "the same batches in the same order"),
    ("epoch", all_mixed, "cannot be from one bucket"),
    ("epoch", lambda lengths, buckets, size, rng: epoch(lengths, buckets, 2 * size, rng), "are allowed"),
    ("epoch", lambda lengths, buckets, size, rng: epoch(lengths, buckets, 1, rng), "more than enough"),
    ("reversed_batch", lambda values, lengths: values.flip(0), "the tensor flipped"),
    ("reversed_batch", functools.partial(turned, zeros=False), "put zeros at the padding"),
    (
        "reversed_batch",
        lambda values, lengths: values * real(len(values), lengths)[..., None],
        "nothing is reversed yet",
    ),
    ("reversed_batch", lambda values, lengths: values[0], "should have shape"),
    ("reversed_batch", lambda values, lengths: turned(values, lengths - 1), "not reversed within their own length"),
]

READS = [("letters", "mean"), ("RNN", "last"), ("GRU", "last"), ("LSTM", "both ends"), ("LSTM", "attention")]
LETTERS, LENGTHS, LABELS = torch.randint(6, (9, 5)), torch.tensor([4, 9, 1, 6, 6]), torch.tensor([0, 1, 1, 0, 1])


@pytest.mark.parametrize(("cell", "read"), READS)
def test_a_reader_says_of_a_padded_batch_what_it_says_of_each_sequence(cell, read):
    (Reader,) = printed("Reader")
    net = Reader(cell, read, 4, symbols=6, classes=2, start=cell == "GRU")
    together = net(LETTERS, LENGTHS)
    alone = torch.cat([net(LETTERS[:n, [b]], LENGTHS[[b]]) for b, n in enumerate(LENGTHS)])
    torch.testing.assert_close(together, alone)
    more = torch.cat([LETTERS, torch.full((7, 5), 6)])
    torch.testing.assert_close(net(more, LENGTHS), together)


@pytest.mark.parametrize("name", ["LastOfTheBatch", "BackwardOverPadding", "LengthsByCounting"])
def test_a_careless_reader_is_wrong_about_some_sequences_and_a_careful_one_has_the_same_weights(name):
    Reader, Careless = printed("Reader", name)
    read = "both ends" if name == "BackwardOverPadding" else "last"
    torch.manual_seed(0)
    careful = Reader("LSTM", read, 4, symbols=6, classes=2)
    torch.manual_seed(0)
    careless = Careless("LSTM", read, 4, symbols=6, classes=2)
    torch.testing.assert_close(careful.state_dict(), careless.state_dict())
    letters = torch.where(real(9, LENGTHS), 3, 6)
    if name == "LengthsByCounting":
        torch.testing.assert_close(careless(letters, LENGTHS), careful(letters, LENGTHS))
        letters[0] = 2  # the letter that lends its number
    wrong = (careless(letters, LENGTHS) - careful(letters, LENGTHS)).abs().amax(1) > 1e-5
    assert wrong.any()
    assert name == "LengthsByCounting" or not wrong[1]  # the longest has no padding


def test_a_table_gives_batches_no_longer_than_their_longest():
    (Table,) = printed("Table")
    table = Table([torch.arange(n) % 6 for n in (3, 5, 1)], [0, 1, 0], padding=6)
    letters, lengths, labels = table.batch([2, 0])
    assert letters.T.tolist() == [[0, 6, 6], [0, 1, 2]]
    assert (lengths.tolist(), labels.tolist()) == ([1, 3], [0, 0])


def test_parts_keep_a_group_together_and_lose_nothing():
    parts_of, key = printed("parts_of", "key")
    examples = [(f"{c}{i % 70}", i) for i in range(300) for c in "Aáa"]
    parts = parts_of(examples, lambda one: key(one[0]) + one[0][1:], seed=1)
    assert sorted(example for part in parts for example in part) == sorted(examples)
    where = collections.defaultdict(set)
    for k, part in enumerate(parts):
        for word, _ in part:
            where[word[1:]].add(k)
    assert all(len(some) == 1 for some in where.values())
    assert [round(10 * len(part) / len(examples)) for part in parts] == [7, 1, 2]
    assert key("D'Àrco Ñ") == key("darcon")


def test_testing_by_length_gives_each_sequence_its_own_answer():
    Table, Reader, tested = printed("Table", "Reader", "tested")
    table = Table([LETTERS[:n, b] for b, n in enumerate(LENGTHS)], LABELS.tolist(), padding=6)
    net = Reader("LSTM", "last", 4, symbols=6, classes=2)
    right = net(LETTERS, LENGTHS).log_softmax(-1)
    for extra in (0, 5):
        torch.testing.assert_close(tested(net, table, extra), right)


def test_an_epoch_of_the_posts_iterator_is_banachs_matchbox_problem():
    (missed,) = printed("missed_in_an_epoch")
    rng = np.random.default_rng(0)
    assert missed(101, 10, 1, rng) == pytest.approx(1 / 101)
    # Two boxes of N = 20 matches: when one has been emptied, the other holds 2N C(2N, N) / 4^N on average. In each
    # bucket of 21 one example is never given out.
    found = np.mean([missed(42, 1, 2, rng) for _ in range(5_000)]) * 42 - 2
    expected = 40.0
    for k in range(1, 21):
        expected *= (20 + k) / k / 4
    assert found == pytest.approx(expected, rel=0.05)


def test_blocks_are_packing():
    by_blocks, by_packing = printed("by_blocks", "by_packing")
    for lengths in ([7, 2, 2, 5], [3, 3], [1, 9]):
        net, x = torch.nn.LSTM(3, 4), torch.randn(max(lengths), len(lengths), 3)
        ours, theirs = (way(net, x, torch.tensor(lengths)) for way in (by_blocks, by_packing))
        torch.testing.assert_close(ours, theirs)


def test_a_labellers_loss_is_the_mean_over_all_real_steps():
    (Labeller,) = printed("Labeller")
    net = Labeller("LSTM", "last", 4, symbols=6, classes=2)
    losses = []
    for b, n in enumerate(LENGTHS.tolist()):
        said = net(LETTERS[:n, [b]], LENGTHS[[b]])[:, 0]
        losses.append(torch.nn.functional.cross_entropy(said, LABELS[[b]].expand(n), reduction="none"))
    torch.testing.assert_close(net.loss(LETTERS, LENGTHS, LABELS), torch.cat(losses).mean())


def test_a_writers_loss_is_the_chance_of_the_sequence_and_its_end():
    (Writer,) = printed("Writer")
    net = Writer("GRU", 4, symbols=6, classes=2)
    losses, mask = net.losses(LETTERS, LENGTHS, LABELS)
    assert mask.sum(0).tolist() == (LENGTHS + 1).tolist()
    for b, n in enumerate(LENGTHS.tolist()):
        symbols = torch.cat([7 + 1 + LABELS[[b]], LETTERS[:n, b]])
        said = net.readout(net.rnn(net.embed(symbols)[:, None])[0])[:, 0].log_softmax(-1)
        wanted = [*LETTERS[:n, b].tolist(), 7]
        right = -sum(said[t, symbol] for t, symbol in enumerate(wanted))
        torch.testing.assert_close(losses[mask[:, b], b].sum(), right)


def test_written_sequences_end_and_come_as_often_as_their_chances():
    Writer, write = printed("Writer", "write")
    torch.manual_seed(0)
    net, count = Writer("RNN", 4, symbols=2, classes=1), 20_000
    written = write(net, torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(0), limit=30)
    found = collections.Counter(tuple(one.tolist()) for one in written)
    assert max(map(max, filter(None, found))) < net.end
    for word in [(0,), (1, 0), (0, 0, 1)]:
        letters, lengths = torch.tensor(word)[:, None], torch.tensor([len(word)])
        losses, mask = net.losses(letters, lengths, torch.zeros(1, dtype=torch.long))
        assert found[word] / count == pytest.approx(torch.exp(-losses[mask].sum()).item(), rel=0.2)


def test_ways_are_counted_along_the_inner_string():
    (ways_taken,) = printed("ways_taken")
    for string, ways in [("BTBTXSETE", (1, 2)), ("BPBPTTVPSEPE", (3, 3))]:
        assert ways_taken(torch.tensor([tasks.LETTERS.index(c) for c in string])) == ways
