"""Figures carry a caption and a description, and their labels can be read."""

import base64

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

from shared import figures, training

ALT = "A straight line that rises from the lower left to the upper right."


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, metadata=None: shown.append((bundle, metadata)))
    return shown


def test_show_displays_the_image_its_description_and_its_caption(displayed):
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    figures.show(fig, "**Figure 1.1.** A line.", alt=ALT)
    (image, metadata), (caption, _) = displayed
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"] == {"alt": ALT, "width": 640}
    assert caption["text/markdown"] == "**Figure 1.1.** A line."
    assert not plt.fignum_exists(fig.number), "an open figure would be displayed twice"


def test_show_refuses_a_figure_without_words():
    fig, _ = plt.subplots()
    with pytest.raises(ValueError, match="caption"):
        figures.show(fig, " ", alt=ALT)
    with pytest.raises(ValueError, match="at least 40 characters"):
        figures.show(fig, "A line.", alt="A line.")
    plt.close(fig)


def test_labels_at_line_ends_do_not_overlap():
    fig, ax = plt.subplots()
    for i in range(5):
        ax.plot([0, 1], [0, 1 + i / 1000], label=f"line {i}")
    ax.plot([0, 1], [0, np.nan], label="ends early")
    figures.label_ends(ax, gap=11)
    fig.canvas.draw()
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
    centres = [(box.y0 + box.y1) / 2 * 72 / fig.dpi for box in boxes]
    assert len(centres) == 6
    assert np.diff(centres).min() > 10
    assert {t.get_color() for t in ax.texts} == {line.get_color() for line in ax.lines}
    plt.close(fig)


def test_a_band_is_the_mean_and_its_interval():
    fig, ax = plt.subplots()
    line = figures.band(ax, [0, 1], np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]]))
    assert line.get_ydata() == pytest.approx([2.0, 2.0])
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)  # t(2) · 1/√3
    plt.close(fig)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_floor_is_a_named_line(axis):
    fig, ax = plt.subplots()
    figures.floor(ax, 0.5, "the best possible", axis=axis)
    data = ax.lines[0].get_xdata() if axis == "x" else ax.lines[0].get_ydata()
    assert list(data) == [0.5, 0.5]
    assert ax.texts[0].get_text() == "the best possible"
    plt.close(fig)


def test_dots_show_every_seed_and_the_interval_of_each_row():
    _, ax = plt.subplots()
    runs = [[1.0, 2.0, 3.0], [4.0, 4.0, 5.0]]
    figures.dots(ax, runs, [0, 1], figures.BLUE, shift=0.2)
    interval, seeds = ax.get_lines()[2:]
    assert seeds.get_xdata().tolist() == runs[1]
    assert list(interval.get_xdata()) == pytest.approx(training.interval(runs[1])[1:])
    assert {*interval.get_ydata(), *seeds.get_ydata()} == {1.2}
    assert {line.get_color() for line in ax.get_lines()} == {figures.BLUE}
    with pytest.raises(ValueError, match="zip"):
        figures.dots(ax, runs, [0], figures.BLUE)
