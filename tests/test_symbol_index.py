"""The index of symbols: every answer against Python's sets, its file, and what it refuses."""

import io
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import search
from shared.discrete import All, Any, AtLeast, SymbolIndex, index, to_symbols
from shared.discrete.bitmaps import WORD, at_least, earlier, positions, sum_of

BORDERS = [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200]


def drawn(items: int, neurons: int, size: int, seed: int = 0) -> np.ndarray:
    """Codes whose slots are not equally frequent: slot 0 is the most frequent one."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.integers(0, size, (items, neurons)), rng.integers(0, size, (items, neurons)))


def symbol_sets(codes: np.ndarray, size: int) -> list[set[int]]:
    return [set(item) for item in to_symbols(torch.from_numpy(codes), size).tolist()]


def answers(query, symbols: set[int]) -> bool:
    if isinstance(query, AtLeast):
        return sum(answers(one, symbols) for one in query.queries) >= query.k
    return query in symbols


def answering(query, items: list[set[int]]) -> list[int]:
    return [i for i, symbols in enumerate(items) if answers(query, symbols)]


def queries(vocabulary: int):
    def at_least(inner):
        return st.lists(inner, min_size=1, max_size=6).flatmap(
            lambda many: st.builds(AtLeast, st.integers(1, len(many)), st.just(tuple(many)))
        )

    return st.recursive(st.integers(0, vocabulary - 1), at_least, max_leaves=12)


@st.composite
def collections(draw):
    """An index filled in several pieces, and the set of symbols of each of its items."""
    neurons, size = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    pieces = draw(st.lists(st.sampled_from(BORDERS) | st.integers(0, 150), min_size=1, max_size=4))
    codes = [drawn(items, neurons, size, seed) for seed, items in enumerate(pieces, draw(st.integers(0, 1000)))]
    index = SymbolIndex(codes[0], size)
    for piece in codes[1:]:
        index.add(piece)
    return index, symbol_sets(np.concatenate(codes), size)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), collection=collections())
def test_answers_are_those_of_sets(data, collection):
    index, items = collection
    assert len(index) == len(items)
    ask = queries(index.vocabulary)
    query = data.draw(ask)
    found = index.find(query)
    assert found.dtype == np.int64
    assert found.tolist() == answering(query, items)
    run = data.draw(st.lists(ask, min_size=1, max_size=4))
    starts = range(len(items) - len(run) + 1)
    expected = [i for i in starts if all(answers(one, items[i + by]) for by, one in enumerate(run))]
    assert index.runs(*run).tolist() == expected
    symbols = data.draw(st.lists(st.integers(0, index.vocabulary - 1), min_size=1, max_size=20))
    counts = index.counts(symbols)
    assert counts.dtype == np.int64
    assert counts.tolist() == [sum(symbol in item for symbol in symbols) for item in items]
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(symbols), max_size=len(symbols)))
    expected = [sum(w for s, w in zip(symbols, weights, strict=True) if s in item) for item in items]
    np.testing.assert_allclose(index.counts(symbols, weights), np.array(expected, float), atol=1e-12)
    symbol = symbols[0]
    assert index.postings(symbol).tolist() == answering(symbol, items)


@pytest.mark.parametrize("items", BORDERS)
def test_every_symbol_is_found_at_every_border_of_words(items):
    codes = drawn(items, 3, 4)
    index, sets = SymbolIndex(codes, 4), symbol_sets(codes, 4)
    for symbol in range(12):
        assert index.postings(symbol).tolist() == answering(symbol, sets)
    everything = Any(*range(4))  # each item has one slot of the first neuron
    assert index.find(everything).tolist() == list(range(items))
    assert index.find(AtLeast(3, range(12))).tolist() == list(range(items))
    assert index.runs(everything, everything).tolist() == list(range(items - 1))
    assert index.runs(*[everything] * 70).tolist() == list(range(items - 69))
    assert index.counts(range(12)).tolist() == [3] * items


@pytest.mark.parametrize("first", [0, 1, 8, 64, 65, 100])
@pytest.mark.parametrize("chunk", [8, 64])
def test_items_come_in_chunks_or_one_by_one(first, chunk, monkeypatch):
    monkeypatch.setattr(index, "CHUNK", chunk)
    codes = drawn(300, 4, 6)
    whole, grown = SymbolIndex(codes, 6), SymbolIndex(codes[:first], 6)
    assert grown.add(codes[first:202]) is None
    for one in range(202, 300):
        grown.add(codes[one : one + 1])
    weights = np.linspace(-1, 1, 24)
    np.testing.assert_allclose(grown.counts(range(24), weights), whole.counts(range(24), weights), atol=1e-12)
    assert grown.counts(range(24), weights).tolist()[5] == pytest.approx(sum(weights[codes[5] + [0, 6, 12, 18]]))
    for symbol in range(24):
        assert grown.postings(symbol).tolist() == np.flatnonzero(codes[:, symbol // 6] == symbol % 6).tolist()
    assert (grown._used() == whole._used()).all()
    assert len(grown) == 300


def test_it_takes_tensors_and_arrays_of_any_whole_dtype_and_keeps_none():
    codes = drawn(130, 3, 8)
    expected = symbol_sets(codes, 8)
    big = codes.astype(">i4")
    read_only = codes.copy()
    read_only.flags.writeable = False
    forms = [codes, codes.astype(np.uint8), codes.astype(np.uint64), big, read_only, codes.tolist(), codes[::-1][::-1]]
    forms += [torch.from_numpy(codes), torch.from_numpy(codes).to(torch.uint8), np.asfortranarray(codes)]
    for form in forms:
        assert SymbolIndex(form, 8).find(AtLeast(2, [1, 8, 17])).tolist() == answering(AtLeast(2, [1, 8, 17]), expected)
    mine = codes.copy()
    index = SymbolIndex(mine, 8)
    mine[:] = 0
    more = torch.from_numpy(codes.copy())
    index.add(more)
    more.fill_(1)
    assert index.postings(3).tolist() == answering(3, expected * 2)
    index.postings(3)[:] = -1
    assert index.postings(3).tolist() == answering(3, expected * 2)


def test_it_says_how_large_it_is():
    index = SymbolIndex(drawn(1000, 80, 8), 8)
    assert (len(index), index.neurons, index.size, index.vocabulary) == (1000, 80, 8, 640)
    assert index.nbytes == 640 * 8 * 16  # 16 words of 8 bytes for each symbol
    index.add(drawn(24, 80, 8))
    assert index.nbytes == 640 * 8 * 16
    index.add(drawn(1, 80, 8))
    assert index.nbytes == 640 * 8 * 24


def test_many_slots_need_more_than_a_byte():
    codes = drawn(100, 2, 70_000)
    index = SymbolIndex(codes, 70_000)
    assert index.postings(70_000 + int(codes[17, 1])).tolist() == np.flatnonzero(codes[:, 1] == codes[17, 1]).tolist()


def test_counts_of_more_symbols_than_a_byte_counts():
    codes = drawn(70, 3, 4)
    expected = [300 * (1 in item) + 300 * (6 in item) for item in symbol_sets(codes, 4)]
    assert SymbolIndex(codes, 4).counts([1, 6] * 300).tolist() == expected
    assert max(expected) > 255


@pytest.mark.parametrize("rows", range(1, 20))
def test_bit_sliced_sums_are_sums(rows):
    bits = np.random.default_rng(rows).random((rows, 256)) < 0.6
    words = [np.packbits(row, bitorder="little").view(WORD) for row in bits]
    digits = sum_of(list(words))
    assert len(digits) == rows.bit_length()
    unpacked = [
        np.unpackbits(digit.view(np.uint8), bitorder="little").astype(int) << i for i, digit in enumerate(digits)
    ]
    assert (sum(unpacked) == bits.sum(0)).all()
    for k in range(1, rows + 1):
        assert (positions(at_least(k, list(words))) == np.flatnonzero(bits.sum(0) >= k)).all()


@pytest.mark.parametrize("share", [0, 0.0005, 0.02, 0.06, 0.08, 0.1, 0.4, 1])
def test_positions_and_shifts_of_rare_and_frequent_bits(share):
    bits = np.random.default_rng(1).random(64 * 40) < share
    words = np.packbits(bits, bitorder="little").view(WORD)
    assert (positions(words) == np.flatnonzero(bits)).all()
    for by in [0, 1, 63, 64, 65, 128, 64 * 40 - 1, 64 * 40, 64 * 41 + 3]:
        assert (positions(earlier(words, by)) == np.flatnonzero(bits[by:])).all()
    assert (positions(words) == np.flatnonzero(bits)).all()


def test_nothing_is_found_where_nothing_is():
    empty = SymbolIndex(np.empty((0, 3), int), 4)
    answers = [empty.find(All(0, 5)), empty.runs(1, 2), empty.counts([1]), empty.counts([1], [0.5]), empty.postings(11)]
    assert [len(answer) for answer in answers] == [0] * 5
    index = SymbolIndex(np.zeros((5, 3), int), 4)
    assert index.find(All(0, 1)).tolist() == index.find(AtLeast(2, [1, 2, 4])).tolist() == []
    assert index.find(1).dtype == index.find(0).dtype == np.int64
    assert index.runs(*[0] * 6).tolist() == []
    index.add(np.empty((0, 3), int))
    assert len(index) == 5


def test_queries_are_values():
    assert All(1, 2) == AtLeast(2, [1, 2]) == AtLeast(2, torch.tensor([1, 2])) == AtLeast(2, np.array([1, 2]))
    assert Any(1, All(2, 3)) == AtLeast(1, (1, AtLeast(2, (2, 3))))
    assert len({All(1, 2), AtLeast(2, (1, 2)), Any(1, 2)}) == 2
    assert all(type(symbol) is int for symbol in AtLeast(1, np.array([1, 2])).queries)
    index = SymbolIndex(drawn(100, 3, 4), 4)
    assert index.find(AtLeast(2, (5, 5, 2))).tolist() == index.find(5).tolist()
    assert index.find(np.int64(5)).tolist() == index.find(torch.tensor(5)).tolist() == index.postings(5).tolist()


CODES = drawn(70, 3, 4)
BAD = {
    "a symbol above": (lambda i: i.find(12), "a symbol must be from 0 to 11 (got 12)"),
    "a symbol below": (lambda i: i.find(Any(0, All(1, -1))), "a symbol must be from 0 to 11 (got -1)"),
    "in runs": (lambda i: i.runs(0, 12), "a symbol must be from 0 to 11 (got 12)"),
    "in counts": (lambda i: i.counts([0, -12]), "a symbol must be from 0 to 11 (got -12)"),
    "in postings": (lambda i: i.postings(12), "a symbol must be from 0 to 11 (got 12)"),
    "postings of a query": (lambda i: i.postings(All(1)), "a symbol must be from 0 to 11 (got AtLeast"),
    "no symbol in All": (lambda i: i.find(All()), "queries must hold at least one symbol or query (got none)"),
    "no symbol in Any": (lambda i: i.find(Any()), "queries must hold at least one symbol or query (got none)"),
    "a nested empty query": (lambda i: i.find(All(1, Any())), "queries must hold at least one symbol"),
    "AtLeast of nothing": (lambda i: AtLeast(0, ()), "queries must hold at least one symbol"),
    "no run": (lambda i: i.runs(), "queries must hold at least one, for item i (got none)"),
    "no counts": (lambda i: i.counts([]), "symbols must hold at least one (got none)"),
    "k of 0": (lambda i: AtLeast(0, (1, 2)), "k must be a whole number from 1 to the number of queries, 2 (got 0)"),
    "k too large": (lambda i: AtLeast(3, (1, 2)), "from 1 to the number of queries, 2 (got 3)"),
    "k not whole": (lambda i: AtLeast(1.0, (1, 2)), "from 1 to the number of queries, 2 (got 1.0)"),
    "k a truth value": (lambda i: AtLeast(True, (1, 2)), "from 1 to the number of queries, 2 (got True)"),
    "too few weights": (lambda i: i.counts([1, 2], [1.0]), "weights must be one finite number for each of the 2"),
    "weights not finite": (lambda i: i.counts([1], [np.nan]), "weights must be one finite number for each of the 1"),
    "a slot above": (lambda i: i.add(CODES + 1), "codes must be slots from 0 to 3 (got 1 to 4)"),
    "a slot below": (lambda i: i.add(CODES - 1), "codes must be slots from 0 to 3 (got -1 to 2)"),
    "a tensor's slot": (lambda i: i.add(torch.full((2, 3), 4)), "codes must be slots from 0 to 3 (got 4 to 4)"),
    "real codes": (lambda i: i.add(CODES.astype(float)), "codes must be whole numbers (got float64)"),
    "truth values": (lambda i: i.add(CODES > 1), "codes must be whole numbers (got bool)"),
    "fewer neurons": (lambda i: i.add(CODES[:, :2]), "codes must have the shape (items, 3) (got (70, 2))"),
    "one code": (lambda i: i.add(CODES[0]), "codes must have the shape (items, 3) (got (3,))"),
    "a new one of one code": (
        lambda i: SymbolIndex(CODES[0], 4),
        "codes must have the shape (items, neurons) (got (3,))",
    ),
    "no neuron": (lambda i: SymbolIndex(CODES[:, :0], 4), "codes must have the shape (items, neurons) (got (70, 0))"),
    "one slot": (lambda i: SymbolIndex(CODES * 0, 1), "size must be at least 2"),
    "half a slot": (lambda i: SymbolIndex(CODES, 4.5), "size must be a whole number of at least 1 (got 4.5)"),
    "too few slots": (lambda i: SymbolIndex(CODES, 3), "codes must be slots from 0 to 2 (got 0 to 3)"),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_changes_nothing(call, text):
    index = SymbolIndex(CODES, 4)
    before = index._bits.copy()
    with pytest.raises(ValueError, match=re.escape(text)):
        call(index)
    assert len(index) == 70
    assert index._bits.shape == before.shape
    assert (index._bits == before).all()


@pytest.mark.parametrize("value", ["3", 2.0, None, [1, 2], True, torch.tensor([1, 2])])
def test_what_is_no_query_is_named(value):
    index = SymbolIndex(CODES, 4)
    for call in (index.find, index.runs, lambda value: index.find(All(0, value)), lambda value: index.counts([value])):
        with pytest.raises(TypeError, match="a query must be a symbol, which is a whole number, or AtLeast"):
            call(value)


@pytest.mark.parametrize("items", BORDERS)
def test_a_saved_index_is_the_same_and_grows(items, tmp_path):
    codes = drawn(items, 3, 4)
    index = SymbolIndex(codes[: items // 2], 4)
    index.add(codes[items // 2 :])
    index.save(tmp_path / "index")
    loaded = SymbolIndex.load(str(tmp_path / "index"))
    assert (len(loaded), loaded.neurons, loaded.size) == (items, 3, 4)
    for one in (loaded, index):
        one.add(CODES)
    assert [loaded.postings(s).tolist() for s in range(12)] == [index.postings(s).tolist() for s in range(12)]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_equal_indexes_make_equal_files(tmp_path):
    grown = SymbolIndex(CODES[:3], 4)
    grown.add(CODES[3:])
    grown.save(tmp_path / "grown")
    SymbolIndex(CODES, 4).save(tmp_path / "whole")
    assert (tmp_path / "grown").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    SymbolIndex(CODES, 4).save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()

    def interrupted(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SymbolIndex(CODES[:9], 4).save(tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def saved(codes, path) -> bytes:
    SymbolIndex(codes, 4).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("codes", [CODES, CODES[:0]], ids=["of some items", "of none"])
def test_a_damaged_file_is_refused_whichever_byte_it_is(codes, tmp_path):
    path = tmp_path / "index"
    content = saved(codes, path)
    for at in range(len(content)):
        for flip in (0x01, 0x80):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            with pytest.raises(ValueError, match="path must be a"):
                SymbolIndex.load(path)
    for length in {0, 1, 15, 16, 47, 48, 49, 79, 80, len(content) // 2, len(content) - 1} - {len(content)}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="path must be a"):
            SymbolIndex.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"path must be a whole file .*damaged"):
        SymbolIndex.load(path)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, CODES)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, codes=CODES)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content", [b"", npy(), npz(), b"A text of a line or two.\n" * 9], ids=["empty", "npy", "npz", "text"]
)
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"path must be a file that SymbolIndex.save wrote \(got .*other', which is another"
    ):
        SymbolIndex.load(tmp_path / "other")


def test_a_later_version_a_folder_and_no_file_are_named(tmp_path):
    content = saved(CODES, tmp_path / "index")
    (tmp_path / "index").write_bytes(content[:16] + struct.pack("<Q", index.VERSION + 1) + content[24:])
    with pytest.raises(ValueError, match=r"of format 1 \(got .*index', of format 2: a later version"):
        SymbolIndex.load(tmp_path / "index")
    with pytest.raises(ValueError, match="a folder"):
        SymbolIndex.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        SymbolIndex.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        SymbolIndex(CODES, 4).save(tmp_path / "nowhere" / "index")


def test_the_rivals_of_the_benchmark_find_the_same():
    codes = search.drawn(2000)
    names = [name for name in search.METHODS if name != "fts5" or search.has_fts5()]
    structures, _ = search.built(codes, names)
    asked = search.queries(codes)
    search.check_equal(structures, asked)
    for kind, method in search.ASKED.items():
        assert all(len(getattr(structures["index"], method)(*query)) > 0 for query in asked[kind])
