"""Keep one issue open for each thing that fails in the weekly run: `python -m tools.weekly REPORTS`.

Called at the end of `.github/workflows/weekly.yml`, with the folder of what its jobs reported (`colab.md` for the job
`colab`), their results in the variable NEEDS (GitHub's `toJSON(needs)`) and the run's address in RUN. A job that fails
opens an issue, or comments on the one that its last failure opened; a job that passes closes it. Needs `gh` and the
standard library alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

# By job; the title is how its issue is found again.
TITLES = {
    "colab": "Weekly run: chapters fail in Google Colab's image",
    "alone": "Weekly run: chapters fail on a bare machine with the newest packages",
    "newest": "Weekly run: the package fails with the newest versions of what it needs",
}
MOST = 60_000  # characters of an issue; GitHub takes 65,536


def gh(*arguments: str, body: str = "") -> str:
    """What the command `gh issue …` prints, given `body` on its standard input. Raises SystemExit if it fails."""
    done = subprocess.run(["gh", "issue", *arguments], input=body, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"gh issue {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def keep(job: str, result: str, reports: Path, run: str, issues: dict[str, int]) -> str:
    """Open, continue or close the issue of one job, among the open `issues` (numbers by title); what was done."""
    title = TITLES[job]
    number = issues.get(title)
    if result == "success":
        if number is None:
            return f"{job} passed."
        gh("close", str(number), "--comment", f"It passes again: {run}")
        return f"{job} passes again: issue {number} is closed."
    file = reports / f"{job}.md"
    report = file.read_text(encoding="utf-8")[:MOST] if file.exists() else ""
    missing = f"The job ended ({result}) before it could say what failed; its log may."
    body = f"{report or missing}\n\nThe whole log: {run}\n"
    if number is None:
        gh("create", "--title", title, "--body-file", "-", body=body)
        return f"{job} failed: an issue is opened."
    gh("comment", str(number), "--body-file", "-", body=body)
    return f"{job} failed again: issue {number} says so."


def main(arguments: list[str]) -> int:
    needs = json.loads(os.environ["NEEDS"])
    # Only those that an earlier run opened: an issue of the same title by someone else is not this one's to close.
    found = gh("list", "--app", "github-actions", "--state", "open", "--limit", "1000", "--json", "number,title")
    issues = {issue["title"]: issue["number"] for issue in json.loads(found)}
    for job, outcome in needs.items():
        print(keep(job, outcome["result"], Path(arguments[0]), os.environ["RUN"], issues))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
