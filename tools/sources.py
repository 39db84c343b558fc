"""Whose claims they are: the free texts in which chapters name a source, gathered into groups that can be counted."""

import re
import unicodedata
from typing import NamedTuple

OWN, COMMON, MEMORY = "This book", "Common belief and practice", "Papers quoted from memory, not checked"

# What tells a source, where it is not its name with its year; the first that fits counts.
TOLD_BY = (
    (r"^this book|^the opposite was", OWN),
    (r"\bcommon\b|customary|promise of conditional computation", COMMON),
    (r"from memory", MEMORY),
    (r"^(equation|section|derived in|follows from|the question of|the order that)", OWN),
    (r"R2RT,? \(?2016\)|^R2RT, as ", "R2RT, Binary stochastic neurons (2016)"),
    (r"re-implement", "A Torch re-implementation of synthetic gradients (kbullaughey), at second hand"),
    (r"^a published reproduction of Ba", "A published reproduction of Ba et al. (2016), at second hand"),
    (r"^a benchmark of 2017", "A benchmark of synthetic gradients (2017), withdrawn, at second hand"),
)
NAME_AND_YEAR = re.compile(r".*?\b(?:18|19|20)\d\d\b\)?")
LAST = (COMMON, MEMORY, OWN)


class Group(NamedTuple):
    name: str

    @property
    def slug(self) -> str:
        """What stands for the group in an address: "r2rt-written-memories-2016"."""
        plain = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        return "-".join(re.findall(r"[a-z0-9]+", plain.lower()))


def group(source: str) -> Group:
    """The group of a claim's source: its name up to the year, unless it is told by other words."""
    for pattern, name in TOLD_BY:
        if re.search(pattern, source, re.I):
            return Group(name)
    dated = NAME_AND_YEAR.match(source)
    return Group(dated[0] if dated else re.split(r" \(|;", source)[0])


def grouped(entries: list[dict]) -> dict[Group, list[dict]]:
    """The claims by group: the most quoted sources first, those without a name to them last."""
    found: dict[Group, list[dict]] = {}
    for entry in entries:
        found.setdefault(group(entry["source"]), []).append(entry)

    def order(one: Group) -> tuple:
        return LAST.index(one.name) if one.name in LAST else -1, -len(found[one]), one.name

    return {one: found[one] for one in sorted(found, key=order)}
