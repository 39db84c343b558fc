"""The errata: mistakes found in the book's sources (`errata.yaml`), and results that did not come out (the ledger)."""

from pathlib import Path

import yaml

from tools.ledger_page import chapter_number, filtered
from tools.places import claim_anchor, headings, link, placed_claims, section_anchor
from tools.sources import OWN, group
from tools.wording import how_many, table

KINDS = {
    "text": "Mistakes in formulas and statements",
    "code": "Mistakes in code",
    "comparison": "Comparisons that cannot tell",
}
DO_NOT_EDIT = "<!-- Written by tools/pages.py from errata.yaml and the chapters; do not edit. -->"


def errata(root: Path) -> list[dict]:
    path = root / "errata.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or [] if path.exists() else []


def sections(chapters: dict) -> dict[str, tuple[Path, str]]:
    """The chapter and the heading of every numbered section: {"3.1": (path, "3.1 A family with two numbers")}."""
    return {
        number: (path, heading)
        for path, notebook in chapters.items()
        for cell in notebook.cells
        for _, heading, number in headings(cell)
        if number
    }


def known_claims(chapters: dict) -> dict[str, tuple]:
    """{id: (claim, path of its chapter)}; the ids of claims are the book's, no two chapters share one."""
    return {claim["id"]: (claim, path) for path, nb in chapters.items() for claim, _ in placed_claims(nb)}


def entry(one: dict, numbered: dict, claims: dict) -> list[str]:
    """One mistake, given the book's sections and claims.

    Raises SystemExit with a sentence if what it names is not there or does not show it.
    """
    path, heading = numbered.get(one["section"], (None, ""))
    if path is None:
        raise SystemExit(f"errata.yaml: the entry {one['id']!r} names section {one['section']}, which no chapter has.")
    shown = []
    for name, verdict in one.get("claims", {}).items():
        if name not in claims:
            raise SystemExit(f"errata.yaml: the entry {one['id']!r} names the claim {name!r}, which no chapter makes.")
        found = claims[name][0]["verdict"]
        if found != verdict:
            needs = f"needs the claim {name!r} to be {verdict}, and it is {found}"
            raise SystemExit(f"errata.yaml: the entry {one['id']!r} {needs}: rewrite the entry, or take it out.")
        shown.append(f"the claim {link(f'`{name}`', claims[name][1], claim_anchor(name))} ({verdict})")
    shown += [f"the test `tests/{test}`" for test in one.get("tests", [])]
    place = link(f"section {heading}", path, section_anchor(heading))
    lines = [
        f"**Source:** {one['source']}.",
        *([f"**How we know it:** {one['known']}"] if "known" in one else []),
        f"**It says:** {one['says']}",
        f"**What is right:** {one['right']}",
        f"**Where:** {place}.",
        f"**Shown by:** {'; '.join(shown)}.",
    ]
    return [f"### {one['title']}", "\n".join(f"- {' '.join(line.split())}" for line in lines)]


def not_here(chapters: dict, own: bool, noted: dict[str, dict]) -> str:
    """The contradicted claims, of the book's own or of all others, as a table."""
    rows = []
    for path, notebook in chapters.items():
        for claim, place in placed_claims(notebook):
            if claim["verdict"] != "contradicted" or (group(claim["source"]).name == OWN) != own:
                continue
            where = link(f"chapter {chapter_number(path)}, {place.words}", path, claim_anchor(claim["id"]))
            if claim["id"] in noted:
                where += f" (a mistake: [{noted[claim['id']]['title']}](errata.md#{slug(noted[claim['id']])}))"
            reported = [] if own else [f"{claim['source']}: {claim['reported']}"]
            rows.append([claim["text"], *reported, claim["measured"]["summary"], where])
    header = ["expected", *([] if own else ["source and what it reports"]), "measured here", "where"]
    return table(header, rows) if rows else "There is none."


def slug(one: dict) -> str:
    return section_anchor(one["title"])


def errata_page(chapters: dict, root: Path) -> str:
    found, numbered, claims = errata(root), sections(chapters), known_claims(chapters)
    noted = {name: one for one in found for name, verdict in one.get("claims", {}).items() if verdict == "contradicted"}
    parts = [
        DO_NOT_EDIT,
        "# Errata of our sources",
        f"This book stands on the work of others, and checked it. It found {how_many(len(found), 'mistake')}, listed "
        "here with the section that deals with each and with what shows it: a claim of the [ledger](ledger.md), a test "
        "of this book that fails if it is not so, or both. Nothing is listed that the book itself does not show. Most "
        "are slips that change little, and who finds slips in others has made them too: reports of "
        "errors in *this* book are welcome in its repository.",
    ]
    for kind, heading in KINDS.items():
        entries = [one for one in found if one["kind"] == kind]
        parts += [f"## {heading}"] if entries else []
        for one in entries:
            parts += entry(one, numbered, claims)
    parts += [
        "## Results that did not come out here",
        "A claim that was contradicted by measurement is not for that a mistake of its source. Data, sizes and time were "
        "others, often far smaller here; some sources are known only at second hand, as the table says; and a run can be "
        f"right on its machine. The list is the ledger's ({filtered('all of them there', verdict='contradicted')}), "
        "without a choice: first what others say, then what this book had expected of itself.",
        "### Of others",
        not_here(chapters, False, noted),
        "### Of this book",
        not_here(chapters, True, noted),
    ]
    return "\n\n".join(parts) + "\n"
