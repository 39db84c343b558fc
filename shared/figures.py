"""One visual language for the book: colours, direct labels, intervals, floors, and figures that carry a caption and alt text."""

import base64
import io

import numpy as np

from shared.training import interval

# Okabe and Ito's colours, distinguishable with every common form of colour blindness (without their yellow, too pale for lines).
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#6E6E6E",
)
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
HALF, FULL = 3.6, 7.2  # inches: a figure is FULL wide; HALF is for one panel of two
DPI = 180
SHORTEST_ALT = 40


def use_style() -> None:
    """Set matplotlib's defaults to the book's: call it once, in the chapter's import cell."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.figsize": (FULL, 3.6),
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": mpl.cycler(color=CYCLE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#444444",
            "axes.labelcolor": "#222222",
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "xtick.color": "#444444",
            "ytick.color": "#444444",
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "font.size": 9.5,
            "mathtext.fontset": "cm",
        }
    )


def band(ax, x, runs, label: str | None = None, color=None, **line):
    """Draw the mean of `runs`, shape (seeds, points), against `x`, shape (points,), with its 95 % interval; return the line."""
    mean, low, high = interval(np.asarray(runs, dtype=float))
    (drawn,) = ax.plot(x, mean, label=label, color=color, **line)
    ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    return drawn


def dots(ax, runs, rows, color, shift: float = 0.0) -> None:
    """Draw a dot for each seed on a row of its own for each of `runs`, shape (rows, seeds), with the means' 95 % intervals.

    `rows` are the heights of the rows; `shift` is added to them, so that two sets of dots can stand in one row.
    """
    for values, row in zip(runs, rows, strict=True):
        values = np.asarray(values, dtype=float)
        _, low, high = interval(values)
        ax.plot([low, high], [row + shift] * 2, color=color, linewidth=1.4)
        ax.plot(values, [row + shift] * len(values), "o", color=color, markersize=4.5, alpha=0.75, markeredgewidth=0)


def floor(ax, value: float, name: str, axis: str = "y", side: str = "left") -> None:
    """Draw a thin named line at a value known from theory: the best possible loss, a predicted rate, a threshold.

    `axis` is the axis on which the value lies: "y" gives a horizontal line, with its name at the `side` "left" or "right"; "x" gives
    a vertical one, with its name at the top.
    """
    style = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
    text = {"color": GREY, "fontsize": 8, "textcoords": "offset points"}
    if axis == "y":
        ax.axhline(value, **style)
        x, shift = (0, 3) if side == "left" else (1, -3)
        ax.annotate(
            name, (x, value), xycoords=("axes fraction", "data"), xytext=(shift, 3), ha=side, va="bottom", **text
        )
    else:
        ax.axvline(value, **style)
        ax.annotate(name, (value, 1), xycoords=("data", "axes fraction"), xytext=(3, -3), va="top", **text)


def label_ends(ax, gap: float = 11.0, pad: float = 5.0) -> None:
    """Write each labelled line's name at its right end, in its colour, moved apart vertically where names would overlap.

    `gap` and `pad` are in points: the least distance between two names, and between a line and its name. Call it last, when the
    axes' limits are set.
    """
    from matplotlib.patheffects import withStroke

    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ax.figure.canvas.draw()  # the layout must be final before positions can be read
    to_points = 72 / ax.figure.dpi
    ends = []
    for line in lines:
        x, y = (np.asarray(values, dtype=float) for values in (line.get_xdata(), line.get_ydata()))
        last = np.flatnonzero(np.isfinite(x) & np.isfinite(y))[-1]
        ends.append((ax.transData.transform((x[last], y[last]))[1] * to_points, x[last], y[last], line))
    ends.sort(key=lambda end: end[0])
    heights = [end[0] for end in ends]
    for _ in range(200):  # push neighbours apart, a little at a time, until all gaps are wide enough
        for i in range(len(heights) - 1):
            lack = gap - (heights[i + 1] - heights[i])
            if lack > 0:
                heights[i] -= lack / 2
                heights[i + 1] += lack / 2
    for (height, x, y, line), wanted in zip(ends, heights, strict=True):
        ax.annotate(
            line.get_label(),
            (x, y),
            xytext=(pad, wanted - height),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable where it meets a line
        )


def show(figure, caption: str, alt: str) -> None:
    """Display `figure` with its caption below it and `alt` for readers who cannot see it, then close it.

    The caption begins with the figure's number ("**Figure 1.2.** …") and says what to see; `alt` is a description that a listener
    could draw from. Raises ValueError if the caption is empty or the description is shorter than 40 characters.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not caption.strip():
        raise ValueError("a figure needs a caption")
    if len(alt) < SHORTEST_ALT:
        raise ValueError(f"alt must describe the figure in at least {SHORTEST_ALT} characters (got {len(alt)})")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 100)
    png = base64.b64encode(buffer.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)
    display({"text/markdown": caption, "text/plain": caption}, raw=True)
