"""An index of codes by the symbols in them: a bitmap for each symbol, in which queries are arithmetic on words of 64 items."""

import functools
import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from shared.discrete.bitmaps import WORD, Words, at_least, earlier, positions, sum_of
from shared.discrete.codes import check_slots
from shared.discrete.queries import AtLeast, Query, to_query

CHUNK = 8192  # items that are taken at once, so that what is computed for them stays in the cache
MAGIC, VERSION = b"SymbolIndex\r\n\x1a\n\0", 1
HEADER = struct.Struct("<16sQQQQ")  # magic, version, size, neurons, items
DIGEST = hashlib.sha256().digest_size


class SymbolIndex:
    """Finds the items of a collection of codes by their symbols, in `vocabulary` / 8 bytes an item.

    Positions count the items from 0 in the order in which they came. An answer is a sorted array of positions (int64),
    empty if nothing matches. A query passes over n/64 words for each of its symbols, with n items: in a million, for a
    dozen symbols, in less than a millisecond (`benchmarks/search.py`).

    codes: (items, neurons) whole numbers from 0 to size − 1, a tensor or numpy array, of which nothing is kept.

    Raises ValueError for other codes and a size below 2; queries raise ValueError for a symbol outside the vocabulary and
    TypeError for what is no query.
    """

    def __init__(self, codes: Int[Tensor, "items neurons"] | Int[np.ndarray, "items neurons"], size: int):
        check_slots(size)
        codes = _checked(codes, size)
        self.size = size
        self.neurons = codes.shape[1]
        self._items = 0
        self._bits = np.zeros((self.vocabulary, -(-len(codes) // 64)), WORD)  # bits of items not there are 0
        self._append(codes)

    def __len__(self) -> int:
        return self._items

    @property
    def vocabulary(self) -> int:
        """The number of symbols, neurons · size."""
        return self.neurons * self.size

    @property
    def nbytes(self) -> int:
        """Memory of the bitmaps, with the room that `add` keeps for more items."""
        return self._bits.nbytes

    def add(self, codes: Int[Tensor, "items neurons"] | Int[np.ndarray, "items neurons"]) -> None:
        """Append items, whose positions go on from the last. Raises ValueError as the class does, and changes nothing then.

        Memory grows by half where it must, so that items may come one by one.
        """
        codes = _checked(codes, self.size, self.neurons)
        words, room = -(-(len(self) + len(codes)) // 64), self._bits.shape[1]
        if words > room:
            bits = np.zeros((self.vocabulary, max(words, room + room // 2)), WORD)
            bits[:, :room] = self._bits
            self._bits = bits
        self._append(codes)

    def postings(self, symbol: int) -> Int[np.ndarray, " found"]:
        """The positions of the items that have this symbol."""
        return positions(self._row(symbol))

    def find(self, query: Query) -> Int[np.ndarray, " found"]:
        """The positions of the items that answer the query, a symbol or `AtLeast`, `All` or `Any` of queries."""
        return positions(self._answer(to_query(query)))

    def runs(self, *queries: Query) -> Int[np.ndarray, " found"]:
        """The positions i such that item i answers the first query, item i + 1 the second, and so on.

        Raises ValueError if there is no query.
        """
        if not queries:
            raise ValueError("queries must hold at least one, for item i (got none)")
        answers = [self._answer(to_query(query)) for query in queries]
        return positions(functools.reduce(np.bitwise_and, (earlier(a, by) for by, a in enumerate(answers))))

    def counts(
        self, symbols: Sequence[int] | Int[Tensor, " symbols"], weights: Sequence[float] | None = None
    ) -> Int[np.ndarray, " items"] | Float[np.ndarray, " items"]:
        """For each item, how many of these symbols it has (int64), or the sum of the weights of those it has (float64).

        A symbol given twice counts twice. Raises ValueError if there is no symbol, or not one weight for each.
        """
        rows = [self._row(symbol) for symbol in symbols]
        if not rows:
            raise ValueError("symbols must hold at least one (got none)")
        if weights is None:
            total = np.zeros(len(self), np.min_scalar_type(len(rows)))
            for digit in reversed(sum_of(rows)):
                total += total
                total += np.unpackbits(digit.view(np.uint8), count=len(self), bitorder="little")
            return total.astype(np.int64)
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(rows),) or not np.isfinite(weights).all():
            raise ValueError(
                f"weights must be one finite number for each of the {len(rows)} symbols (got {weights.tolist()})"
            )
        octets, total = np.stack(rows).view(np.uint8), np.empty(len(self))
        for at in range(0, len(self), CHUNK):
            bits = np.unpackbits(octets[:, at // 8 : (at + CHUNK) // 8], axis=1, bitorder="little")
            total[at : at + CHUNK] = weights @ bits[:, : len(self) - at]
        return total

    def save(self, path: str | os.PathLike) -> None:
        """Write the index to a file, which is replaced in one step: an interruption leaves what was there."""
        path, digest = Path(path), hashlib.sha256()
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                header = HEADER.pack(MAGIC, VERSION, self.size, self.neurons, len(self))
                for part in (header, *(np.ascontiguousarray(row) for row in self._used())):
                    digest.update(part)
                    stream.write(part)
                stream.write(digest.digest())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SymbolIndex":
        """The index in a file that `save` wrote.

        Raises ValueError for any other or damaged file, and OSError (FileNotFoundError) if it cannot be read.
        """
        if Path(path).is_dir():
            raise ValueError(f"path must be a file that SymbolIndex.save wrote (got {str(path)!r}, a folder)")
        with open(path, "rb") as stream:
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size or not header.startswith(MAGIC):
                raise ValueError(
                    f"path must be a file that SymbolIndex.save wrote (got {str(path)!r}, which is another)"
                )
            _, version, size, neurons, items = HEADER.unpack(header)
            if version > VERSION:
                raise ValueError(
                    f"path must be a file of format {VERSION} (got {str(path)!r}, of format {version}: a later version of "
                    "SymbolIndex wrote it)"
                )
            words, there = -(-items // 64), os.fstat(stream.fileno()).st_size
            wanted = HEADER.size + size * neurons * words * WORD.itemsize + DIGEST
            if version < 1 or size < 2 or neurons < 1 or there != wanted:
                raise ValueError(f"path must be a whole file (got {str(path)!r}, which is damaged: {there} bytes)")
            content, digest = np.empty(there - HEADER.size - DIGEST, np.uint8), hashlib.sha256(header)
            stream.readinto(content)
            digest.update(content)
            if stream.read() != digest.digest():
                raise ValueError(f"path must be a whole file (got {str(path)!r}, which is damaged: wrong checksum)")
        index = cls(np.empty((0, neurons), np.uint8), size)
        index._bits, index._items = content.view(WORD).reshape(size * neurons, words), items
        return index

    def _used(self) -> np.ndarray:
        return self._bits[:, : -(-len(self) // 64)]

    def _row(self, symbol: int) -> Words:
        symbol = to_query(symbol)
        if isinstance(symbol, AtLeast) or not 0 <= symbol < self.vocabulary:
            raise ValueError(f"a symbol must be from 0 to {self.vocabulary - 1} (got {symbol})")
        return self._used()[symbol]

    def _answer(self, query: Query) -> Words:
        """The bitmap of the items that answer; it may be the index's own."""
        if not isinstance(query, AtLeast):
            return self._row(query)
        answers = [self._answer(one) for one in query.queries]
        if query.k == len(answers):
            return functools.reduce(np.bitwise_and, answers)
        return functools.reduce(np.bitwise_or, answers) if query.k == 1 else at_least(query.k, answers)

    def _append(self, codes: np.ndarray) -> None:
        octets, start, done = self._bits.view(np.uint8), self._items, 0
        while done < len(codes):
            # Each chunk but the first begins at a byte of its own.
            lead = (start + done) % 8
            chunk = codes[done : done + CHUNK - lead]
            slots = np.zeros((self.neurons, lead + len(chunk)), np.min_scalar_type(self.size - 1))
            slots[:, lead:] = chunk.T
            first = (start + done) // 8
            for slot in range(self.size):
                taken = slots == slot
                taken[:, :lead] = False
                packed = np.packbits(taken, axis=1, bitorder="little")
                octets[slot :: self.size, first : first + packed.shape[1]] |= packed
            done += len(chunk)
        self._items = start + len(codes)


def _checked(codes, size: int, neurons: int | None = None) -> np.ndarray:
    codes = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes must be whole numbers (got {codes.dtype})")
    if codes.ndim != 2 or codes.shape[1] != (neurons or codes.shape[1] or 1):
        raise ValueError(f"codes must have the shape (items, {neurons or 'neurons'}) (got {codes.shape})")
    if codes.size and (codes.min() < 0 or codes.max() >= size):
        raise ValueError(f"codes must be slots from 0 to {size - 1} (got {codes.min()} to {codes.max()})")
    return codes
