"""The stamp: which code a chapter's stored outputs came from, and whether that is still the code on the page.

`python -m tools.stamp` lists every chapter as fresh or stale, and why; it ends with status 1 if any is stale.
"""

import ast
import json
from datetime import date
from pathlib import Path

from tools.book import ROOT, RUN_MIME, chapter_paths, code_cells, finish, read, records, tags
from tools.syntax import Reach, digest, dump


def parsed_cells(notebook) -> list[ast.Module]:
    """The syntax trees of the code cells, without the `setup` cell, which holds only the repository's address.

    Raises ValueError naming the first cell that is not plain Python.
    """
    trees = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if "setup" not in tags(cell):
            try:
                trees.append(ast.parse(cell.source))
            except SyntaxError as error:
                raise ValueError(f"code cell {number} is not plain Python (line {error.lineno}: {error.msg})") from None
    return trees


def code_hash(notebook) -> str:
    """SHA-256 of the chapter's code, cell by cell; a cell that holds no statement does not count.

    Raises ValueError naming the first cell that is not plain Python.
    """
    cells = [dump(tree.body) for tree in parsed_cells(notebook)]
    return digest("\n".join(cell for cell in cells if cell != "[]"))


def output_hash(notebook) -> str:
    """SHA-256 of all stored outputs, so that one edited by hand, or made by another run, is noticed."""
    outputs = [dict(output, execution_count=None) for cell in code_cells(notebook) for output in cell.outputs]
    return digest(json.dumps(outputs, sort_keys=True))


def parameters(notebook) -> dict:
    """The published settings: names and values assigned in the cell tagged `parameters`.

    Raises ValueError if there is not exactly one such cell, or if it holds anything but assignments of literals.
    """
    cells = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise ValueError(f"there must be exactly one code cell tagged `parameters` (found {len(cells)})")
    values = {}
    try:
        for node in ast.parse(cells[0].source).body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            values |= {target.id: ast.literal_eval(node.value) for target in targets}
        return json.loads(json.dumps(values))
    except (AttributeError, ValueError, TypeError, SyntaxError):
        raise ValueError("the `parameters` cell must hold only assignments of literals, such as `seeds = 5`") from None


def shared_hashes(notebook, root: Path = ROOT) -> dict[str, str]:
    """The hash of every definition of `shared` (in `root`) that the chapter reaches, by its dotted path.

    Raises ValueError naming the cell or module that is not plain Python.
    """
    reach = Reach(root)
    reach.code(parsed_cells(notebook))
    return dict(sorted(reach.hashes.items()))


def make_stamp(notebook, settings: str, parameters: dict, seconds: float, root: Path = ROOT) -> dict:
    """The record of a run which has just filled in the notebook's outputs; `settings` is "published" or "quick"."""
    return {
        "settings": settings,
        "code": code_hash(notebook),
        "shared": shared_hashes(notebook, root),
        "outputs": output_hash(notebook),
        "parameters": parameters,
        **reported(notebook),
        "seconds": round(seconds, 1),
        "date": date.today().isoformat(),
    }


def reported(notebook) -> dict:
    """The data, device and versions that the run itself reports in its outputs."""
    runs = list(records(notebook, RUN_MIME))
    return {
        "data": sorted({name for run in runs for name in run["data"]}),
        "device": runs[0]["device"] if runs else "",
        "versions": runs[0]["versions"] if runs else {},
    }


def stale_reasons(notebook, root: Path = ROOT) -> list[str]:
    """Why the stored outputs are not those of the code on the page; empty if they are."""
    stamp = notebook.metadata.get("unrolled", {})
    if stamp.get("settings") != "published":
        return ["never executed at published settings"]
    try:
        code, now, settings = code_hash(notebook), shared_hashes(notebook, root), parameters(notebook)
    except ValueError as error:
        return [str(error)]
    before = stamp.get("shared", {})
    reasons = [] if code == stamp.get("code") else ["code cells changed"]
    reasons += [] if settings == stamp.get("parameters") else ["the published settings changed"]
    reasons += [f"{name} changed" for name in now if name in before and now[name] != before[name]]
    reasons += [f"{name} is now used" for name in now if name not in before]
    reasons += [f"{name} is gone" for name in before if name not in now]
    if output_hash(notebook) != stamp.get("outputs"):
        reasons.append("its stored outputs are not those of the stamped run")
    if any(stamp.get(key) != value for key, value in reported(notebook).items()):
        reasons.append("its stamp names another device, data or versions than its outputs")
    return reasons


def main() -> int:
    stale = 0
    for path in chapter_paths():
        reasons = stale_reasons(read(path))
        name = path.relative_to(ROOT)
        print(f"{name} is stale: {'; '.join(reasons)}. Run make refresh." if reasons else f"{name} is fresh.")
        stale += bool(reasons)
    return 1 if stale else 0


if __name__ == "__main__":
    finish(main)
