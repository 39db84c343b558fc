"""The status page: when, where and for how long each chapter ran, and which cells took longest."""

from tools.book import title
from tools.places import cell_anchor, link
from tools.wording import DO_NOT_EDIT, how_many, in_words, table

MOST = 15  # rows in the table of the slowest cells


def stamps(chapters: dict) -> dict:
    return {path: notebook.metadata.get("unrolled", {}) for path, notebook in chapters.items()}


def runs(chapters: dict) -> str:
    rows = []
    for path, stamp in stamps(chapters).items():
        versions = ", ".join(f"{name} {version}" for name, version in stamp.get("versions", {}).items())
        rows.append(
            [
                f"[{title(chapters[path])}](chapters/{path.name})",
                in_words(stamp["seconds"]).replace(" ", "&nbsp;") if stamp else "not yet run",
                stamp.get("device", ""),
                versions,
                ", ".join(stamp.get("data", [])),
                stamp.get("date", ""),
            ]
        )
    return table(["chapter", "took", "on", "with", "data", "date"], rows)


def slowest(chapters: dict) -> list[str]:
    """The slowest cells of the whole book, of the runs that recorded any."""
    found = [
        (one["seconds"], path, one) for path, stamp in stamps(chapters).items() for one in stamp.get("slowest", [])
    ]
    found.sort(key=lambda of: (-of[0], of[1].name, of[2]["cell"]))
    silent = [path for path, stamp in stamps(chapters).items() if stamp and not stamp.get("slowest")]
    rows = [
        [
            f"{seconds:.0f}&nbsp;s",
            f"{100 * seconds / stamps(chapters)[path]['seconds']:.0f}&nbsp;%",
            link(f"code cell {one['cell']}", path, cell_anchor(one["cell"])),
            one["heading"],
            title(chapters[path]),
        ]
        for seconds, path, one in found[:MOST]
    ]
    parts = ["## The slowest cells"]
    if rows:
        parts += [
            "A run keeps the times of its five slowest cells; these are the slowest of them all.",
            table(["took", "of its chapter", "cell", "under", "chapter"], rows),
        ]
    if silent:
        names = ", ".join(str(int(path.name[:2])) for path in silent)
        many = "s" * (len(silent) > 1)
        parts.append(f"Times of cells were not recorded by the run{many} of chapter{many} {names}.")
    return parts if rows or silent else []


def status_page(chapters: dict) -> str:
    seconds = [stamp["seconds"] for stamp in stamps(chapters).values() if stamp]
    parts = [
        DO_NOT_EDIT,
        "# The runs",
        "The outputs in this book come from the runs below, at the settings shown in each chapter's parameters cell. "
        "A chapter is refused by the tests when its code, or the code of `shared` that it uses, is no longer the code "
        "that ran.",
    ]
    if not chapters:
        parts.append("No chapter has run yet.")
    else:
        parts += [
            f"The published runs of {how_many(len(seconds), 'chapter')} took **{in_words(sum(seconds))}** in all.",
            runs(chapters),
            *slowest(chapters),
        ]
    return "\n\n".join(parts) + "\n"
