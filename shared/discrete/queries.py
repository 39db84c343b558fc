"""What can be asked of a `SymbolIndex`: symbols, and how many of them at least."""

import dataclasses
import numbers
import operator
from typing import Union

Query = Union[int, "AtLeast"]


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The items that answer at least k of some queries, each a symbol or again `AtLeast`; one given twice counts twice.

    Raises ValueError if there is no query or k is not a whole number from 1 to their number, and TypeError for what is no
    query.
    """

    k: int
    queries: tuple[Query, ...]

    def __post_init__(self):
        queries = tuple(map(to_query, self.queries))
        if not queries:
            raise ValueError("queries must hold at least one symbol or query (got none)")
        if not isinstance(self.k, numbers.Integral) or isinstance(self.k, bool) or not 1 <= self.k <= len(queries):
            raise ValueError(
                f"k must be a whole number from 1 to the number of queries, {len(queries)} (got {self.k!r})"
            )
        object.__setattr__(self, "queries", queries)


def All(*queries: Query) -> AtLeast:
    """The items that answer every one of the queries."""
    return AtLeast(max(len(queries), 1), queries)


def Any(*queries: Query) -> AtLeast:
    """The items that answer one of the queries or more."""
    return AtLeast(1, queries)


def to_query(value) -> Query:
    """`value` if it is `AtLeast`, or the symbol as an int; TypeError otherwise."""
    if isinstance(value, AtLeast):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"a query must be a symbol, which is a whole number, or AtLeast, All or Any of queries (got {value!r})"
        ) from None
