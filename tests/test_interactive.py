"""The interactive figures: their numbers are the book's own, and they serve everyone, with and without the script."""

import ast
import base64
import io
import itertools
import math
import re
import shutil

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import Book, code, displayed, printed, text

from shared import figures
from shared.recurrent import Cell
from shared.truncation import truncated_backward
from tools import browser, site
from tools.book import ROOT, read
from tools.check import SETUP, colab

matplotlib.use("Agg")

pytestmark = [
    pytest.mark.xdist_group("interactive"),  # one worker, so that one site and one browser serve all
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # inside Sphinx's extensions
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCRIPTS = ROOT / "_static" / "interactive"
CHAPTERS = {"descent": "01-backpropagation", "truncation": "03-truncated-bptt"}
PAGE = "chapters/01-good.html"


def cell_of(name: str):
    """The cell of a chapter whose picture the live figure replaces."""
    cells = read(ROOT / "chapters" / f"{CHAPTERS[name]}.ipynb").cells
    (found,) = [cell for cell in cells if f"interactive-{name}" in cell.metadata.get("tags", [])]
    return found


def still(name: str) -> dict:
    """What the cell defines, and the picture, caption and alternative text that it shows."""
    notebook = read(ROOT / "chapters" / f"{CHAPTERS[name]}.ipynb")
    notebook.cells = notebook.cells[:8]  # the picture that opens the chapter, whose functions the cell uses
    given = {"np": np, "plt": plt, "figures": figures}
    shown = {}

    def show(figure, caption, alt):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
        shown.update(png=buffer.getvalue(), caption=caption, alt=alt)

    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        figures.use_style()
        patch.setattr(figures, "show", show)
        if name == "descent":
            (given["travel"],) = printed(notebook, given, "travel")
        else:
            given["first_reached"], given["reached"] = printed(notebook, given, "first_reached", "reached")
        exec(compile(cell_of(name).source, f"the still figure of {name}", "exec"), given)
    return given | shown


@pytest.fixture(scope="module")
def stills():
    return {name: still(name) for name in CHAPTERS}


@pytest.fixture(scope="module")
def built(tmp_path_factory, stills):
    """A book with the real settings and one chapter, which shows both figures; built as the site is. The site's folder."""
    book = Book(tmp_path_factory.mktemp("interactive") / "book")
    for name in ("_config.yml", "notation.md", "images", "_static"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, book.root / name)
    address = colab("01-good.ipynb", book.root)
    setup = SETUP.format(address="https://github.com/unrolled-book/unrolled")
    cells = [text(f"# 1. A chapter\n\nTry it. [Open]({address})"), code(setup, "setup")]
    for name, found in stills.items():
        picture = {"image/png": base64.b64encode(found["png"]).decode(), "text/plain": found["alt"]}
        _, first = displayed(picture, {"image/png": {"alt": found["alt"], "width": 720}})
        _, second = displayed({"text/markdown": found["caption"]})
        alt = {"image": {"alt": found["alt"]}}
        cells.append(code("pass", *cell_of(name).metadata["tags"], outputs=[*first, *second], mystnb=alt))
    path = book.chapter(cells)
    notebook = read(path)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    (book.root / "intro.md").write_text("# A book\n\n[First](chapters/01-good.ipynb)\n")
    (book.root / "ledger.md").write_text("# The ledger\n\nNothing yet.\n")
    (book.root / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n"
        "  - {caption: I, chapters: [{file: chapters/01-good}]}\n"
        "  - {caption: II, chapters: [{file: ledger}, {file: notation}]}\n"
    )
    out = book.root / "_build" / "html"
    assert site.build(out, book.root) == []
    return out


@pytest.fixture(scope="module")
def opened():
    if browser.chromium() is None:
        pytest.skip("no Chromium is installed to run the interactive figures in")
    with browser.browser() as running:
        yield running


@pytest.fixture(scope="module")
def js(opened):
    """Calls the scripts' own functions: js("descent.rate", "ravine", {...}). No site is needed, nor another script's order."""
    page = opened.new_page()
    for name in ("truncation", "controls", "descent"):
        page.add_script_tag(path=SCRIPTS / f"{name}.js")

    def call(name, *arguments):
        path = "(arguments) => unrolled" + "".join(f".{part}" for part in name.split("."))
        return page.evaluate(f"{path}(...arguments)", list(arguments))

    call.page = page
    yield call
    page.close()


@pytest.fixture
def look(opened, built):
    """Opens the built page with both figures and returns it: look(width=..., dark=..., ...). Any error of the scripts fails."""
    contexts, wrong = [], []

    def look(width=1280, dark=False, init=None, **options):
        scheme = "dark" if dark else "light"
        context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if init:
            page.add_init_script(init)
        page.goto((built / PAGE).as_uri())
        return page

    yield look
    for context in contexts:
        context.close()
    assert wrong == []


def figure(page, name):
    return page.locator(f".tag_interactive-{name} .interactive")


def words(page, name):
    return figure(page, name).locator(".sentence").text_content()


# The numbers: descent


def settings(landscape, number=24):
    """Settings drawn over the whole range of the controls; on the polynomial where the path is not chaotic."""
    draw = np.random.default_rng(5)
    for _ in range(number):
        beta = float(draw.choice([0, 0.3, 0.7, 0.9, 0.99]))
        common = {"beta": beta, "steps": int(draw.integers(1, 60))}
        if landscape == "ravine":
            start = [float(draw.uniform(-11, 8)), float(draw.uniform(-2, 2))]
            units = float(10 ** draw.uniform(-2, 0.65))
            yield common | {"kappa": int(draw.choice([1, 7, 60, 1000])), "units": units, "start": start}
        else:
            yield common | {"units": float(10 ** draw.uniform(-2, 0)), "start": [float(draw.uniform(-1.2, 3))]}


@pytest.mark.parametrize("landscape", ["ravine", "polynomial"])
def test_the_walkers_go_where_torch_goes(js, landscape):
    for one in settings(landscape):
        if landscape == "ravine":
            largest, loss = one["kappa"], lambda w, k=one["kappa"]: (w[0] ** 2 + k * w[1] ** 2) / 2
        else:
            largest, loss = 20.25, lambda x: (x**4 - 3 * x**3 + 2).sum()
        for beta in (0.0, one["beta"]):
            weights = torch.tensor(one["start"], dtype=torch.float64, requires_grad=True)
            library = torch.optim.SGD([weights], lr=one["units"] / largest, momentum=beta)
            path = [weights.detach().clone()]
            for _ in range(one["steps"]):
                library.zero_grad()
                loss(weights).backward()
                library.step()
                path.append(weights.detach().clone())
            walked = torch.tensor(js("descent.walk", landscape, one, beta), dtype=torch.float64)
            expected = torch.stack(path)[: len(walked)]
            far = (expected - (0 if landscape == "ravine" else 2.25)).norm(dim=1)
            assert len(walked) == len(path) or far[-1] > 1e6 >= far[:-1].max()  # a path ends early only if it left
            torch.testing.assert_close(walked, expected, rtol=1e-12, atol=1e-12)


def test_predicted_rates_are_the_roots_of_section_1_5(js):
    for one in settings("ravine"):
        for beta in (0.0, one["beta"]):
            ends = [1, 1 / one["kappa"]]
            roots = [abs(np.roots([1, one["units"] * end - 1 - beta, beta])).max() for end in ends]
            assert js("descent.rate", "ravine", one, beta) == pytest.approx(max(roots), rel=1e-7)  # roots may be double


def test_the_stability_limits_and_the_best_settings_are_the_chapters(js):
    for kappa in (2, 60, 1000):
        found, root = js("descent.best", kappa), math.sqrt(kappa)

        def rate(units, beta, kappa=kappa):
            return js("descent.rate", "ravine", {"kappa": kappa, "units": units}, beta)

        assert rate(found["plain"]["units"], 0) == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-12)
        heavy = found["heavy"]
        assert rate(heavy["units"], heavy["beta"]) == pytest.approx((root - 1) / (root + 1), rel=1e-6)
        for beta in (0.0, 0.5, 0.9):
            limit = 2 * (1 + beta)
            assert rate(limit * 0.999, beta) < 1 < rate(limit * 1.001, beta)


@pytest.mark.parametrize(
    ("start", "units", "beta", "steps", "fate"),
    [
        (-1, 0.2, 0, 500, "stuck"),
        (-1, 20.25 / 13 * 0.999, 0, 500, "stuck"),  # section 1.3: below 1/13 nothing crosses,
        (-1, 1.8, 0, 60, "arrived"),  # and above there is a band in which one long jump does
        (-1, 0.2, 0.9, 300, "arrived"),
        (-1, 0.2, 0.9, 60, "settling"),
        (2.4, 2.3, 0, 40, "swinging"),
        (2.9, 4, 0, 4, "widening"),
        (2.255, 2.1, 0, 20, "widening"),
        (2.9, 4, 0, 40, "gone"),
        (3, 0.01, 0, 3, "walking"),
    ],
)
def test_what_becomes_of_a_walker_is_told(js, start, units, beta, steps, fate):
    one = {"start": [start], "units": units, "beta": beta, "steps": steps}
    path = js("descent.walk", "polynomial", one)
    assert js("descent.fate", path) == fate
    said = {"stuck": "stuck at the flat place", "gone": "thrown off", "arrived": "arrives at the minimum"}
    assert said.get(fate, "") in js("descent.inWords", "polynomial", one)


def test_a_ravine_is_told_in_words(js):
    def told(**changes):
        return js("descent.inWords", "ravine", still_defaults("descent") | changes)

    words = told()
    assert "24 steps of size 0.03 = 1.8 / L from (−10, 1.6), 10.1 from the lowest point" in words
    assert "Plain descent ends 4.8 from the lowest point" in words
    assert "each step leaves 84\u00a0% of the distance" in words
    assert "swing for ever at the same distance" in told(units=2, steps=30)
    assert "is being thrown out" in told(units=2.2, steps=30)
    assert "is thrown out of the valley within" in told(units=4.5, steps=300)
    assert "the heavy ball is plain descent" in told(beta=0)
    assert "round bowl" in told(kappa=1, units=1)


# The numbers: truncation


class Linear(Cell):
    """h_t = λ h_{t−1} + u x_t, the unit of the figure."""

    def __init__(self, decay):
        super().__init__(1, 1)
        self.u, self.decay = torch.nn.Parameter(torch.ones((), dtype=torch.float64)), decay

    def step(self, projected_t, state):
        state = self.decay * state + self.u * projected_t
        return state, state


def journeys(length, depth, stride, decay):
    """What the error of step t (row) is worth when it reaches step s (column), by `truncated_backward`; and u's gradient."""
    inputs = torch.ones(length, length, 1, dtype=torch.float64, requires_grad=True)
    unit, own = Linear(decay), torch.eye(length, dtype=torch.float64)  # row b of the batch has an error at step b alone
    truncated_backward(unit, inputs, lambda y: (y[:, :, 0] * own).sum(), depth=depth, stride=stride)
    return inputs.grad[:, :, 0].T, unit.u.grad


def truncations(number=40):
    draw = np.random.default_rng(3)
    for _ in range(number):
        length = int(draw.integers(2, 22))
        depth = int(draw.integers(1, length + 1))
        stride = int(draw.choice([1, depth, draw.integers(1, depth + 1)]))
        yield {"length": length, "depth": depth, "stride": stride, "decay": float(draw.choice([0, 0.3, 0.8, 0.95, 1]))}


def test_reach_and_bias_are_those_of_truncated_backward(js):
    for one in truncations():
        length, decay = one["length"], one["decay"]
        worth, gradient = journeys(**one)
        whole, true_gradient = journeys(length, length, length, decay)
        first = [js("truncation.firstReached", t, one) for t in range(1, length + 1)]
        if decay > 0:
            assert first == [int(row.nonzero()[0]) + 1 for row in worth]
        alike = js("truncation.bias", one | {"errors": "alike"})
        assert alike == pytest.approx(float(1 - gradient / true_gradient), abs=1e-12)
        unrelated = js("truncation.bias", one | {"errors": "unrelated"})
        expected = float((whole - worth).square().sum() / whole.square().sum())
        assert unrelated**2 == pytest.approx(expected, abs=1e-12)


def test_passes_and_journeys_are_counted_as_the_chapter_counts(js):
    notebook = read(ROOT / "chapters" / "03-truncated-bptt.ipynb")
    first_reached, reached = printed(notebook, {"np": np}, "first_reached", "reached")
    for one in truncations():
        length, depth, stride = one["length"], one["depth"], one["stride"]
        steps = reached(length, depth, stride).sum(1)
        found = js("truncation.counted", one)
        ends = {min(-(-t // stride) * stride, length): first_reached(t, depth, stride) for t in range(1, length + 1)}
        assert found["passes"] == len(ends)
        assert found["walked"] == sum(end - first + 1 for end, first in ends.items())
        assert found["whole"] == (steps >= depth).sum()
        assert found["mean"] == pytest.approx(steps.mean(), rel=1e-12)
    post = {"length": 49, "depth": 7}  # the example of section 3.1
    assert [js("truncation.counted", post | {"stride": stride})["whole"] for stride in (7, 1)] == [7, 43]


def test_impossible_settings_are_made_possible(js):
    base = still_defaults("truncation") | {"errors": "alike"}

    def possible(changed="", **changes):
        return js("truncation.consistent", base | changes, changed)

    assert possible(depth=4)["stride"] == 4  # a smaller depth takes the stride along,
    assert possible("stride", stride=9)["depth"] == 9  # a larger stride the depth,
    shorter = possible(length=5)  # and a shorter sequence all of them
    assert (shorter["depth"], shorter["stride"], shorter["followed"]) == (5, 5, 5)


def test_truncation_is_told_in_words(js):
    def told(**changes):
        return js("truncation.inWords", still_defaults("truncation") | {"errors": "alike"} | changes)

    words = told()
    assert "BPTT(6; 6) over 24 steps: chunks of 6. 4 backward passes" in words
    assert "39\u00a0% of the gradient is missing" in words
    assert (
        "The error of step 14 goes back to step 13, through 2 steps, which leaves out 62\u00a0% of its worth" in words
    )
    assert "reaches no step but its own" in told(followed=13)
    full = told(depth=24, stride=24)
    assert "full backpropagation" in full
    assert "nothing of the gradient is missing" in full
    assert "true truncation. 24 backward passes" in told(stride=1)
    assert "root mean square" in told(errors="unrelated")


# The still picture


def still_defaults(name) -> dict:
    """The settings in the first line of the cell, as they are written there."""
    first = ast.parse(cell_of(name).source).body[0]
    assert first.targets[0].id == "defaults"
    return ast.literal_eval(first.value)


def test_the_still_picture_shows_the_state_in_which_the_live_figure_begins(js, stills):
    begin = js.page.evaluate("unrolled.descent.DEFAULTS.ravine")
    assert {**still_defaults("descent"), "start": list(still_defaults("descent")["start"])} == begin
    begin = js.page.evaluate("unrolled.truncation.DEFAULTS")
    assert still_defaults("truncation") | {"errors": "alike"} == begin

    drawn = stills["descent"]  # after the cell, these are the heavy ball's
    walked = js("descent.walk", "ravine", js.page.evaluate("unrolled.descent.DEFAULTS.ravine"))
    np.testing.assert_allclose(drawn["path"], walked, rtol=1e-12, atol=1e-12)
    drawn = stills["truncation"]
    for depth, stride in itertools.product((1, 6, 24), (1, 6, 24)):
        if stride <= depth:
            asked = begin | {"depth": depth, "stride": stride}
            assert js("truncation.bias", asked) == pytest.approx(drawn["missing"](depth, stride), abs=1e-12)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_cell_is_short_and_its_figure_has_the_next_number(name, stills):
    lines = cell_of(name).source.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 100
    cells = read(ROOT / "chapters" / f"{CHAPTERS[name]}.ipynb").cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    numbers = [int(number) for source in sources for number in re.findall(r"\*\*Figure \d+\.(\d+)\.\*\*", source)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(stills[name]["alt"]) > 100


# The page


def test_without_the_script_on_paper_and_after_a_failure_the_picture_stands(look):
    page = look(java_script_enabled=False)
    for name in CHAPTERS:
        picture = page.locator(f".tag_interactive-{name} .cell_output img")
        assert picture.is_visible()
        assert len(picture.get_attribute("alt")) > 100
        assert figure(page, name).count() == 0

    page = look()
    for name in CHAPTERS:
        picture = page.locator(f".tag_interactive-{name} .cell_output img")
        assert figure(page, name).is_visible()
        assert not picture.is_visible()
        assert page.locator(f".tag_interactive-{name} .cell_output p:has(strong)").is_visible()  # the caption
    page.emulate_media(media="print")
    for name in CHAPTERS:
        assert not figure(page, name).is_visible()
        assert page.locator(f".tag_interactive-{name} .cell_output img").is_visible()

    page = look(init="delete Element.prototype.replaceChildren")  # an old browser
    for name in CHAPTERS:
        assert figure(page, name).count() == 0
        assert page.locator(f".tag_interactive-{name} .cell_output img").is_visible()


def test_the_scripts_are_small_and_ask_no_other_machine(look, built):
    for path in SCRIPTS.iterdir():
        assert path.stat().st_size < 200_000
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|fetch\(|XMLHttpRequest|import\b", path.read_text())
    page = look()
    page.wait_for_load_state("load")
    loaded = [url for url in page.requests if "/interactive/" in url]
    assert len(loaded) == len(list(SCRIPTS.iterdir()))
    assert all(url.startswith(("file://", "data:")) for url in page.requests)


def test_everything_can_be_done_by_keyboard(look):
    page = look()
    for name in CHAPTERS:
        shown = figure(page, name)
        controls = shown.locator("button:visible, select:visible, input:visible")
        controls.first.focus()
        for i in range(controls.count()):  # Tab goes through them in order, and the focus can be seen
            assert controls.nth(i).evaluate("node => node === document.activeElement")
            assert controls.nth(i).evaluate("node => getComputedStyle(node).outlineStyle") != "none"
            assert controls.nth(i).evaluate("node => node.labels?.length > 0 || node.textContent.trim() !== ''")
            page.keyboard.press("Tab")
        begin, drawing = words(page, name), shown.locator("svg").first.inner_html()
        for slider in shown.locator("input:visible").all():
            slider.focus()
            value, text = slider.input_value(), slider.get_attribute("aria-valuetext")
            page.keyboard.press("ArrowLeft")
            assert slider.input_value() != value
            assert slider.get_attribute("aria-valuetext") != text
            assert slider.locator("xpath=preceding-sibling::output").text_content() != text
            assert words(page, name) != begin
            assert shown.locator("svg").first.inner_html() != drawing
            shown.get_by_role("button", name="Reset").focus()
            page.keyboard.press("Enter")
            assert words(page, name) == begin
            assert slider.input_value() == value


def test_landscapes_trials_and_presets(look):
    page = look()
    descent = figure(page, "descent")
    descent.get_by_role("button", name="Best for the heavy ball").click()
    assert "3.14 / L" in words(page, "descent")
    assert "Momentum 0.595" in words(page, "descent").replace("momentum", "Momentum")
    select = descent.get_by_label("Landscape", exact=True)
    select.focus()
    page.keyboard.press("ArrowDown")
    assert "On the polynomial from x = −1" in words(page, "descent")
    assert not descent.get_by_label("Condition number").is_visible()
    descent.get_by_role("button", name="A swing for ever").click()
    assert "swings about the minimum" in words(page, "descent")
    descent.get_by_role("button", name="One long jump").click()
    assert "arrives at the minimum" in words(page, "descent")
    select.focus()
    page.keyboard.press("ArrowUp")
    assert "3.14 / L" in words(page, "descent")  # each landscape keeps its settings

    truncation = figure(page, "truncation")
    for preset, said in [
        ("True", "BPTT(6; 1)"),
        ("Between", "BPTT(6; 3)"),
        ("Chunks", "BPTT(6; 6)"),
        ("Full", "BPTT(24; 24)"),
    ]:
        truncation.get_by_role("button", name=preset).click()
        assert said in words(page, "truncation")
    truncation.get_by_label("Errors and inputs").select_option("unrelated")
    assert "nothing of the gradient is missing" in words(page, "truncation")


def test_the_start_can_be_dragged_and_a_row_pointed_at(look):
    page = look()
    handle = figure(page, "descent").locator(".handle")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 70, steps=4)
    page.mouse.up()
    first, second = (figure(page, "descent").get_by_label(f"Start, w{i}") for i in "₁₂")
    assert first.get_attribute("aria-valuetext") != "−10"
    assert second.get_attribute("aria-valuetext") != "1.6"
    moved = figure(page, "descent").locator(".handle").bounding_box()
    assert abs(moved["x"] - box["x"] - 60) < 6
    assert abs(moved["y"] - box["y"] - 70) < 6
    page.keyboard.press("ArrowRight")  # the arrow keys go on from there
    assert figure(page, "descent").locator(".handle").bounding_box()["x"] > moved["x"]
    page.mouse.move(x, y)  # released: the pointer no longer moves it
    assert figure(page, "descent").locator(".handle").bounding_box()["x"] > moved["x"]

    grid = figure(page, "truncation").locator(".journeys")
    row = figure(page, "truncation").locator(".followed")
    x, y, height = (float(row.get_attribute(name)) for name in ("x", "y", "height"))
    grid.click(position={"x": x + 5, "y": y + height / 2 - 4 * height})
    assert "The error of step 10 goes back to step 7" in words(page, "truncation")


def test_no_setting_breaks_the_drawing(look):
    """Every control at both its ends, alone and with a second one; every drawing with numbers only."""
    page = look()
    for name in CHAPTERS:
        assert (
            page.evaluate(
                """(name) => {
                const figure = document.querySelector(`.tag_interactive-${name} .interactive`);
                const broken = [];
                const check = (what) => /NaN|Infinity|undefined/.test(figure.innerHTML) && broken.push(what);
                const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
                for (const landscape of name === "descent" ? ["ravine", "polynomial"] : ["alike", "unrelated"]) {
                    const select = figure.querySelector("select");
                    select.value = landscape;
                    select.dispatchEvent(new Event("change"));
                    const inputs = [...figure.querySelectorAll("input")].filter((one) => one.offsetParent);
                    for (const [i, a] of inputs.entries()) for (const b of inputs.slice(i)) for (const ends of [0, 1, 2, 3]) {
                        set(a, (ends & 1) * a.max);
                        set(b, (ends >> 1) * b.max);
                        check(`${landscape} ${a.id} ${b.id} ${ends}`);
                    }
                }
                return broken;
            }""",
                name,
            )
            == []
        )


def brightness(colour: str) -> float:
    """The relative luminance of "rgb(r, g, b)", as the rules on contrast define it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted([brightness(one), brightness(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_stand_out_in_light_and_dark_and_axe_finds_nothing(look, dark):
    page = look(dark=dark)
    assert page.locator("html").get_attribute("data-theme") == ("dark" if dark else "light")
    style = "(node, name) => getComputedStyle(node)[name]"
    ground = page.locator("body").evaluate(style, "backgroundColor")
    for name in CHAPTERS:
        for part in figure(page, name).locator("svg text, .key span, .limit").all():
            colour = part.evaluate("node => getComputedStyle(node)[node.closest('svg') ? 'fill' : 'color']")
            if "square" not in (part.get_attribute("class") or ""):  # its words are in an element of their own
                assert contrast(colour, ground) >= 4.5, (part.text_content(), colour)
        for part in (
            figure(page, name).locator("svg :is(.walk, .error, .bias, .target, .start, .reader, .followed)").all()
        ):
            assert contrast(part.evaluate(style, "stroke"), ground) >= 3
    found = Axe().run(page, context=".interactive").response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_another_theme_keeps_what_was_set(look):
    page = look()
    figure(page, "descent").get_by_label("Momentum").press("ArrowRight")
    said = words(page, "descent")
    stroke = "node => getComputedStyle(node).stroke"
    before = figure(page, "descent").locator(".walk.plain").evaluate(stroke)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert words(page, "descent") == said
    assert figure(page, "descent").locator(".walk.plain").evaluate(stroke) != before


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_it_fits_and_can_be_read_at_any_width(look, width):
    page = look(width=width)
    for name in CHAPTERS:
        shown = figure(page, name)
        outside = shown.evaluate(
            """(node) => {
                const { left, right } = node.getBoundingClientRect();
                return [...node.querySelectorAll("button, select, input, output, .key, .limit span, svg text")]
                    .filter((one) => one.getClientRects().length)
                    .map((one) => [one.getBoundingClientRect(), one.outerHTML.slice(0, 120)])
                    .filter(([box]) => box.left < left - 1 || box.right > right + 1)
                    .map(([, text]) => text);
            }"""
        )
        assert outside == []
        box = shown.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        sizes = shown.evaluate(
            "node => [...node.querySelectorAll('*')].filter((one) => one.textContent.trim())"
            ".map((one) => parseFloat(getComputedStyle(one).fontSize))"
        )
        assert min(sizes) >= 11
        scale = shown.locator("svg").first.evaluate(
            "node => node.getBoundingClientRect().width / node.viewBox.baseVal.width"
        )
        assert scale == pytest.approx(1, abs=0.02)  # drawn to its size: its text is as large as it says
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function(
        "() => [...document.querySelectorAll('.interactive svg')].every((one) => one.clientWidth === one.viewBox.baseVal.width)"
    )
