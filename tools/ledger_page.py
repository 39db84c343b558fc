"""The ledger: every claim of every chapter, in tables that read without JavaScript and that `_static/ledger.js` filters.

An address such as `ledger.html#chapter=3&verdict=contradicted` shows only those claims. Where the filter does not run,
the same address leads to the place on the page where they are listed or counted.
"""

import csv
import html
from pathlib import Path

from tools.book import claims, title
from tools.compare import Compared
from tools.places import claim_anchor, link, placed_claims
from tools.sources import group, grouped
from tools.wording import DO_NOT_EDIT, VERDICTS, counted, how_many, table, verdict_counts

HEADER = ["claim", "source", "the source reports", "measured here", "verdict"]


def view(**wanted: str | int) -> str:
    """What stands behind the # in the address of a filtered view: "chapter=3&verdict=contradicted"."""
    return "&".join(f"{name}={value}" for name, value in wanted.items())


def filtered(words: str | int, page: str = "ledger.md", **wanted: str | int) -> str:
    """Markdown that leads to the claims wanted."""
    return f"[{words}]({page}#{view(**wanted)})"


def here(**wanted: str | int) -> str:
    """The place to which the address of a filtered view leads where nothing is filtered."""
    return f'<span id="{html.escape(view(**wanted))}"></span>'


def chapter_number(path: Path) -> int:
    return int(path.name[:2])


def verdict_links(entries: list[dict], page: str = "ledger.md", marked: bool = False, **wanted) -> list[str]:
    """The numbers of claims with each verdict, each leading to these claims; a nought leads nowhere."""
    found = []
    for verdict, number in verdict_counts(entries).items():
        place = here(**wanted, verdict=verdict) if marked else ""
        found.append(place + (filtered(number, page, **wanted, verdict=verdict) if number else "0"))
    return found


def row(claim: dict, place, path: Path) -> list[str]:
    sign = VERDICTS[claim["verdict"]][0]
    mark = f'<span data-verdict="{claim["verdict"]}" data-source="{group(claim["source"]).slug}"></span>'
    return [
        claim["text"],
        claim["source"],
        claim["reported"],
        f"{claim['measured']['summary']}; asked for: {claim['condition']}",
        f"{mark}{sign}&nbsp;{claim['verdict']}, {link(place.words, path, claim_anchor(claim['id']))}",
    ]


def chapter_part(path: Path, notebook) -> list[str]:
    number, made = chapter_number(path), claims(notebook)
    numbers = verdict_links(made, marked=True, chapter=number)
    said = ", ".join(f"{linked} {verdict}" for linked, verdict in zip(numbers, VERDICTS, strict=True))
    words = f"[The chapter](chapters/{path.name}) makes {how_many(len(made), 'claim')}: {said}."
    place = f'<span id="{view(chapter=number)}" data-chapter="{number}"></span>'
    rows = [row(claim, place, path) for claim, place in placed_claims(notebook)]
    return [f"## {title(notebook)}", place + words, *([table(HEADER, rows)] if rows else [])]


def sources_part(entries: list[dict]) -> list[str]:
    rows = [
        [
            here(source=one.slug) + filtered(one.name, source=one.slug),
            str(len(made)),
            *verdict_links(made, marked=True, source=one.slug),
        ]
        for one, made in grouped(entries).items()
    ]
    return [
        "## By source",
        "A claim counts for the source that it is ascribed to. A repetition of a post by one of its readers counts with "
        "the post, and so do the few claims that are *about* a source, such as that it leaves out a part of its data. "
        "What the book derives or asks by itself, often against a source, is its own.",
        table(["source", "claims", *VERDICTS], rows),
    ]


def processors_part(record: Path, root: Path, chapters: dict) -> list[str]:
    """What another processor changes: of the claims that were measured on two, those with two verdicts."""
    where = {
        claim["id"]: (claim["text"], place.words, path)
        for path, notebook in chapters.items()
        for claim, place in placed_claims(notebook)
    }
    with open(record, encoding="utf-8", newline="") as file:
        rows = [row for row in map(Compared._make, list(csv.reader(file))[1:]) if row.claim in where]
    turned = [row for row in rows if row.turned]
    opposite = sum("undecided" not in (row.verdict_then, row.verdict_now) for row in turned)
    shown = []
    for row in turned:
        words, place, path = where[row.claim]
        on_either = [
            f"{VERDICTS[verdict][0]}&nbsp;{verdict}, {measured}"
            for verdict, measured in ((row.verdict_then, row.then), (row.verdict_now, row.now))
        ]
        shown.append([f"{words} ({link(place, path, claim_anchor(row.claim))})", *on_either])
    return [
        "## On another processor",
        "The same code gives other numbers on another processor, even with the same seeds and the same versions of all "
        "libraries: sums are rounded in another order, and training makes much of little. "
        f"{how_many(len({where[row.claim][2] for row in rows}), 'chapter')} ran on two. Of {how_many(len(rows), 'claim')}, "
        f"{sum(row.alike for row in rows)} came out alike to the last digit shown, and {len(turned)} with another "
        f"verdict, {opposite} of these with the opposite one. An interval that ends near the border of its claim can "
        "fall to either side of it, and a time belongs to its machine.",
        table(["claim", "on one processor", "on the other"], shown),
        f"Both runs are kept in `{record.relative_to(root).as_posix()}`. What a chapter shows now may come from more seeds.",
    ]


def ledger_page(chapters: dict, root: Path) -> str:
    entries = [claim for notebook in chapters.values() for claim in claims(notebook)]
    record = root / "benchmarks" / "results" / "two_processors.csv"
    twice = processors_part(record, root, chapters) if record.exists() else []
    also = ", where it also says what [another processor](ledger.md#on-another-processor) made of them" if twice else ""
    meanings = "\n".join(
        f"- {here(verdict=verdict)}{sign} **{verdict}**: {meaning};" for verdict, (sign, meaning) in VERDICTS.items()
    )
    parts = [
        DO_NOT_EDIT,
        "# The ledger",
        "Every chapter tests what its sources say. Each row below is one claim, what the source reports for it, and "
        "what the runs stored in this book measured; the link beside its verdict leads to the measurement. A verdict is "
        "computed from the measurement, never typed in:",
        meanings[:-1] + ".",
        "A worked number, or an agreement between two computations, has no interval: it satisfies its claim or not.",
        f"In all there are **{counted(entries)}**. They are counted [by source](ledger.md#by-source) at the end of the "
        f"page{also}. Mistakes found in a source have [a page of their own](errata.md).",
        '<div id="ledger-filter"></div>',
    ]
    for path, notebook in chapters.items():
        parts += chapter_part(path, notebook)
    parts += sources_part(entries) if entries else []
    parts += twice
    return "\n\n".join(parts) + "\n"
