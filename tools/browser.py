"""A browser for what only a browser can tell: the tests of the site, and the book as a PDF."""

import contextlib
import os
import shutil
from collections.abc import Iterator

# Nothing but pages: no first-run pages, updates, accounts or reports, each of which would look for another machine.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def chromium() -> str | None:
    """The program that `UNROLLED_BROWSER` names, or else the first Chromium or Chrome on the path; None if there is none."""
    return shutil.which(os.environ.get("UNROLLED_BROWSER", "")) or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser() -> Iterator:
    """A running headless browser (playwright's `Browser`), closed afterwards.

    Raises RuntimeError with a sentence if this machine has none.
    """
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        raise RuntimeError(
            "No browser was found: install Chromium (on Debian or Ubuntu, the package chromium), "
            "or set UNROLLED_BROWSER to the path of one."
        )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=[*FLAGS], chromium_sandbox=hasattr(os, "getuid") and os.getuid() != 0
        )
        try:
            yield opened
        finally:
            opened.close()
