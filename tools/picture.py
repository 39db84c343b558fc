"""The state of the ledger in one picture: a bar for each chapter, cut by verdict, as plain SVG.

It is drawn once for light pages and once for dark ones. Colours are those of the book's figures, which every common
form of colour blindness leaves apart; the undecided are an empty outline, and each part has its number, so that nothing
rests on colour alone.
"""

from collections.abc import Iterator
from html import escape

from tools.book import claims, title
from tools.wording import VERDICTS, how_many, verdict_counts

WIDTH, LINE, BAR, GAP = 440, 17, 18, 11  # the picture; a line of text; a bar; what is between two chapters
BLUE, ORANGE = "#0072B2", "#E69F00"  # of shared.figures, whose import would take seconds
INK = {"light": "#333333", "dark": "#d6d6d6"}
FILL = {"reproduced": (BLUE, "#ffffff"), "contradicted": (ORANGE, "#000000")}  # and of the number on it


def part(x: float, y: float, width: float, verdict: str, number: str, ink: str) -> Iterator[str]:
    """One part of a bar, with its number in the middle; one without a colour of its own is an outline."""
    fill, colour = FILL.get(verdict, ("none", ink))
    yield (
        f'<rect x="{x + 0.75:.2f}" y="{y}" width="{width - 1.5:.2f}" height="{BAR}" fill="{fill}" '
        f'stroke="{ink if fill == "none" else fill}"/>'
    )
    if number:
        yield (
            f'<text x="{x + width / 2:.2f}" y="{y + BAR - 5}" font-size="11" text-anchor="middle" '
            f'fill="{colour}">{number}</text>'
        )


def svg(chapters: dict, theme: str) -> str:
    """The picture for a "light" or a "dark" page."""
    ink = INK[theme]
    numbers = {title(notebook): verdict_counts(claims(notebook)) for notebook in chapters.values()}
    longest = max((sum(counts.values()) for counts in numbers.values()), default=0)
    total = {verdict: sum(counts[verdict] for counts in numbers.values()) for verdict in VERDICTS}
    inner, x = [], 0.0
    for verdict, number in total.items():
        words = f"{number} {verdict}"
        inner += part(x, 1, BAR, verdict, "", ink)
        inner.append(f'<text x="{x + BAR + 6:.2f}" y="{BAR - 4}" font-size="14" fill="{ink}">{words}</text>')
        x += BAR + 6 + 7.6 * len(words) + 14
    y = BAR + 2 * GAP
    for name, counts in numbers.items():
        inner.append(f'<text x="0" y="{y + LINE - 5}" font-size="13" fill="{ink}">{escape(name)}</text>')
        y += LINE
        x = 0.0
        for verdict, number in counts.items():
            width = number * WIDTH / longest if number else 0.0
            if number:
                inner += part(x, y, width, verdict, str(number), ink)
            x += width
        y += BAR + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    )
    return "\n".join([head, *inner, "</svg>"]) + "\n"


def described(chapters: dict) -> str:
    """What the picture shows, for those who do not see it."""
    made = {title(notebook).split(".")[0]: claims(notebook) for notebook in chapters.values()}
    parts = [
        f"chapter {number}: " + ", ".join(f"{n} {verdict}" for verdict, n in verdict_counts(entries).items() if n)
        for number, entries in made.items()
        if entries
    ]
    total = verdict_counts([claim for entries in made.values() for claim in entries])
    whole = ", ".join(f"{n} are {verdict}" for verdict, n in total.items())
    return (
        f"A bar for each chapter, as long as it has claims, cut into those reproduced, contradicted and undecided. Of "
        f"{how_many(sum(total.values()), 'claim')} {whole}. By chapter: {'; '.join(parts)}."
    )
