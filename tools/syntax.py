"""Python code as the book's stamp sees it: syntax trees as text and hashes, and what code reaches in `shared`.

Hashes are taken over syntax trees without docstrings, so layout, comments and prose never matter. Only what can be
reached counts, definition by definition: a function that no chapter calls makes none stale. Where it cannot be seen
which definition is meant (a module given to a function, `getattr`, `*`), the whole module counts. This file needs the
standard library alone, and gives the same hashes on all Python versions.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

REST = "<module>"  # the statements of a module that run on import and do not define a name
UNTOLD = ("ctx", "kind", "type_comment")  # fields that add nothing, and are not alike on all Python versions


def dump(node) -> str:
    """A syntax tree as text, without empty fields and statements that are only a string."""
    if isinstance(node, list):
        return "[" + ",".join(dump(one) for one in node if not is_text(one)) + "]"
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!a}"
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({dump(merged(node.values))})"
    if isinstance(node, ast.AST):
        fields = [(name, getattr(node, name, None)) for name in node._fields if name not in UNTOLD]
        told = [f"{name}={dump(value)}" for name, value in fields if value is not None and value != []]
        return f"{type(node).__name__}({','.join(told)})"
    return ascii(node)


def is_text(node) -> bool:
    """Whether a statement is a bare string, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def merged(values: list) -> list:
    """The parts of an f-string with neighbouring literals joined and none empty: Python versions differ in both."""
    parts = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], ast.Constant):
            value = ast.Constant(parts.pop().value + value.value)
        if not (isinstance(value, ast.Constant) and value.value == ""):
            parts.append(value)
    return parts


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def imports(nodes: list, package: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, dotted path it stands for, module that is imported) for every import in the syntax trees, however deep."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            yield from ((one.asname or one.name, f"{module}.{one.name}", module) for one in node.names)
        elif isinstance(node, ast.Import):
            for one in node.names:  # `import a.b` stands for a, `import a.b as c` for a.b
                first = one.name.split(".")[0]
                yield one.asname or first, one.name if one.asname else first, one.name


def chains(node) -> Iterator[list[str]]:
    """Every name that is used, with the attributes taken from it: `ledger.claim(x)` gives [ledger, claim] and [x]."""
    attributes, inner = [], node
    while isinstance(inner, ast.Attribute):
        attributes.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield [inner.id, *attributes]
    elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.startswith("shared."):
        yield inner.value.split(".")  # importlib.import_module("shared.tasks")
    else:
        for child in ast.iter_child_nodes(inner):
            yield from chains(child)


class Module:
    """A module of `shared`.

    `definitions` gives, for each name of its top level, the statements that define it and the dotted paths that it is
    imported from (as text); `rest` is every other statement that runs on import.
    """

    def __init__(self, name: str, file: Path):
        self.name = name
        self.package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, list] = {}
        self.rest: list = []
        try:
            self.body = ast.parse(file.read_text(encoding="utf-8")).body
        except SyntaxError as error:
            raise ValueError(f"{name} is not plain Python (line {error.lineno}: {error.msg})") from None
        for statement in self.body:
            self._add(statement)

    def _add(self, statement) -> None:
        names = []
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [statement.name]
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            names = [part.id for part in parts if isinstance(part, ast.Name)] if _all_names(parts) else []
        elif not is_text(statement):  # an import, or an `if` or `try` that may hold one
            for name, path, _ in imports([statement], self.package):
                if name != "*":
                    self.definitions.setdefault(name, []).append(path)
        for name in names:
            self.definitions.setdefault(name, []).append(statement)
        if not names and not is_text(statement) and not isinstance(statement, (ast.Import, ast.ImportFrom)):
            self.rest.append(statement)

    def registered(self) -> list[str]:
        """The definitions decorated with code of the book, which may keep and use them without naming them."""
        found = []
        for name, nodes in self.definitions.items():
            decorators = [one for node in nodes for one in getattr(node, "decorator_list", [])]
            sources = [s for one in decorators for chain in chains(one) for s in self.definitions.get(chain[0], [])]
            if any(not isinstance(source, str) or source.startswith("shared") for source in sources):
                found.append(name)
        return found


def _all_names(nodes: list) -> bool:
    return all(isinstance(node, ast.Name) for node in nodes)


class Reach:
    """Follows code through the package `shared` in `root`; `hashes` has all definitions that it met, by dotted path."""

    def __init__(self, root: Path):
        self.root = root
        self.hashes: dict[str, str] = {}
        self._modules: dict[str, Module | None] = {}
        self._seen: set = set()

    def module(self, name: str) -> Module | None:
        """The module of that dotted name, or None if `shared` has none."""
        if name not in self._modules:
            place = self.root.joinpath(*name.split("."))
            files = [place / "__init__.py", place.with_suffix(".py")] if name.split(".")[0] == "shared" else []
            self._modules[name] = next((Module(name, file) for file in files if file.is_file()), None)
        return self._modules[name]

    def _first(self, *what) -> bool:
        new = what not in self._seen
        self._seen.add(what)
        return new

    def code(self, nodes: list, module: Module | None = None) -> None:
        """Follow everything that these statements (of a chapter, or of `module`) use."""
        bound = {"shared": ["shared"]}
        for name, path, imported in imports(nodes, module.package if module else ""):
            bound.setdefault(name, []).append(path)
            self.run(imported)
            self.run(path)
        for first, *rest in (chain for node in nodes for chain in chains(node)):
            for path in bound.get(first, []):
                self.path([*path.split("."), *rest])
            if module and first in module.definitions:
                self.definition(module, first, rest)

    def run(self, path: str) -> None:
        """Count what importing every module along a dotted path executes."""
        parts = path.split(".")
        if parts[-1] == "*":
            self.path(parts)
        for end in range(1, len(parts) + 1):
            module = self.module(".".join(parts[:end]))
            if module and self._first("run", module.name):
                for _, inner, imported in imports(module.body, module.package):
                    self.run(imported)
                    self.run(inner)
                if module.rest:
                    self.hashes[f"{module.name}.{REST}"] = digest(dump(module.rest))[:16]
                    self.code(module.rest, module)
                for name in module.registered():
                    self.definition(module, name, [])

    def path(self, parts: list[str], through: tuple = ()) -> None:
        """Count the definition that a dotted path leads to, or the whole module where it leads to none.

        `through` is a module and a name in it that stands for the submodule here, and not for a definition.
        """
        module = self.module(parts[0])
        if module is None:
            return
        self.run(module.name)
        for end, part in enumerate(parts[1:], 1):
            if part in module.definitions and (module.name, part) != through:
                self.definition(module, part, parts[end + 1 :])
                return
            inner = self.module(f"{module.name}.{part}")
            if inner is None:
                break
            self.run(inner.name)
            module = inner
        for name in module.definitions:
            self.definition(module, name, [])

    def definition(self, module: Module, name: str, attributes: list[str]) -> None:
        """Count one name of a module and follow what its statements use; `attributes` are taken from it."""
        if not self._first(module.name, name, *attributes):
            return
        self.run(module.name)
        sources = module.definitions[name]
        self.hashes[f"{module.name}.{name}"] = digest(dump(sources))[:16]
        for source in sources:
            if isinstance(source, str):  # in a package, `from .use import use` leads through the module `use`
                self.path([*source.split("."), *attributes], through=(module.name, name))
            else:
                self.code([source], module)
