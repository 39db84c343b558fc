"""The site: `python -m tools.site build` builds and checks it, `check` checks it as built, `serve` shows it.

A build is always fresh and strict: a warning is an error. It is made beside the last good site and takes its place only
when every check has passed, so that a failure never destroys what could be read before.
"""

import contextlib
import functools
import http.server
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from tools.book import ROOT, claims, finish, only_one, read, title
from tools.check import colab

SITE = ROOT / "_build" / "html"

# What a browser fetches by itself when it opens a page, as (tag, attribute); the rest a reader may follow or not.
FETCHED = {
    *((tag, "src") for tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "track", "input")),
    *((tag, "srcset") for tag in ("img", "source")),
    ("object", "data"),
    ("video", "poster"),
    ("image", "href"),
    ("use", "href"),
}
NOT_FETCHED_LINKS = {"canonical", "license", "author", "index", "search", "next", "prev"}
CSS_FETCH = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")
SCRIPT_FETCH = re.compile(r"['\"](?:https?:)?//[^'\"\s]+\.m?js(?:\?[^'\"]*)?['\"]|['\"]https?://[^'\"\s]+\.css['\"]")


class Page(HTMLParser):
    """What the checks need to know of one HTML page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.images: list[dict] = []
        self.text: list[str] = []  # without blocks of code
        self.prose: list[str] = []  # without any code
        self.inside: list[str] = []  # the open elements whose text is code
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = {name: value or "" for name, value in attributes}
        self.ids.update(attributes[name] for name in ("id", "name") if name in attributes)
        for name, value in attributes.items():
            if (tag, name) in FETCHED:
                self.fetched += [one.split()[0] for one in value.split(",")] if name == "srcset" else [value]
            if name == "style":
                self.fetched += outside_in_css(value)
        if tag == "link" and not NOT_FETCHED_LINKS & set(attributes.get("rel", "").split()):
            self.fetched.append(attributes.get("href", ""))
        if tag in ("a", "area") and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        if tag in ("script", "style", "pre", "code"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.prose.append(data)
        if self.inside in ([], ["code"]):
            self.text.append(data)
        elif self.inside[-1] == "style":
            self.fetched += outside_in_css(data)
        elif self.inside[-1] == "script":
            self.fetched += [match.group().strip("'\"") for match in SCRIPT_FETCH.finditer(data)]


def outside_in_css(text: str) -> list[str]:
    return [next(filter(None, match)) for match in CSS_FETCH.findall(text)]


def is_outside(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


def letters(text: str) -> str:
    """The letters and digits of a text, by which a sentence is recognised whatever its mark-up."""
    return "".join(character for character in text if character.isalnum())


def check_outside(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Nothing on a page may be fetched from another machine, so that the book reads the same without a network."""
    for path, page in pages.items():
        yield from (f"{path} loads {one} from another machine" for one in page.fetched if is_outside(one))
    for path in sorted(site.rglob("*.css")):
        for one in outside_in_css(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)} loads {one} from another machine"


def check_links(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if not (site / target).is_file():
                yield f"{path}: the link {link} leads nowhere"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path}: the page behind {link} has no such place"


def check_images(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Every picture needs a text for those who do not see it; a mere ornament, such as the logo, an empty one."""
    for path, page in pages.items():
        for image in page.images:
            if not image.get("alt", "").strip() and "logo__image" not in image.get("class", ""):
                yield f"{path}: the image {image.get('src', '')[:60]} has no alternative text"


def check_mathematics(pages: dict[Path, Page]) -> Iterator[str]:
    """A formula that was understood has no dollar signs left."""
    for path, page in pages.items():
        yield from (
            f"{path}: a formula is shown as it is typed: {text.strip()[:60]!r}" for text in page.prose if "$" in text
        )


def check_chapters(site: Path, pages: dict[Path, Page], root: Path) -> Iterator[str]:
    """Each chapter is on the site, opens the right notebook, shows its claims, and can be found by the search."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    listed = {entry["file"] for part in contents["parts"] for entry in part["chapters"]}
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    found = json.loads(index[index.index("(") + 1 : index.rindex(")")])
    for path in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb")):
        name, notebook = f"chapters/{path.stem}", read(path)
        page = pages.get(Path(f"{name}.html"))
        if name not in listed or page is None:
            yield f"{name} is not on the site: add it to _toc.yml"
            continue
        if colab(path.name, root) not in page.links:
            yield f"{name}: no button opens {colab(path.name, root)}"
        if letters(title(notebook)) not in map(letters, found["titles"]):
            yield f"{name}: the search does not know the title {title(notebook)!r}"
        for where in (page, pages[Path("ledger.html")]):
            text = letters("".join(where.text))
            for claim in claims(notebook):
                if letters(claim["text"]) not in text:
                    which = "its page" if where is page else "the ledger"
                    yield f"{name}: the claim {claim['id']!r} is missing from {which}"


def problems(site: Path, root: Path = ROOT) -> list[str]:
    """Everything that is wrong with a built site, one sentence each."""
    paths = [path.relative_to(site) for path in sorted(site.rglob("*.html"))]
    pages = {path: Page((site / path).read_text(encoding="utf-8")) for path in paths if path.parts[0] != "_static"}
    found = [
        *check_outside(site, pages),
        *check_links(site, pages),
        *check_images(site, pages),
        *check_mathematics(pages),
    ]
    return list(dict.fromkeys([*found, *check_chapters(site, pages, root)]))


class Progress(io.TextIOBase):
    """Of all that Sphinx says, lets through which page it is reading or writing."""

    def __init__(self, shown):
        self.shown, self.line = shown, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if "%]" in line:
                print(re.sub(r"\x1b\[[\d;]*m", "", line), file=self.shown, flush=True)
        return len(text)


def build(site: Path = SITE, root: Path = ROOT) -> list[str]:
    """Build the site and put it at `site` if there is nothing wrong with it; what is wrong otherwise.

    Raises BookError if a chapter cannot be read, or if another build for the same place is under way.
    """
    from jupyter_book.sphinx import build_sphinx
    from sphinx.util.console import nocolor

    if not sys.stderr.isatty():
        nocolor()
    for path in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb")):
        read(path)  # a damaged one ends the build here in a sentence, and not in Sphinx
    site.parent.mkdir(parents=True, exist_ok=True)
    only_build = only_one(site.parent / "running" / "site", "build of the site")
    with only_build, tempfile.TemporaryDirectory(dir=site.parent, prefix="site-") as name:
        for left in site.parent.glob("site-*"):  # by builds that were killed
            if left != Path(name):
                shutil.rmtree(left)
        new = Path(name) / "html"
        with contextlib.redirect_stdout(Progress(sys.stdout)):
            failed = build_sphinx(
                root,
                new,
                path_config=root / "_config.yml",
                noconfig=True,  # there is no conf.py
                confoverrides={"latex_individualpages": False, "nitpicky": True},  # the first is asked for by name
                freshenv=True,
                warningiserror=True,
                keep_going=True,
            )
        if isinstance(failed, KeyboardInterrupt):
            raise failed
        found = ["Sphinx found what is shown above"] if failed else problems(new, root)
        if not found:
            if site.exists():
                site.rename(Path(name) / "old")
            new.rename(site)
    return found


def serve(site: Path = SITE) -> None:
    """Show the built site on this machine until interrupted."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler)
    except OSError:  # somebody else has that port
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(f"The book is at http://127.0.0.1:{server.server_port}/ until you press Ctrl-C.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command not in ("build", "check", "serve"):
        print(__doc__.partition("\n")[0], file=sys.stderr)
        return 2
    if command != "build" and not (SITE / "index.html").exists():
        print("The site has not been built yet: run `make book` first.", file=sys.stderr)
        return 1
    if command == "serve":
        serve()
        return 0
    start = time.perf_counter()
    try:
        found = build() if command == "build" else problems(SITE)
    except KeyboardInterrupt:
        print("\nInterrupted: the site is as it was before.", file=sys.stderr)
        return 130
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        kept = ", and the site is as it was before" if command == "build" else ""
        print(f"The site has {len(found)} problem{'s' * (len(found) > 1)}, shown above{kept}.", file=sys.stderr)
        return 1
    pages = len(list(SITE.rglob("*.html")))
    print(f"The site is built and checked: {pages} pages in {time.perf_counter() - start:.0f} s.")
    print(f"Open {SITE / 'index.html'} in a browser, or run `make serve`.")
    return 0


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
