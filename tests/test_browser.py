"""The site as its readers have it: every page of it opened in a browser, and looked at, listened to and used by keyboard."""

import contextlib
import functools
import http.server
import io
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

from tools.book import ROOT, chapter_paths, code_cells, read
from tools.browser import browser, chromium
from tools.check import colab
from tools.site import letters

pytestmark = [
    pytest.mark.xdist_group("site"),  # one worker, so that the site is built once
    pytest.mark.filterwarnings(
        "ignore::PendingDeprecationWarning"
    ),  # inside Sphinx's extensions, when the site is built here
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # one of them looks at every object there is, torch's too
]

WIDE, NARROW = {"width": 1280, "height": 640}, {"width": 360, "height": 740}  # a desk, and a small telephone
SHORTEST_ALT = 40  # characters
NO_BROWSER = "no browser is installed: the site was not opened (on Debian or Ubuntu, install the package chromium)"
HIDDEN = {"remove-cell", "remove-input"}  # the tags of cells whose code is not shown
OF_COLOUR = ("color-contrast", "link-in-text-block")  # the rules of axe that depend on the theme
OF_SIZE = (
    "scrollable-region-focusable",
    "button-name",
    "link-name",
    "aria-hidden-focus",
)  # and on what a narrow page shows
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


# The browser, and the site served to it


@pytest.fixture(scope="module")
def chrome():
    if chromium() is None:
        pytest.skip(NO_BROWSER)
    with browser() as opened:
        yield opened


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing: what was asked for and not found is seen in the browser."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address, with a slash at its end, under which this machine serves a folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def address(chrome, built):
    with served(built) as base:
        yield base


@contextlib.contextmanager
def window(chrome, **settings):
    """A page of its own, without memory of others, at a desk unless `settings` say otherwise; nothing on it moves by itself."""
    context = chrome.new_context(**{"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce"} | settings)
    context.set_default_timeout(20_000)
    try:
        yield context.new_page()
    finally:
        context.close()


STILL = "*, *::before, *::after { transition: none !important; animation: none !important; scroll-behavior: auto !important; }"
SETTLED = """async () => {
    await (window.MathJax && MathJax.startup && MathJax.startup.promise);
    await document.fonts.ready;
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def show(page, address: str) -> None:
    """Open an address and wait until its mathematics and letters stand."""
    page.goto(address)
    page.add_style_tag(content=STILL)
    page.evaluate(SETTLED)


REACHABLE = """() => [...document.querySelectorAll('pre')].every(one =>
    one.tabIndex === 0 || one.scrollWidth <= one.clientWidth || !one.checkVisibility())"""


def resize(page, size: dict) -> None:
    page.set_viewport_size(size)
    page.evaluate(SETTLED)
    with contextlib.suppress(
        TimeoutError
    ):  # the theme makes what scrolls reachable, as soon as nothing moved for 300 ms
        page.wait_for_function(REACHABLE, timeout=5_000)


def turn(page, scheme: str) -> None:
    """Set the reader's system to "light" or "dark", and wait for the page to follow."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
    page.evaluate(SETTLED)


def names(site: Path) -> list[str]:
    """Every page of a built site; its index.html only leads to the front page, and has a test of its own."""
    paths = (path.relative_to(site) for path in sorted(site.rglob("*.html")))
    return [path.as_posix() for path in paths if path.parts[0] != "_static" and path.name != "index.html"]


# What is wrong with a page: each check yields a sentence for each thing


def listen(page, base: str) -> list[str]:
    """What a page says in the console, breaks on, misses or asks of another machine, from now on; nothing leaves this machine."""
    heard: list[str] = []

    def refuse(one):
        heard.append(f"asks another machine for {one.request.url}")
        one.abort()

    def say(one):
        if one.type in ("error", "warning"):
            heard.append(f"says {one.text!r} ({one.location['url'].removeprefix(base)})")

    page.route(re.compile(f"^(?!{re.escape(base)})"), refuse)
    page.on("console", say)
    page.on("pageerror", lambda one: heard.append(f"breaks: {one}"))
    page.on("response", lambda one: heard.append(f"misses {one.url} ({one.status})") if one.status >= 400 else None)
    return heard


MATHEMATICS = r"""() => {
    const found = [], count = selector => document.querySelectorAll(selector).length;
    const asked = count('.math'), set = count('.math > mjx-container');
    if (asked !== set) found.push(`has ${asked} formulas, of which ${set} are typeset`);
    for (const error of document.querySelectorAll('mjx-merror, [data-mjx-error]'))
        found.push(`has a formula that MathJax does not understand: ${error.textContent.slice(0, 60)}`);
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode;
        const inside = 'pre, code, script, style, textarea, mjx-container';
        if (/\\[a-zA-Z]{2,}|\\[([]|\$/.test(text.data) && !text.parentElement.closest(inside))
            found.push(`shows a formula as it was typed: ${text.data.trim().slice(0, 60)}`);
    }
    return found;
}"""

# A script may take an address up itself, as the ledger's filter does: the place then keeps its name in data-place.
LINKS = """() => ({
    ids: [...document.querySelectorAll('[id], a[name], [data-place]')]
        .flatMap(one => [one.id, one.getAttribute('name'), one.dataset.place]).filter(Boolean),
    links: [...document.querySelectorAll('a[href]')].map(one => one.href),
})"""

PICTURES = """() => [...document.querySelectorAll(
    '.bd-article :is(.cell_output img, .sd-card img, figure img, p > img, canvas, [role="img"])')]
    .filter(one => !one.closest('mjx-container, [role="img"] [role="img"]') && !one.matches('svg.svg-inline--fa'))
    .map(one => {
        const block = one.closest('a.image-reference') || one;
        const after = block.nextElementSibling, caption = one.closest('figure')?.querySelector('figcaption')
            || (after && after.matches('p') ? after : null) || one.closest('.sd-card')?.querySelector('.sd-card-title');
        const said = one.getAttribute('alt') ?? one.getAttribute('aria-label')
            ?? document.getElementById(one.getAttribute('aria-labelledby'))?.textContent ?? '';
        return {source: one.currentSrc || '', said, caption: caption ? caption.textContent : '', title: one.title || ''};
    })"""

# Whatever can be operated; one of a group of radio buttons is reached by Tab, the others from there by the arrow keys.
OPERATED = """
    const shown = one => one.checkVisibility({visibilityProperty: true}) && one.getClientRects().length && !one.closest('[inert]');
    const operated = () => [...document.querySelectorAll(
        'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex], [contenteditable=true], iframe')]
        .filter(one => shown(one) && one.tabIndex >= 0 && !one.disabled)
        .filter((one, _, all) => one.type !== 'radio' || one.checked
            || !all.some(other => other.type === 'radio' && other.name === one.name && (other.checked
                || other.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING)));
    const called = one => `${one.tagName.toLowerCase()} "${(one.getAttribute('aria-label') || one.title || one.textContent
        || one.className || '').trim().replace(/\\s+/g, ' ').slice(0, 40)}"`;
"""
LISTEN_TO_FOCUS = f"""() => {{ {OPERATED}
    const look = one => {{
        // A card's link shows its focus around the whole card, by what stands after it.
        const [outline, after] = [null, '::after'].map(part => getComputedStyle(one, part)).map(style =>
            style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 ? style.outlineColor + style.outlineStyle : '');
        return [outline + after, getComputedStyle(one).boxShadow];
    }};
    const wanted = operated(), before = wanted.map(look), found = new Set(), reached = [];
    const roles = '[onclick], [role=button], [role=link], [role=slider], [role=checkbox], [role=switch]';
    for (const one of document.querySelectorAll(roles))
        if (shown(one) && one.tabIndex < 0) found.add(`${{called(one)}} cannot be reached by keyboard`);
    for (const one of wanted) if (one.tabIndex > 0) found.add(`${{called(one)}} asks to be reached out of order`);
    const bar = document.querySelector('.bd-header-article');
    document.addEventListener('focusin', ({{target}}) => {{
        const index = wanted.indexOf(target);
        if (index < 0 || reached.includes(index)) return;
        if (reached.length && index < reached.at(-1)) found.add(`${{called(target)}} is reached out of order`);
        reached.push(index);
        const after = look(target), box = target.getBoundingClientRect();
        if (!(after[0] && after[0] !== before[index][0]) && after[1] === before[index][1])
            found.add(`the focus is not seen on ${{called(target)}}`);
        const hidden = bar && !bar.contains(target) && target.closest('.bd-article') ? bar.getBoundingClientRect().bottom : 0;
        if (box.bottom <= hidden || box.top >= innerHeight || box.right <= 0 || box.left >= innerWidth)
            found.add(`${{called(target)}} is out of sight when it has the focus`);
    }});
    const missed = () => wanted.filter((_, index) => !reached.includes(index));
    window.walked = () => [...found, ...missed().map(one => `Tab does not reach ${{called(one)}}`)];
    return wanted.length;
}}"""

OVERFLOW = """() => {
    const found = [], wide = innerWidth, shown = one => one.checkVisibility({visibilityProperty: true});
    const called = one => `<${one.tagName.toLowerCase()} class="${one.getAttribute('class') || ''}"> `
        + `(${one.textContent.trim().slice(0, 40)})`;
    if (document.documentElement.scrollWidth > wide) found.push(`is ${document.documentElement.scrollWidth} px wide`);
    const scrolls = one => ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one !== document.body;
    const visit = one => {
        const box = one.getBoundingClientRect();
        if (box.width > 1 && box.height > 1 && shown(one)) {
            if (box.right > wide + 1 || box.left < -1) {
                found.push(`has ${called(one)} from ${box.left | 0} to ${box.right | 0} px`);
                return;
            }
            if (scrolls(one)) return;
            if (getComputedStyle(one).overflowX !== 'visible' && one.scrollWidth > one.clientWidth + 1 && one.clientWidth)
                found.push(`cuts off ${called(one)}`);
        }
        if (box.width > 1 || box.height > 1 || getComputedStyle(one).overflowX === 'visible')
            if (!one.matches('mjx-container, svg, input')) for (const child of one.children) visit(child);
    };
    for (const child of document.body.children) visit(child);
    const around = one => { let up = one; while (up && !scrolls(up)) up = up.parentElement; return up; };
    for (const one of document.querySelectorAll('.bd-article :is(img, canvas, table, div.math mjx-container)')) {
        const frame = around(one);
        if (!frame || !shown(one)) continue;
        const box = () => one.getBoundingClientRect(), place = frame.getBoundingClientRect(), was = frame.scrollLeft;
        frame.scrollLeft = 0;
        const left = box().left - place.left;
        frame.scrollLeft = 1e6;
        const right = box().right - place.right;
        frame.scrollLeft = was;
        if (left < -1 || right > 1) found.push(`does not let one reach all of ${called(one)}`);
    }
    for (const one of document.querySelectorAll('.bd-article *'))
        if (one.scrollWidth > one.clientWidth + 1 && one.clientWidth && scrolls(one) && shown(one) && one.tabIndex < 0
            && !one.querySelector('a[href], button, input, [tabindex="0"]'))
            found.push(`scrolls ${called(one)}, but not by keyboard`);
    return [...new Set(found)];
}"""

LIGHT_ISLANDS = """() => [...document.querySelectorAll('body, body *')].filter(one => {
    const [red, green, blue, opacity = 1] = getComputedStyle(one).backgroundColor.match(/[\\d.]+/g).map(Number);
    if (opacity < 0.5 || 0.2126 * red + 0.7152 * green + 0.0722 * blue < 128) return false;
    if (one.matches('img, svg, a, button, kbd, .skip-link')) return false;  // small signs in colours of their own, which axe sees
    const box = one.getBoundingClientRect();
    return box.width > 20 && box.height > 12 && one.checkVisibility({visibilityProperty: true});
}).map(one => `stays light in the dark: <${one.tagName.toLowerCase()} class="${one.getAttribute('class') || ''}">
    ${one.textContent.trim().slice(0, 30)}`.replace(/\\s+/g, ' '))"""

# axe looks at each element for seconds in all, and a chapter has twenty thousand: letters of code and of formulas, in some
# twenty colours. Those that stand again in the same colours on the same ground are merged with their text; nothing else is.
MERGE = """() => {
    const kept = new Set(), seen = new Set(), letters = 'pre span, mjx-container *';
    for (const one of document.querySelectorAll(letters)) {
        const style = getComputedStyle(one), key = [style.color, style.fontSize, style.fontWeight, style.backgroundColor];
        for (let up = one; up && key.length < 9; up = up.parentElement)
            key.push(up.matches('mjx-container *') ? '' : up.tagName + up.className);
        let ground = one;
        while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
        key.push(ground ? getComputedStyle(ground).backgroundColor : '');
        if (seen.has(key.join())) continue;
        seen.add(key.join());
        for (let up = one; up && up.matches(letters); up = up.parentElement) kept.add(up);
    }
    for (const one of document.querySelectorAll('pre span'))
        if (!kept.has(one) && [...one.attributes].every(each => each.name === 'class')) one.replaceWith(...one.childNodes);
    for (const one of document.querySelectorAll('pre')) one.normalize();
    for (const one of document.querySelectorAll('mjx-container'))
        if (![...one.children].some(child => kept.has(child))) one.replaceChildren(one.textContent);
}"""


# Colours are the same in a hundred paragraphs, rows or lines: of each kind of block, those stay that show one for the first time.
KEEP = """() => {
    window.kept ??= new Set();
    const seen = new Set(), blocks = 'p, li, td, th, pre, summary, h1, h2, h3, h4, dt, dd, figcaption, label';
    const own = one => [...one.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const all = document.querySelectorAll(`.bd-article :is(${blocks})`);
    for (const block of all) {
        for (const one of [block, ...block.querySelectorAll('*')]) {
            if (!own(one)) continue;
            let ground = one, style = getComputedStyle(one);
            while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
            const key = [block.tagName, one.tagName, one.className, style.color, style.fontSize, style.fontWeight,
                style.textDecorationLine, ground && getComputedStyle(ground).backgroundColor].join();
            if (seen.has(key)) continue;
            seen.add(key);
            for (let up = block; up; up = up.parentElement) window.kept.add(up);
        }
    }
    window.shorten = () => {
        for (const one of all) if (!window.kept.has(one)) one.remove();
        for (const one of document.querySelectorAll('.bd-article tr')) if (!one.children.length) one.remove();
    };
}"""


def axe(page, *rules: str, but: tuple[str, ...] = ()) -> list[str]:
    """What axe finds serious or critical on a page, by these of its rules, or by all but some."""
    options = {"resultTypes": ["violations"], "preload": False}  # it would fetch the style sheets a second time
    options |= {"runOnly": rules} if rules else {"rules": {rule: {"enabled": False} for rule in but}}
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE)
    found = page.evaluate(
        """options => axe.run(document, options).then(result => result.violations
            .filter(one => ['serious', 'critical'].includes(one.impact))
            .flatMap(one => one.nodes.map(node => [one.id, node.html, node.failureSummary])))""",
        options,
    )
    return [f"{rule}: {html[:120]} {' '.join(summary.split())[:200]}" for rule, html, summary in found]


def walk(page) -> list[str]:
    """Press Tab until it has gone round the page; what cannot be reached, is reached out of order, or without one seeing it."""
    stops = page.evaluate(LISTEN_TO_FOCUS)
    for _ in range(stops + 5):
        page.keyboard.down("Tab")
    page.keyboard.up("Tab")
    return page.evaluate("() => window.walked()")


def luminance(picture: np.ndarray) -> np.ndarray:
    """The relative luminance (WCAG 2) of each pixel, shape (height, width), from 0 to 1; `picture` is (height, width, 3) in bytes."""
    part = np.arange(256) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return linear[picture] @ [0.2126, 0.7152, 0.0722]


def ground(picture: np.ndarray) -> np.ndarray:
    """The commonest colour of a picture."""
    colours, counts = np.unique(picture @ [65536, 256, 1], return_counts=True)
    common = int(colours[counts.argmax()])
    return np.array([common >> 16, common >> 8 & 255, common & 255])


def contrast(picture: np.ndarray) -> np.ndarray:
    """The contrast (WCAG 2), from 1 to 21, of each pixel with the commonest colour."""
    own, other = luminance(picture), luminance(ground(picture)[None, None])
    return (np.maximum(own, other) + 0.05) / (np.minimum(own, other) + 0.05)


def illegible(light: np.ndarray, dark: np.ndarray) -> list[str]:
    """What is wrong with the same thing photographed in the light and in the dark: its ground, or ink that faded."""
    found = []
    if luminance(ground(dark)[None, None]).item() > 0.05:
        found.append(f"has the ground {tuple(map(int, ground(dark)))} in the dark")
    if light.shape != dark.shape:
        return [*found, "has another size in the dark"]
    ink = contrast(light) >= 4.5  # letters and axes, inner pixels rather than their soft edges
    if not ink.any():
        return [*found, "has no ink"]
    faded = float((contrast(dark)[ink] < 3).mean())
    if faded > 0.05:
        found.append(f"loses {faded:.0%} of its ink in the dark")
    return found


def photograph(one) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(one.screenshot())).convert("RGB")).astype(int)


# A page of figures alone is small enough to be photographed at once.
ALONE = """selector => {
    const drawn = [...document.querySelectorAll(selector)].filter(one => one.checkVisibility({visibilityProperty: true}));
    const around = new Set();
    for (const one of drawn) for (let up = one; up; up = up.parentElement) around.add(up);
    const aside = [...around].filter(one => !drawn.includes(one)).flatMap(one => [...one.children])
        .filter(one => !around.has(one) && one.closest('.bd-article'));
    for (const one of drawn.length ? aside : []) one.style.setProperty('display', 'none', 'important');
    window.restore = () => { for (const one of aside) one.style.removeProperty('display'); };
    scrollTo(0, 0);  // else what stands still while a page scrolls stands over it
    return drawn.map(one => {
        const {x, y, width, height} = one.getBoundingClientRect();
        const said = `${one.tagName.toLowerCase()} ${(one.alt || one.textContent).trim().slice(0, 50)}`;
        return [said, [x, y, width, height].map(Math.round)];
    });
}"""


def fading(page) -> list[str]:
    """Which figures and tables of a page cannot be made out in the dark. What lies between them is put aside meanwhile."""
    drawn, pictures = page.evaluate(ALONE, DRAWN), []
    if not drawn:
        return []
    assert (
        page.evaluate("() => document.documentElement.scrollHeight") < 16_000
    )  # pixels, of which a photograph has no more
    for scheme in ("light", "dark"):
        turn(page, scheme)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        pictures.append(np.asarray(taken).astype(int))
    turn(page, "light")
    page.evaluate("() => window.restore()")
    places = [(what, np.s_[y : y + height, x : x + width]) for what, (x, y, width, height) in drawn]
    return [f"the {what!r} {one}" for what, place in places for one in illegible(*(each[place] for each in pictures))]


def source(name: str) -> Path | None:
    """The file that a page is made of; None for a page that is made of nothing but the others."""
    paths = (ROOT / name.replace(".html", suffix) for suffix in (".ipynb", ".md"))
    return next((path for path in paths if path.exists()), None)


def misdelivered(page, path: Path | None) -> list[str]:
    """What is wrong with the buttons that open a notebook in Colab, and that give away the source of a page, by keyboard."""
    opens = page.eval_on_selector_all(".dropdown-launch-buttons a", "all => all.map(one => one.href)")
    wanted = [colab(path.name, ROOT)] if path and path.suffix == ".ipynb" else []
    found = [] if opens == wanted else [f"opens {opens} where it should open {wanted}"]
    if path is None:
        return found
    offer = f".dropdown-download-buttons a:has-text('{path.suffix}')"
    if not page.query_selector(offer):
        return [*found, f"does not offer {path.name}"]
    page.focus(".dropdown-download-buttons > button")
    page.keyboard.press("Enter")
    page.wait_for_selector(offer)
    page.focus(offer)
    try:
        with page.expect_download(timeout=10_000) as download:
            page.keyboard.press("Enter")
    except TimeoutError:
        return [*found, f"does not hand {path.name} over"]
    if download.value.suggested_filename != path.name:
        found.append(f"gives {download.value.suggested_filename} in place of {path.name}")
    if Path(download.value.path()).read_bytes() != path.read_bytes():
        found.append(f"gives something else than {path.name} as it is stored")
    page.keyboard.press("Escape")
    return found


# What every button is set to copy, and of every eighth what a press of it does copy: that arrives by another way than what was
# written to the clipboard before, and may be a moment later. With the text out of sight a press takes a tenth of the time.
COPY = """async () => {
    const buttons = [...document.querySelectorAll('.cell_input .copybtn')], text = document.querySelector('.bd-container');
    const copied = buttons.map(one => document.querySelector(one.dataset.clipboardTarget).textContent.replace(/\\n$/, ''));
    if (text) text.style.display = 'none';
    for (let index = 0; index < buttons.length; index += 8) {
        await navigator.clipboard.writeText('nothing');
        buttons[index].click();
        copied[index] = 'nothing';
        for (let tries = 0; copied[index] === 'nothing' && tries < 100; tries++) {
            if (tries) await new Promise(done => setTimeout(done, 10));
            copied[index] = await navigator.clipboard.readText();
        }
    }
    if (text) text.style.display = '';
    return copied;
}"""


def miscopied(page, path: Path | None) -> list[str]:
    """Where the buttons beside the cells of a notebook copy anything else than the code of their cell."""
    cells = code_cells(read(path)) if path and path.suffix == ".ipynb" else []
    wanted = [cell.source for cell in cells if not HIDDEN & set(cell.metadata.get("tags", []))]
    page.keyboard.press("F9")  # a browser lets a page write to the clipboard for a few seconds after a press
    copied = page.evaluate(COPY)
    if len(copied) != len(wanted):
        return [f"has {len(copied)} buttons that copy, and {len(wanted)} cells"]
    return [
        f"copies {text[:40]!r} for {code[:40]!r}" for text, code in zip(copied, wanted, strict=True) if text != code
    ]


# What every page is asked, in one visit to each


DRAWN = ".bd-article :is(.cell_output img, .sd-card img, canvas, .text_html table)"
QUESTIONS = {
    "quiet": "opens without an error, a warning, a missing file or a word to another machine",
    "mathematics": "has its formulas typeset",
    "links": "leads where its links say",
    "pictures": "says in words what its figures show",
    "source": "opens in Colab if it is a notebook, and gives its source away",
    "copy": "copies the code of its cells",
    "keyboard": "can be used by keyboard, and shows where one is",
    "narrow": "fits on a telephone",
    "dark": "turns dark, its figures and tables with it",
    "axe": "has no serious barrier known to axe, in the light and in the dark, at a desk and on a telephone",
}


def unresolved(pages: dict[str, dict], base: str, site: Path) -> Iterator[tuple[str, str]]:
    for name, page in pages.items():
        for link in dict.fromkeys(page["links"]):
            if not link.startswith(base):
                continue
            parts = urlsplit(link)
            target, fragment = unquote(parts.path).lstrip("/"), unquote(parts.fragment)
            if not (site / target).is_file():
                yield name, f"the link {link.removeprefix(base)} leads nowhere"
            elif fragment and target in pages and fragment not in pages[target]["ids"]:
                yield name, f"the page behind {link.removeprefix(base)} has no such place"


def nondescript(pictures: dict[str, list[dict]]) -> Iterator[tuple[str, str]]:
    """Descriptions that are too short, only a title or caption, or the same for two pictures."""
    sources = defaultdict(set)
    for pages in pictures.values():
        for one in pages:
            sources[letters(one["said"])].add(one["content"])
    for name, found in pictures.items():
        for one in found:
            said, what = one["said"].strip(), f"the figure described as {one['said'][:50]!r}"
            if len(said) < SHORTEST_ALT:
                yield name, f"{what} needs {SHORTEST_ALT} characters"
            elif letters(said) in letters(one["caption"] + one["title"]) or letters(one["caption"]) == letters(said):
                yield name, f"{what} only repeats its caption"
            elif len(sources[letters(said)]) > 1:
                yield name, f"{what} is not the only one described so"


def visit(page, name: str, base: str, heard: list[str], site: Path) -> tuple[dict[str, list[str]], dict, list[dict]]:
    """Open a page and ask it everything: what was found by question, its links and places, its pictures."""
    found = {}
    show(page, base + name)
    found["mathematics"] = page.evaluate(MATHEMATICS)
    places, pictures = page.evaluate(LINKS), page.evaluate(PICTURES)
    for one in pictures:  # the same picture may stand in two places, under two names
        file = site / unquote(urlsplit(one["source"]).path).lstrip("/")
        one["content"] = file.read_bytes() if one["source"].startswith(base) else (name, one["said"])
    found["keyboard"] = walk(page)
    found["source"], found["copy"] = misdelivered(page, source(name)), miscopied(page, source(name))
    page.evaluate(
        "() => { for (const one of document.querySelectorAll('details')) one.open = true; document.activeElement.blur(); }"
    )

    found["dark"] = fading(page)
    resize(page, NARROW)
    found["narrow"] = page.evaluate(OVERFLOW)
    page.evaluate(MERGE)
    found["axe"] = [f"on a telephone, {one}" for one in axe(page, *OF_SIZE)]
    page.set_viewport_size(WIDE)
    found["axe"] += axe(page, but=OF_COLOUR)
    page.evaluate(KEEP)
    turn(page, "dark")
    found["dark"] += page.evaluate(LIGHT_ISLANDS)
    page.evaluate(KEEP)
    page.evaluate("() => window.shorten()")
    found["axe"] += [f"in the dark, {one}" for one in axe(page, *OF_COLOUR)]
    turn(page, "light")
    found["axe"] += axe(page, *OF_COLOUR)
    found["quiet"] = list(dict.fromkeys(heard))
    return found, places, pictures


@pytest.fixture(scope="module")
def found(chrome, built, address):
    """What every page was found wanting in: by question, one sentence for each problem."""
    problems, places, pictures = {question: [] for question in QUESTIONS}, {}, {}
    for name in names(built):
        with window(chrome, permissions=["clipboard-read", "clipboard-write"]) as page:
            heard = listen(page, address)
            wrong, places[name], pictures[name] = visit(page, name, address, heard, built)
        for question, sentences in wrong.items():
            problems[question] += [f"{name}: {one}" for one in sentences]
    problems["links"] += [f"{name}: {one}" for name, one in unresolved(places, address, built)]
    problems["pictures"] += [f"{name}: {one}" for name, one in nondescript(pictures)]
    assert sum(map(len, pictures.values())) > 3 * len(chapter_paths())  # the figures were seen at all
    return problems


@pytest.mark.parametrize("question", QUESTIONS, ids=QUESTIONS)
def test_every_page_finds_its_reader_well(question, found):
    assert found[question] == []


def test_the_first_page_leads_to_the_front_page(chrome, address):
    with window(chrome) as page:
        page.goto(address)
        page.wait_for_url(f"{address}intro.html")
        assert page.text_content("h1").startswith("Unrolled")


# What a reader does


PHRASE, ANSWER = "Momentum crosses flat places", "chapters/01-backpropagation.html"


def test_the_copy_button_is_seen_and_works_by_keyboard(chrome, address):
    with window(chrome, permissions=["clipboard-read", "clipboard-write"]) as page:
        show(page, address + "chapters/01-backpropagation.html")
        page.focus(".cell_input .copybtn:visible")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert (
            page.evaluate("() => getComputedStyle(document.activeElement).opacity") == "1"
        )  # else it shows under a mouse only
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)  # the theme's script lets go of the focus, and ours takes it up
        code = page.eval_on_selector(".copybtn:focus", "one => one.parentElement.querySelector('pre').textContent")
        page.wait_for_function("async code => await navigator.clipboard.readText() === code", arg=code.strip())


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_the_search_finds_a_phrase_by_keyboard(chrome, address, built, scheme):
    base = address if scheme == "http" else built.as_uri() + "/"
    with window(chrome) as page:
        show(page, base + "chapters/12-fast-weights.html")
        page.keyboard.press("Control+k")
        page.keyboard.type(PHRASE)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}search.html?q=*")
        page.wait_for_selector(f"#search-results a[href^='{ANSWER}']")
        page.wait_for_function("() => !/Searching/.test(document.querySelector('#search-results h2').textContent)")
        assert page.eval_on_selector("#search-results li a", "one => one.getAttribute('href')").startswith(ANSWER)
        page.focus("#search-results li a")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}{ANSWER}**")


def in_focus(page, selector: str) -> bool:
    return page.evaluate("selector => document.activeElement.matches(selector)", selector)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_search_opens_and_closes_by_keyboard_and_gives_the_focus_back(chrome, address, size):
    with window(chrome, viewport=size) as page:
        show(page, address + "status.html")
        for opener, keys in ((".search-button__button:visible", "Enter"), (".bd-article td a", "Control+k")):
            page.focus(opener)
            page.evaluate("() => document.activeElement.classList.add('opener')")
            page.keyboard.press(keys)
            page.wait_for_selector(".search-button__wrapper.show", state="attached")
            assert in_focus(page, "#search-input")
            for key in ("Tab", "Shift+Tab"):  # what lies behind it is not in reach
                page.keyboard.press(key)
                assert in_focus(page, "#search-input")
            page.keyboard.press("Escape")
            page.wait_for_selector(".search-button__wrapper.show", state="detached")
            page.wait_for_function("() => document.activeElement.matches('.opener')")
            page.evaluate("() => document.activeElement.classList.remove('opener')")


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_a_sidebar_on_a_telephone_opens_and_closes_by_keyboard_and_gives_the_focus_back(chrome, address, which):
    with window(chrome, viewport=NARROW) as page:
        show(page, address + "chapters/03-truncated-bptt.html")
        button, sidebar = f".{which}-toggle:visible", f".bd-sidebar-{which}"
        page.focus(button)
        page.keyboard.press("Enter")
        page.wait_for_function("sidebar => document.activeElement.closest(sidebar)", arg=sidebar)
        assert page.evaluate(
            "() => { const at = document.activeElement.getBoundingClientRect(); return at.left >= 0 && at.right <= innerWidth; }"
        )
        page.keyboard.press("Tab")
        assert page.evaluate("sidebar => !!document.activeElement.closest(sidebar)", sidebar)
        page.keyboard.press("Escape")
        page.wait_for_function("button => document.activeElement.matches(button)", arg=f".{which}-toggle")
        page.wait_for_function(
            "sidebar => !document.querySelector(sidebar).checkVisibility({visibilityProperty: true})", arg=sidebar
        )
        for _ in range(30):  # nothing that was put away is in reach
            page.keyboard.press("Tab")
            assert page.evaluate(
                "() => document.activeElement === document.body || document.activeElement.checkVisibility({visibilityProperty: true})"
            )
            assert not page.evaluate("sidebar => !!document.activeElement.closest(sidebar)", sidebar)


def test_the_first_press_of_tab_offers_to_skip_to_the_text(chrome, address):
    with window(chrome) as page:
        show(page, address + "chapters/01-backpropagation.html")
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.textContent") == "Skip to main content"
        assert page.evaluate("() => document.activeElement.getBoundingClientRect().top") >= 0
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("() => !!document.activeElement.closest('#main-content')")


def test_a_folded_solution_opens_and_closes_with_enter_and_is_called_what_it_shows(chrome, address):
    with window(chrome) as page:
        show(page, address + "chapters/01-backpropagation.html")
        fold = ".tag_solution details.hide"
        page.focus(f"{fold} > summary")
        for is_open, called in (
            (False, "Show the solution"),
            (True, "Hide the solution"),
            (False, "Show the solution"),
        ):
            page.wait_for_function(
                "([fold, called]) => document.querySelector(`${fold} > summary`).getAttribute('aria-label') === called",
                arg=[fold, called],
            )
            assert page.eval_on_selector(fold, "one => one.open") is is_open
            assert page.is_visible(f"{fold} pre") is is_open
            page.keyboard.press("Enter")


def test_the_theme_switch_turns_figures_dark_and_is_remembered(chrome, address):
    with window(chrome) as page:
        show(page, address + "chapters/01-backpropagation.html")
        figure = page.query_selector(".cell_output img")
        light = photograph(figure)
        page.focus(".theme-switch-button:visible")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
        assert illegible(light, photograph(figure)) == []
        page.goto(address + "status.html")
        assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"


def test_a_copy_on_a_disc_is_read_without_a_server(chrome, built):
    base = built.as_uri() + "/"
    for name in ("intro.html", "ledger.html", "notation.html", ANSWER):
        with window(chrome) as page:
            heard = listen(page, base)
            show(page, base + name)
            # The theme asks for its letters twice: ahead, which no browser does from a disc, and by its style sheet, which all do.
            assert [one for one in heard if "/webfonts/" not in one] == []
            assert page.evaluate("() => [...document.fonts].some(one => one.status === 'loaded')")
            assert page.evaluate(MATHEMATICS) == []


# The checks themselves, on small pages that are wrong


def at(chrome, folder: Path, body: str, question, **settings):
    """What `question` yields about a page with this body, served from a folder."""
    (folder / "page.html").write_text(
        f'<!DOCTYPE html><html lang="en"><title>A page</title><body>{body}</body></html>', encoding="utf-8"
    )
    with served(folder) as base, window(chrome, **settings) as page:
        heard = listen(page, base)
        show(page, base + "page.html")
        return question(page, heard)


def asks(script: str):
    return lambda page, heard: page.evaluate(script)


BUTTON = "<button>Press</button>"
WIDE_TABLE = "<table><td style='min-width: 500px'>9</table>"


def hearing(page, heard):
    return heard


def tabbing(page, heard):
    return walk(page)


WRONG = {
    "an image elsewhere": (
        "<img src='https://example.org/a.png'>",
        hearing,
        "asks another machine for https://example.org/a.png",
    ),
    "a missing script": ("<script src='gone.js'></script>", hearing, "gone.js (404)"),
    "an exception": ("<script>undefined.x</script>", hearing, "breaks: "),
    "a warning": ("<script>console.warn('mind')</script>", hearing, "says 'mind'"),
    "a formula without MathJax": (
        r"<p><span class=math>\(x\)</span>",
        asks(MATHEMATICS),
        "has 1 formulas, of which 0 are typeset",
    ),
    "a formula not understood": (r"<mjx-merror>\frca</mjx-merror>", asks(MATHEMATICS), r"does not understand: \frca"),
    "dollars": ("<p>Take $x$", asks(MATHEMATICS), "as it was typed: Take $x$"),
    "TeX in the text": (r"<p>Take \alpha", asks(MATHEMATICS), r"as it was typed: Take \alpha"),
    "a wide table": (WIDE_TABLE, asks(OVERFLOW), "is 51"),
    "a table cut off": (
        f"<main style='overflow: hidden'>{WIDE_TABLE}</main>",
        asks(OVERFLOW),
        'cuts off <main class=""> (9)',
    ),
    "a scroll not by keyboard": (
        f"<main class=bd-article><div style='overflow: auto'>{WIDE_TABLE}</div></main>",
        asks(OVERFLOW),
        'scrolls <div class=""> (9), but not by keyboard',
    ),
    "a table out of reach": (
        "<main class=bd-article><div style='overflow: auto' tabindex=0><table style='margin-left: -50px'><td>9",
        asks(OVERFLOW),
        'does not let one reach all of <table class=""> (9)',
    ),
    "a focus not seen": (
        f"<style>button {{ outline: none !important }}</style>{BUTTON}",
        tabbing,
        'the focus is not seen on button "Press"',
    ),
    "an order of its own": (
        f"{BUTTON}<a href='#' tabindex=3>Go</a>",
        tabbing,
        'a "Go" asks to be reached out of order',
    ),
    "a button for mice": ("<div role=button>Press</div>", tabbing, 'div "Press" cannot be reached by keyboard'),
    "a link out of sight": (
        "<a href='#' style='position: fixed; left: -900px'>Go</a>",
        tabbing,
        'a "Go" is out of sight when it has the focus',
    ),
    "a trap": (
        f"{BUTTON}<button onkeydown='event.preventDefault()'>Stay</button><button>Go on</button>",
        tabbing,
        'Tab does not reach button "Go on"',
    ),
    "an unnamed button": ("<button></button>", lambda page, _: axe(page), "button-name: <button></button>"),
    "pale text": ("<p style='color: #999'>Pale", lambda page, _: axe(page, *OF_COLOUR), "color-contrast: <p"),
    "a light island": (
        "<div style='background: #ddd'>Table</div>",
        asks(LIGHT_ISLANDS),
        'stays light in the dark: <div class=""> Table',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_check_finds_what_it_is_for(case, chrome, tmp_path):
    body, question, sentence = WRONG[case]
    found = at(chrome, tmp_path, body, question, viewport=NARROW)
    assert any(sentence in one for one in found), found


def test_each_check_lets_pass_what_is_right(chrome, tmp_path):
    body = (
        f"<a href='#main'>Skip</a><main id=main class=bd-article>{BUTTON}<h1>A page</h1>"
        "<input type=radio name=a aria-label=a><input type=radio name=a aria-label=b>"
        f"<div style='overflow: auto' tabindex=0>{WIDE_TABLE}</div>"
        "<p>A code <code>$x</code> and <span class=math><mjx-container>x</mjx-container></span></main>"
    )
    for question in (hearing, tabbing, asks(MATHEMATICS), asks(OVERFLOW), lambda page, _: axe(page)):
        assert at(chrome, tmp_path, body, question, viewport=NARROW) == []


def test_axe_finds_pale_code_whatever_was_merged(chrome, tmp_path):
    code = "".join(
        f"<span class=k>word</span> <span class=n>{'pale' if i == 7 else 'name'}</span>\n" for i in range(20)
    )
    body = f"<style>.n {{ color: #aaa }}</style><main><h1>A page</h1><pre>{code}</pre></main>"

    def question(page, _):
        page.evaluate(MERGE)
        assert page.evaluate("() => document.querySelectorAll('pre span').length") == 2
        assert "pale" in page.evaluate("() => document.querySelector('pre').textContent")
        return axe(page)

    (one,) = at(chrome, tmp_path, body, question)
    assert one.startswith('color-contrast: <span class="n">')


def test_a_wrong_source_or_copy_is_found(chrome, tmp_path):
    path = chapter_paths()[0]
    (tmp_path / path.name).write_text("another notebook")
    body = (
        "<div class=dropdown-launch-buttons><a href='https://elsewhere/'>Colab</a></div><div class=dropdown-download-buttons>"
        f"<button>Download</button><a href='{path.name}' download='other.ipynb'>.ipynb</a></div>"
    )
    wanted = [colab(path.name, ROOT)]
    assert at(chrome, tmp_path, body, lambda page, _: misdelivered(page, path)) == [
        f"opens ['https://elsewhere/'] where it should open {wanted}",
        f"gives other.ipynb in place of {path.name}",
        f"gives something else than {path.name} as it is stored",
    ]
    assert at(chrome, tmp_path, "", lambda page, _: misdelivered(page, path))[1] == f"does not offer {path.name}"
    (tmp_path / "one.ipynb").write_text(
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "id": "a", '
        '"source": "x = 1", "metadata": {}, "outputs": [], "execution_count": 1}]}'
    )
    asked, allowed = lambda page, _: miscopied(page, tmp_path / "one.ipynb"), ["clipboard-read", "clipboard-write"]
    copies = (
        "<div class=cell_input><pre id=a>x = 1\n</pre><button class=copybtn data-clipboard-target='#a' "
        "onclick='navigator.clipboard.writeText(\"{}\")'>Copy</button></div>"
    )
    assert at(chrome, tmp_path, copies.format("x = 1"), asked, permissions=allowed) == []
    assert at(chrome, tmp_path, copies.format(">>> x = 1"), asked, permissions=allowed) == [
        "copies '>>> x = 1' for 'x = 1'"
    ]
    assert at(chrome, tmp_path, "", asked, permissions=allowed) == ["has 0 buttons that copy, and 1 cells"]


def test_a_link_to_a_page_or_place_that_is_not_there(tmp_path):
    (tmp_path / "b.html").touch()
    links = ["http://here/b.html#gone", "http://here/b.html#kept", "http://here/c.html", "http://elsewhere/"]
    pages = {"a.html": {"links": links, "ids": []}, "b.html": {"links": [], "ids": ["kept"]}}
    assert [*unresolved(pages, "http://here/", tmp_path)] == [
        ("a.html", "the page behind b.html#gone has no such place"),
        ("a.html", "the link c.html leads nowhere"),
    ]


def test_a_description_must_be_long_its_own_and_more_than_the_caption():
    good = "A line that falls from two to one in five updates, and then stays."
    picture = {"said": good, "caption": "Loss", "title": "", "content": b"1"}
    assert [*nondescript({"a.html": [picture, picture | {"caption": ""}]})] == []  # one picture in two places
    for change, sentence in (
        ({"said": "Loss"}, "the figure described as 'Loss' needs 40 characters"),
        ({"caption": f"Figure 1. {good}"}, f"the figure described as {good[:50]!r} only repeats its caption"),
        ({"title": good}, f"the figure described as {good[:50]!r} only repeats its caption"),
    ):
        assert [*nondescript({"a.html": [picture | change]})] == [("a.html", sentence)]
    twice = [*nondescript({"a.html": [picture], "b.html": [picture | {"content": b"2"}]})]
    assert twice == [
        (name, f"the figure described as {good[:50]!r} is not the only one described so")
        for name in ("a.html", "b.html")
    ]


def test_a_figure_that_stays_light_or_fades_in_the_dark_is_found():
    light = np.full((20, 20, 3), 255)
    light[5:15, 8:12] = 30
    assert illegible(light, 255 - light) == []
    assert illegible(light, light) == ["has the ground (255, 255, 255) in the dark"]
    faded = np.where(light == 30, 60, 20)
    assert illegible(light, faded) == ["loses 100% of its ink in the dark"]
    assert illegible(light[:10], 255 - light) == ["has another size in the dark"]
    assert illegible(np.full((20, 20, 3), 255), np.zeros((20, 20, 3))) == ["has no ink"]


# Without a browser


def test_without_a_browser_the_tests_are_skipped_and_say_so():
    environment = os.environ | {"PATH": "", "UNROLLED_BROWSER": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "-k",
            "theme_switch or every_page_finds or pass_what_is_right",
            str(Path(__file__)),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "passed" not in result.stdout
    assert result.returncode == 0, result.stdout
    *_, skipped, other = [line for line in result.stdout.splitlines() if line.startswith(("SKIPPED", "="))]
    assert skipped.endswith(NO_BROWSER)
    assert re.search(rf"={{5}} {len(QUESTIONS) + 2} skipped, \d+ deselected in ", other)
