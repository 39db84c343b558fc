"""Search by symbols: `SymbolIndex`, which keeps bitmaps, against other ways to store codes of 80 neurons with 8 slots.

`python benchmarks/search.py` prints a table and stores it in `benchmarks/results/search.json`. Milliseconds are processor
time of one query on one thread: the mean over eight queries of the median of five runs, in which all methods take turns.
The symbols asked for are those of an item drawn at random, so that each query has an answer. Before anything is timed, all
methods must have given equal answers. Columns:

- "all": the items that have all of 3 symbols.
- "8 of 12": the items that have at least 8 of 12 symbols.
- "run": the items that have all of 3 symbols and are followed by one that has 3 others, and this one again.
- "scores": for every item, how many of 12 symbols it has. For "cosine" the scalar product with a real embedding instead.
- "bytes": memory for each item. "build": seconds of processor time from the codes, one byte a slot, to the structure.

Methods: "index"; "postings", sorted int32 positions for each symbol; "columns", one byte for each slot, scanned; "csc", a
sparse matrix of scipy; "sets", Python's; "fts5", the full-text index of SQLite in memory, which keeps neither the text nor
the places in it; "cosine", a float32 matrix of 80 columns.
"""

import functools
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
from scipy import sparse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._measure import milliseconds, report
from shared.discrete import All, AtLeast, SymbolIndex

NEURONS, SIZE, KINDS = 80, 8, 50
QUERIES = 8
LARGEST = {"sets": 10**5}  # beyond which they would take gigabytes
CHUNK = 10**4


def drawn(items: int, seed: int = 0) -> np.ndarray:
    """Codes (items, neurons) of a mixture of products of skewed distributions, one byte a slot."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(NEURONS, SIZE)) + rng.normal(size=(KINDS, NEURONS, SIZE))
    below = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).cumsum(-1)[..., :-1].astype(np.float32)
    codes = np.empty((items, NEURONS), np.uint8)
    for at in range(0, items, CHUNK):
        chunk = codes[at : at + CHUNK]
        u = rng.random((*chunk.shape, 1), dtype=np.float32)
        np.sum(below[rng.integers(KINDS, size=len(chunk))] <= u, -1, out=chunk)
    return codes


class Index:
    def __init__(self, codes):
        self.index = SymbolIndex(codes, SIZE)
        self.nbytes = self.index.nbytes

    def all(self, symbols):
        return self.index.find(All(*symbols))

    def at_least(self, k, symbols):
        return self.index.find(AtLeast(k, symbols))

    def run(self, *parts):
        return self.index.runs(*(All(*symbols) for symbols in parts))

    def scores(self, symbols):
        return self.index.counts(symbols)


class Postings:
    def __init__(self, codes):
        self.items, self.lists = len(codes), []
        for column in np.ascontiguousarray(codes.T):
            order = column.argsort(kind="stable").astype(np.int32)
            self.lists += np.split(order, np.bincount(column, minlength=SIZE).cumsum()[:-1])
        self.nbytes = sum(one.nbytes for one in self.lists)

    @staticmethod
    def _common(lists):
        shortest, *rest = sorted(lists, key=len)
        for other in rest:
            at = np.searchsorted(other, shortest)
            there = at < len(other)
            there[there] = other[at[there]] == shortest[there]
            shortest = shortest[there]
        return shortest

    def all(self, symbols):
        return self._common([self.lists[symbol] for symbol in symbols])

    def at_least(self, k, symbols):
        return np.flatnonzero(self.scores(symbols) >= k)

    def run(self, *parts):
        return self._common([found[found >= by] - by for by, found in enumerate(map(self.all, parts))])

    def scores(self, symbols):
        return np.bincount(np.concatenate([self.lists[symbol] for symbol in symbols]), minlength=self.items)


class Columns:
    def __init__(self, codes):
        self.columns = np.ascontiguousarray(codes.T)
        self.nbytes = self.columns.nbytes

    def _have(self, symbol):
        return self.columns[symbol // SIZE] == symbol % SIZE

    def _all(self, symbols):
        return functools.reduce(np.logical_and, map(self._have, symbols))

    def all(self, symbols):
        return np.flatnonzero(self._all(symbols))

    def at_least(self, k, symbols):
        return np.flatnonzero(self.scores(symbols) >= k)

    def run(self, *parts):
        last = self.columns.shape[1] - len(parts) + 1
        return np.flatnonzero(
            functools.reduce(np.logical_and, (self._all(part)[by : by + last] for by, part in enumerate(parts)))
        )

    def scores(self, symbols):
        total = np.zeros(self.columns.shape[1], np.uint8)
        for symbol in symbols:
            total += self._have(symbol)
        return total


class Csc:
    def __init__(self, codes):
        symbols = codes + SIZE * np.arange(NEURONS, dtype=np.int32)
        ends = NEURONS * np.arange(len(codes) + 1, dtype=np.int32)
        rows = sparse.csr_array((np.ones(symbols.size, np.int8), symbols.ravel(), ends), (len(codes), NEURONS * SIZE))
        self.matrix = rows.tocsc()
        self.nbytes = sum(part.nbytes for part in (self.matrix.data, self.matrix.indices, self.matrix.indptr))

    def all(self, symbols):
        return self.at_least(len(symbols), symbols)

    def at_least(self, k, symbols):
        return np.flatnonzero(self.scores(symbols) >= k)

    def run(self, *parts):
        last = self.matrix.shape[0] - len(parts) + 1
        have = [(self.scores(part) == len(part))[by : by + last] for by, part in enumerate(parts)]
        return np.flatnonzero(functools.reduce(np.logical_and, have))

    def scores(self, symbols):
        return self.matrix[:, symbols].sum(1)


class Sets:
    def __init__(self, codes):
        self.sets = [set() for _ in range(NEURONS * SIZE)]
        for i, code in enumerate(codes.tolist()):
            for neuron, slot in enumerate(code):
                self.sets[SIZE * neuron + slot].add(i)
        self.nbytes = sum(map(sys.getsizeof, self.sets)) + len(codes) * sys.getsizeof(2**20)

    def _all(self, symbols):
        return set.intersection(*sorted((self.sets[symbol] for symbol in symbols), key=len))

    def all(self, symbols):
        return sorted(self._all(symbols))

    def at_least(self, k, symbols):
        # Whoever has k of n has one of any n − k + 1, so the rarest will do as candidates.
        rarest = sorted((self.sets[symbol] for symbol in symbols), key=len)
        candidates = set.union(*rarest[: len(symbols) - k + 1])
        return sorted(i for i in candidates if sum(i in one for one in rarest) >= k)

    def run(self, *parts):
        first, *rest = map(self._all, parts)
        return sorted(i for i in first if all(i + by in found for by, found in enumerate(rest, 1)))


class Fts5:
    def __init__(self, codes):
        self.base = sqlite3.connect(":memory:")
        self.base.execute("CREATE VIRTUAL TABLE items USING fts5(code, content='', detail=none)")
        symbols = codes + SIZE * np.arange(NEURONS)
        rows = ((i, " ".join(map(str, one.tolist()))) for i, one in enumerate(symbols))
        with self.base:
            self.base.executemany("INSERT INTO items (rowid, code) VALUES (?, ?)", rows)
            self.base.execute("INSERT INTO items (items) VALUES ('optimize')")
        pages, page = (self.base.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
        self.nbytes = pages * page

    def _rows(self, sql, texts):
        return [i for (i,) in self.base.execute(sql + " ORDER BY 1", texts)]

    def all(self, symbols):
        return self._rows("SELECT rowid FROM items WHERE items MATCH ?", [" AND ".join(map(str, symbols))])

    def at_least(self, k, symbols):
        each = " UNION ALL ".join(["SELECT rowid AS i FROM items WHERE items MATCH ?"] * len(symbols))
        return self._rows(f"SELECT i FROM ({each}) GROUP BY i HAVING COUNT(*) >= {k}", list(map(str, symbols)))

    def run(self, *parts):
        each = [f"SELECT rowid - {by} AS i FROM items WHERE items MATCH ?" for by in range(len(parts))]
        sql = f"SELECT i FROM ({' INTERSECT '.join(each)})"
        return self._rows(sql, [" AND ".join(map(str, symbols)) for symbols in parts])


class Cosine:
    def __init__(self, codes):
        rng = np.random.default_rng(1)
        embeddings = rng.normal(size=(len(codes), NEURONS)).astype(np.float32)
        self.embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.nbytes = self.embeddings.nbytes

    def scores(self, symbols):
        return self.embeddings @ self.embeddings[symbols[0]]


METHODS = {
    "index": Index,
    "postings": Postings,
    "columns": Columns,
    "csc": Csc,
    "sets": Sets,
    "fts5": Fts5,
    "cosine": Cosine,
}
ASKED = {"all": "all", "8 of 12": "at_least", "run": "run", "scores": "scores"}


def queries(codes: np.ndarray, seed: int = 2) -> dict[str, list[tuple]]:
    """The arguments of some queries of each kind."""
    rng, asked = np.random.default_rng(seed), {kind: [] for kind in ASKED}
    symbols = codes + SIZE * np.arange(NEURONS)
    for item in rng.integers(len(codes) - 2, size=QUERIES):
        twelve = rng.choice(symbols[item], 12, replace=False).tolist()
        asked["all"].append((twelve[:3],))
        asked["8 of 12"].append((8, twelve))
        asked["run"].append(tuple(rng.choice(symbols[item + by], 3, replace=False).tolist() for by in range(3)))
        asked["scores"].append((twelve,))
    return asked


def built(codes: np.ndarray, names: list[str]) -> tuple[dict, dict[str, float]]:
    """The structures, and the seconds that it took to build each."""
    structures, seconds = {}, {}
    for name in names:
        start = time.process_time()
        structures[name] = METHODS[name](codes)
        seconds[name] = time.process_time() - start
    return structures, seconds


def check_equal(structures: dict, asked: dict[str, list[tuple]]) -> None:
    """Raise AssertionError if one method answers one of the queries differently from the index."""
    for kind, method in ASKED.items():
        for name, one in structures.items():
            if name != "cosine" and hasattr(one, method):
                for query in asked[kind]:
                    expected, found = (getattr(which, method)(*query) for which in (structures["index"], one))
                    assert np.array_equal(expected, found), (kind, name, query)


def repeated(method, asked: list[tuple], times: int):
    def repeat():
        for _ in range(times):
            for query in asked:
                method(*query)

    return repeat


@functools.cache
def compared(items: int) -> dict[str, dict]:
    """All that is measured of the methods at one size of the collection."""
    codes = drawn(items)
    asked = queries(codes)
    names = [name for name in METHODS if items <= LARGEST.get(name, items) and (name != "fts5" or has_fts5())]
    structures, seconds = built(codes, names)
    check_equal(structures, asked)
    found = {name: {"bytes": one.nbytes / items, "build": seconds[name]} for name, one in structures.items()}
    times = max(1, 10**5 // items)
    for kind, method in ASKED.items():
        able = {name: getattr(one, method) for name, one in structures.items() if hasattr(one, method)}
        took = milliseconds({name: repeated(call, asked[kind], times) for name, call in able.items()})
        for name, ms in took.items():
            found[name][kind] = ms / (times * QUERIES)
    return found


@functools.cache
def has_fts5() -> bool:
    try:
        sqlite3.connect(":memory:").execute("CREATE VIRTUAL TABLE t USING fts5(x)")
    except sqlite3.OperationalError:
        print("SQLite was compiled without its full-text index here, so there are no rows for fts5.")
        return False
    return True


def measure(items: int, name: str) -> dict:
    found = compared(items)[name]
    return {"items": items, "method": name} | {key: found[key] for key in (*ASKED, "bytes", "build") if key in found}


if __name__ == "__main__":
    rows = [(items, name) for items in (10**4, 10**5, 10**6) for name in METHODS if items <= LARGEST.get(name, items)]
    report("search", measure, [row for row in rows if row[1] != "fts5" or has_fts5()], decimals=3)
