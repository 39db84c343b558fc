"""How the generated pages say things: verdicts and their signs, counts, times, tables in Markdown."""

from collections import Counter

# The verdicts with the signs that a chapter's own ledger uses, and what they mean.
VERDICTS = {
    "reproduced": ("✓", "the whole 95 % interval satisfies the claim"),
    "contradicted": ("✗", "the whole 95 % interval violates it"),
    "undecided": ("?", "the interval contains both, so these runs cannot tell"),
}
DO_NOT_EDIT = "<!-- Written by tools/pages.py from the chapters; do not edit. -->"


def in_words(seconds: float) -> str:
    """ "40 s", "12 min", "1 h 48 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def how_many(number: int, thing: str) -> str:
    """ "1 claim", "12 claims"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def verdict_counts(entries: list[dict]) -> dict[str, int]:
    """How many of the claims have each verdict, in the order of `VERDICTS`."""
    numbers = Counter(entry["verdict"] for entry in entries)
    return {verdict: numbers[verdict] for verdict in VERDICTS}


def counted(entries: list[dict]) -> str:
    """ "12 claims: 9 reproduced, 1 contradicted, 2 undecided"."""
    parts = ", ".join(f"{number} {verdict}" for verdict, number in verdict_counts(entries).items())
    return f"{how_many(len(entries), 'claim')}: {parts}"
