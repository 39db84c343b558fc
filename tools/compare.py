"""Which claims were measured otherwise: `python -m tools.compare COMMIT` compares the stored chapters with those of COMMIT.

After a run on another machine this says which verdicts are new, and so which sentences want to be read again. Every claim
that both have is a line of the table that is printed; what is new is said at the end.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tools.book import ROOT, BookError, claims, finish, parsed, read
from tools.wording import how_many


class Compared(NamedTuple):
    """A claim, its verdict and what was measured, at two times."""

    claim: str
    verdict_then: str
    then: str
    verdict_now: str
    now: str

    @property
    def alike(self) -> bool:
        return self[1:3] == self[3:]

    @property
    def turned(self) -> bool:
        return self.verdict_then != self.verdict_now


def compared(before: list[dict], after: list[dict]) -> list[Compared]:
    """The claims that both have, in the order of the later ones."""
    known = {claim["id"]: claim for claim in before}
    return [Compared(claim["id"], *said(known[claim["id"]]), *said(claim)) for claim in after if claim["id"] in known]


def said(claim: dict) -> tuple[str, str]:
    return claim["verdict"], claim["measured"]["summary"]


def claims_at(commit: str, path: Path, root: Path) -> list[dict]:
    """The claims that the chapter had at a commit, none if it was not there yet."""
    name = path.relative_to(root).as_posix()
    shown = git(root, "show", f"{commit}:{name}")
    return claims(parsed(shown.stdout, path)) if shown.returncode == 0 else []


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, encoding="utf-8")
    except FileNotFoundError:
        raise BookError("git is not installed, and it is what knows the earlier runs.") from None


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="whose chapters to compare with, such as HEAD~1")
    commit = parser.parse_args(arguments).commit
    if git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}").returncode:
        raise BookError(f"There is no commit {commit}.")
    rows = []
    for path in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb")):
        rows += compared(claims_at(commit, path, root), claims(read(path)))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Compared._fields)
    writer.writerows(rows)
    turned = [row for row in rows if row.turned]
    print(f"{how_many(len(rows), 'claim')}, {sum(row.alike for row in rows)} of them measured alike.", file=sys.stderr)
    for row in turned:
        print(f"{row.claim}: {row.verdict_then}, now {row.verdict_now}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
