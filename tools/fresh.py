"""Fresh virtual environments, for what must also run on machines other than this one.

Used by `tools.alone` and `tools.versions`. Needs the standard library alone.
"""

import json
import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
BOOK = ("unrolled", "__editable__", "shared")  # how the book's own package begins among others' files
KEPT_LINES = 60

SITES = "import json, site; print(json.dumps(site.getsitepackages()))"
VERSIONS = """
import importlib.metadata as metadata, platform, sys
found = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy")]
print(", ".join([f"Python {platform.python_version()}", *found]))
"""


class StepError(Exception):
    """A step that failed; the message says which one, `said` the last that it printed."""

    def __init__(self, what: str, said: str = ""):
        super().__init__(f"It failed at: {what}.")
        self.said = said


def step(what: str, command: list, **options) -> None:
    """Say what is being done and run it, showing what it prints. Raises StepError if it fails."""
    print(f"{what} …", flush=True)
    last = deque(maxlen=KEPT_LINES)
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen([str(part) for part in command], **options) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(COLOURS.sub("", line))
    if process.returncode:
        raise StepError(what, "".join(last))


def environment(folder: Path, packages: list[str], *, python: str = sys.executable) -> Path:
    """The interpreter of a new virtual environment in `folder`, made with `python`, with these packages from the index.

    Raises StepError if it cannot be made.
    """
    step("Making a fresh environment", [python, "-m", "venv", folder / "venv"])
    fresh = folder / "venv" / "bin" / "python"
    step(f"Installing {', '.join(packages)}", [fresh, "-m", "pip", "install", *packages])
    return fresh


def borrowing(folder: Path, python: str) -> Path:
    """The interpreter of a new virtual environment in `folder` that sees the packages of `python`, except the book's own.

    What is installed in it goes to `folder`, and nothing in the environment of `python` is changed. Raises StepError if
    it cannot be made.
    """
    step("Making a fresh environment", [python, "-m", "venv", "--without-pip", folder / "venv"])
    sites = subprocess.run([python, "-c", SITES], capture_output=True, text=True, check=True, env=clean()).stdout
    lent = []
    for number, site in enumerate(path for path in map(Path, json.loads(sites)) if path.is_dir()):
        lent.append(folder / "borrowed" / str(number))
        lent[-1].mkdir(parents=True)
        for entry in site.iterdir():
            if not entry.name.startswith(BOOK):
                (lent[-1] / entry.name).symlink_to(entry)
    # By a path file, so that pip takes them for packages of another environment and never removes one.
    own = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in lent))
    return folder / "venv" / "bin" / "python"


def clean() -> dict[str, str]:
    """This process's environment variables without those that would bring this checkout, or its data, along."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "UNROLLED_DATA")}


def versions(python: Path) -> str:
    """ "Python 3.12.3, torch 2.13.0, numpy 2.4.6", of that interpreter."""
    return subprocess.run(
        [python, "-c", VERSIONS], capture_output=True, text=True, check=True, env=clean()
    ).stdout.strip()


def quoted(text: str) -> str:
    """Text as a block of Markdown in which nothing has a meaning, only its end if it is long."""
    text = text[-4_000:].strip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"
