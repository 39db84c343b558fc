"""Where things are: the code cells and claims of a chapter, the heading they stand under, their addresses on the site.

The addresses are given to the pages by `tools/anchors.py`; whatever links to a cell or a claim takes them from here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.book import CLAIM_MIME

HEADING = re.compile(r"(#+) +((\d+\.\d+)?.*)")


class Place(NamedTuple):
    """A code cell: its number among the code cells of its chapter, from 1, the heading that it stands under, and the
    number of the section that holds it ("3.4"), if that has one."""

    number: int
    heading: str
    section: str | None

    @property
    def words(self) -> str:
        """ "section 3.4", or the heading of a section without a number."""
        return f"section {self.section}" if self.section else f"“{self.heading}”"


def cell_anchor(number: int) -> str:
    return f"cell-{number}"


def claim_anchor(claim: str) -> str:
    return f"claim-{claim}"


def section_anchor(heading: str) -> str:
    """The name by which MyST and GitHub know a heading: "33-a-recipe-that-is-wrong"."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link(words: str, path: Path, anchor: str) -> str:
    """Markdown that leads from a page of the book to a place in the chapter at `path`."""
    return f"[{words}](chapters/{path.name}#{anchor})"


def headings(cell) -> list[tuple[int, str, str | None]]:
    """The level, text and number of each heading in a cell of prose."""
    found = [HEADING.match(line) for line in cell.source.splitlines() if cell.cell_type == "markdown"]
    return [(len(one[1]), one[2].strip(), one[3]) for one in found if one]


def places(notebook) -> Iterator[tuple[Place, dict]]:
    """Every code cell, with its place."""
    place = Place(0, "the top", None)
    for cell in notebook.cells:
        for level, heading, number in headings(cell):
            place = place._replace(heading=heading, section=number or (place.section if level > 2 else None))
        if cell.cell_type == "code":
            place = place._replace(number=place.number + 1)
            yield place, cell


def placed_claims(notebook) -> list[tuple[dict, Place]]:
    """The chapter's claims in order, each with the place of the cell that measured it."""
    return [
        (output.data[CLAIM_MIME], place)
        for place, cell in places(notebook)
        for output in cell.outputs
        if CLAIM_MIME in output.get("data", {})
    ]
