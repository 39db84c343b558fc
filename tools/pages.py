"""Write the pages and pictures that follow from the chapters: `python -m tools.pages [--check]`.

The ledger, the errata, the status page, the hero pictures, the picture of the ledger, the cards of the front page and
the table of the README are derived from the stored notebooks (the errata from `errata.yaml` as well), so that they
cannot disagree with them. With `--check`, nothing is written, and a file that is out of date is named.
"""

import base64
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import yaml

from tools import api
from tools.book import ROOT, claims, figures, finish, only_one, read, tags, title, write_atomically
from tools.check import colab
from tools.errata_page import errata_page
from tools.ledger_page import chapter_number, filtered, ledger_page, verdict_links
from tools.picture import described, svg
from tools.status_page import status_page
from tools.wording import VERDICTS, counted, how_many, in_words, table

BEGIN, END = "<!-- begin: written by tools/pages.py from the chapters -->", "<!-- end -->"


def question(notebook) -> str:
    """The first paragraph after the title, on one line: the question that the chapter answers."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    start = next(number for number, paragraph in enumerate(paragraphs) if paragraph.startswith("# "))
    wanted = (one for one in paragraphs[start + 1 :] if one and not one.startswith(("[![", "![", "<", "#", "|")))
    return next(wanted, "").strip("*")


def hero(notebook) -> tuple[bytes, str] | None:
    """The PNG of the chapter's hero figure and its alternative text, if it has been drawn."""
    for cell, output in figures(notebook):
        if "hero" in tags(cell) and "image/png" in output.data:
            return base64.b64decode(output.data["image/png"]), output.metadata.get("image/png", {}).get("alt", "")
    return None


def cards(chapters: dict, root: Path) -> str:
    """The front page's cards, one grid for each part of the table of contents that has chapters."""
    blocks = []
    by_name = {path.stem: (path, notebook) for path, notebook in chapters.items()}
    for part in yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"]:
        names = [Path(entry["file"]).stem for entry in part["chapters"] if entry["file"].startswith("chapters/")]
        inner = [card(*by_name[name]) for name in names if name in by_name]
        if inner:
            blocks.append("\n".join([f"## {part['caption']}\n", "::::{grid} 1 1 2 2", ":gutter: 3\n", *inner, "::::"]))
    blocks.append(ledger_state(chapters))
    return "\n\n".join(blocks)


def card(path: Path, notebook) -> str:
    picture = hero(notebook)
    lines = [f":::{{grid-item-card}} {title(notebook)}", f":link: chapters/{path.stem}", ":link-type: doc"]
    if picture:
        lines += [f":img-top: images/{path.stem}.png", f":img-alt: {' '.join(picture[1].split())}"]
    return "\n".join([*lines, "", question(notebook), ":::", ""])


def all_claims(chapters: dict) -> list[dict]:
    return [claim for notebook in chapters.values() for claim in claims(notebook)]


def ledger_state(chapters: dict) -> str:
    """The front page's picture of the ledger, and the same numbers as text, each of which leads to its claims."""
    entries = all_claims(chapters)
    if not entries:
        return "No chapter has been run yet."
    pictures = [
        f":::{{image}} {picture_name(theme)}\n:class: only-{theme} ledger-picture\n:alt: {described(chapters)}\n:::"
        for theme in ("light", "dark")
    ]
    rows = []
    for path, notebook in chapters.items():
        number, made = chapter_number(path), claims(notebook)
        rows.append([filtered(title(notebook), chapter=number), str(len(made)), *verdict_links(made, chapter=number)])
    parts = [
        "## The state of the ledger",
        f"[The ledger](ledger.md) holds {counted(entries)}. A click on a number below shows those claims. Mistakes that "
        "were found in a source stand among the [errata](errata.md).",
        *pictures,
        table(["chapter", "claims", *VERDICTS], rows),
    ]
    return "\n\n".join(parts)


def picture_name(theme: str) -> str:
    return f"images/ledger-{theme}.svg"


def readme_ledger(chapters: dict) -> str:
    """The picture of the ledger as GitHub shows it, for its light and its dark pages."""
    words = escape(described(chapters))
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{picture_name("dark")}">\n'
        f'  <img alt="{words}" src="{picture_name("light")}" width="440">\n</picture>\n\n'
        f"[The ledger](ledger.md) holds {how_many(len(all_claims(chapters)), 'claim')}."
    )


def readme_table(chapters: dict, root: Path) -> str:
    rows = []
    for path, notebook in chapters.items():
        stamp = notebook.metadata.get("unrolled")
        badge = f"[![Open in Colab](images/colab.svg)]({colab(path.name, root)})"
        took = f"{in_words(stamp['seconds'])} ({stamp['device']})" if stamp else "not yet run"
        rows.append([f"[{title(notebook)}](chapters/{path.name})", badge, took])
    if not rows:
        return "The first chapter is being written."
    parts = [table(["chapter", "run it", "takes"], rows), *([readme_ledger(chapters)] if all_claims(chapters) else [])]
    return "\n\n".join(parts)


def between_markers(path: Path, block: str) -> str:
    """The text of the file with what stands between the markers replaced. Raises SystemExit if they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path.name} has lost its markers: put {BEGIN} and {END} around the place of its chapters.")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def generated(root: Path = ROOT) -> Iterator[tuple[Path, str | bytes | None]]:
    """Each generated file with what it must hold; None if it must not be there."""
    chapters = {path: read(path) for path in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb"))}
    yield root / "ledger.md", ledger_page(chapters, root)
    yield root / "errata.md", errata_page(chapters, root)
    yield root / "status.md", status_page(chapters)
    yield root / "intro.md", between_markers(root / "intro.md", cards(chapters, root))
    yield root / "README.md", between_markers(root / "README.md", readme_table(chapters, root))
    for theme in ("light", "dark"):
        yield root / picture_name(theme), svg(chapters, theme) if all_claims(chapters) else None
    pictures = {root / "images" / f"{path.stem}.png": hero(notebook) for path, notebook in chapters.items()}
    for path in sorted({*pictures, *(root / "images").glob("[0-9][0-9]-*.png")}):
        picture = pictures.get(path)
        yield path, picture[0] if picture else None
    yield from api.pages(chapters, root)


@only_one(ROOT / "_build" / "running" / "pages", "writing of the pages", wait=True)
def main(arguments: list[str], root: Path = ROOT) -> int:
    wrong = []
    for path, content in list(generated(root)):  # all or nothing: an error shows before anything is written
        wanted = content.encode() if isinstance(content, str) else content
        if (path.read_bytes() if path.exists() else None) == wanted:
            continue
        wrong.append(path.relative_to(root).as_posix())
        if "--check" in arguments:
            print(f"{wrong[-1]} is out of date. Run `python -m tools.pages`.")
        elif wanted is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, wanted)
    if "--check" in arguments:
        return 1 if wrong else 0
    print(f"Written anew: {', '.join(wrong)}." if wrong else "The generated pages are up to date.")
    return 0


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
