"""Write the pages and pictures that follow from the chapters: `python -m tools.pages [--check]`.

The ledger, the status page, the hero pictures, the cards of the front page and the table of the README are derived
from the stored notebooks alone, so that they cannot disagree with them. With `--check`, nothing is written, and a file
that is out of date is named.
"""

import base64
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from tools.book import ROOT, claims, figures, read, tags, title, write_atomically
from tools.check import colab

# The verdicts with the signs that a chapter's own ledger uses, and what they mean.
VERDICTS = {
    "reproduced": ("✓", "the whole 95 % interval satisfies the claim"),
    "contradicted": ("✗", "the whole 95 % interval violates it"),
    "undecided": ("?", "the interval contains both, so these runs cannot tell"),
}
BEGIN, END = "<!-- begin: written by tools/pages.py from the chapters -->", "<!-- end -->"
DO_NOT_EDIT = "<!-- Written by tools/pages.py from the chapters; do not edit. -->"


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


def in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def counted(entries: list[dict]) -> str:
    """ "12 claims: 9 reproduced, 1 contradicted, 2 undecided"."""
    numbers = Counter(entry["verdict"] for entry in entries)
    parts = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{len(entries)} claim{'s' * (len(entries) != 1)}: {parts}"


def ledger_page(chapters: dict) -> str:
    entries = [claim for notebook in chapters.values() for claim in claims(notebook)]
    meanings = "\n".join(f"- {sign} **{verdict}**: {meaning};" for verdict, (sign, meaning) in VERDICTS.items())
    parts = [
        DO_NOT_EDIT,
        "# The ledger",
        "Every chapter tests what its sources say. Each row below is one claim, what the source reports for it, and "
        "what the runs stored in this book measured. A verdict is computed from the measurement, never typed in:",
        meanings[:-1] + ".",
        "A worked number, or an agreement between two computations, has no interval: it satisfies its claim or not.",
        f"In all there are **{counted(entries)}**.",
    ]
    for path, notebook in chapters.items():
        rows = [
            [
                claim["text"],
                claim["source"],
                claim["reported"],
                f"{claim['measured']['summary']}; asked for: {claim['condition']}",
                f"{VERDICTS[claim['verdict']][0]}&nbsp;{claim['verdict']}",
            ]
            for claim in claims(notebook)
        ]
        header = ["claim", "source", "the source reports", "measured here", "verdict"]
        parts += [f"## {title(notebook)}", f"[The chapter](chapters/{path.name}) makes {counted(claims(notebook))}."]
        parts += [table(header, rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def status_page(chapters: dict) -> str:
    rows = []
    for path, notebook in chapters.items():
        stamp = notebook.metadata.get("unrolled", {})
        versions = ", ".join(f"{name} {version}" for name, version in stamp.get("versions", {}).items())
        rows.append(
            [
                f"[{title(notebook)}](chapters/{path.name})",
                in_words(stamp["seconds"]) if stamp else "not yet run",
                stamp.get("device", ""),
                versions,
                ", ".join(stamp.get("data", [])),
                stamp.get("date", ""),
            ]
        )
    parts = [
        DO_NOT_EDIT,
        "# The runs",
        "The outputs in this book come from the runs below, at the settings shown in each chapter's parameters cell. "
        "A chapter is refused by the tests when its code, or the code of `shared` that it uses, is no longer the code "
        "that ran.",
        table(["chapter", "took", "on", "with", "data", "date"], rows) if rows else "No chapter has run yet.",
    ]
    return "\n\n".join(parts) + "\n"


def cards(chapters: dict, root: Path) -> str:
    """The front page's cards, one grid for each part of the table of contents that has chapters."""
    blocks = []
    by_name = {path.stem: (path, notebook) for path, notebook in chapters.items()}
    for part in yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"]:
        names = [Path(entry["file"]).stem for entry in part["chapters"] if entry["file"].startswith("chapters/")]
        inner = [card(*by_name[name]) for name in names if name in by_name]
        if inner:
            blocks.append("\n".join([f"## {part['caption']}\n", "::::{grid} 1 1 2 2", ":gutter: 3\n", *inner, "::::"]))
    entries = [claim for notebook in chapters.values() for claim in claims(notebook)]
    blocks.append(f"[The ledger](ledger.md) holds {counted(entries)}." if entries else "No chapter has been run yet.")
    return "\n\n".join(blocks)


def card(path: Path, notebook) -> str:
    picture = hero(notebook)
    lines = [f":::{{grid-item-card}} {title(notebook)}", f":link: chapters/{path.stem}", ":link-type: doc"]
    if picture:
        lines += [f":img-top: images/{path.stem}.png", f":img-alt: {' '.join(picture[1].split())}"]
    return "\n".join([*lines, "", question(notebook), ":::", ""])


def readme_table(chapters: dict, root: Path) -> str:
    rows = []
    for path, notebook in chapters.items():
        stamp = notebook.metadata.get("unrolled")
        badge = f"[![Open in Colab](images/colab.svg)]({colab(path.name, root)})"
        took = f"{in_words(stamp['seconds'])} ({stamp['device']})" if stamp else "not yet run"
        rows.append([f"[{title(notebook)}](chapters/{path.name})", badge, took])
    return table(["chapter", "run it", "takes"], rows) if rows else "The first chapter is being written."


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
    yield root / "ledger.md", ledger_page(chapters)
    yield root / "status.md", status_page(chapters)
    yield root / "intro.md", between_markers(root / "intro.md", cards(chapters, root))
    yield root / "README.md", between_markers(root / "README.md", readme_table(chapters, root))
    pictures = {root / "images" / f"{path.stem}.png": hero(notebook) for path, notebook in chapters.items()}
    for path in sorted({*pictures, *(root / "images").glob("[0-9][0-9]-*.png")}):
        picture = pictures.get(path)
        yield path, picture[0] if picture else None


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
            path.unlink()
        else:
            write_atomically(path, wanted)
    if "--check" in arguments:
        return 1 if wrong else 0
    print(f"Written anew: {', '.join(wrong)}." if wrong else "The generated pages are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
