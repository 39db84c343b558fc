"""The reference of `shared`: the page `api.md`, and one in `api/` for each room, written from the docstrings.

Everything is read from the source, as the stamp reads it: nothing is imported, and the same source gives the same pages.
What a room offers is what its `__all__` names, or else its functions, its classes, and the constants that have a comment.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.book import ROOT
from tools.check import repository
from tools.docstrings import Argument, escaped, first_sentence, inline, markdown
from tools.stamp import parsed_cells
from tools.syntax import chains, imports

# From the ground up: a room imports only from those before it.
ROOMS = (
    *("runtime", "datasets", "tasks", "batching", "recurrent", "truncation", "stochastic", "discrete", "fast_weights"),
    *("synthetic_gradients", "training", "ledger", "figures", "exercises"),
)
DO_NOT_EDIT = "<!-- Written by tools/api.py from the docstrings of `shared`; do not edit. -->"
ABOUT = """\
The chapters import a small package, `shared`, which can be used without the book:

```
pip install git+{address}
```

It sets lower bounds only, so it goes beside whatever torch is there. It has a room for each topic; each has its page, with
every name that you would import, and the chapters that use it.

Tensors are time-major, (time, batch, features), as in `torch.nn`. On these pages `Float[time, batch, input]` is a tensor of
floating-point numbers of that shape, `Int` and `Bool` likewise; `Shaped` is one of any dtype, `Float[()]` a single
number, and `Int[np.ndarray: items]` an array of NumPy. A name with a star, as in `Float[*batch, units]`, stands for any
number of axes, none included.
"""
KINDS = ("Float", "Int", "Bool", "Shaped")  # of jaxtyping
LONGEST_VALUE = 70  # letters of a constant that are shown


class Source:
    """A module of `shared`: its syntax tree, what stands at its top level by name, and where it imports names from."""

    def __init__(self, name: str, file: str, text: str):
        self.name, self.file, self.lines, self.tree = name, file, text.splitlines(), ast.parse(text)
        self.doc = ast.get_docstring(self.tree) or ""
        self.imported = {alias: path for alias, path, _ in imports(self.tree.body)}
        self.defined: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign):
                parts = [part for target in node.targets for part in getattr(target, "elts", [target])]
                self.defined |= {part.id: node for part in parts if isinstance(part, ast.Name)}
        self.listed = ast.literal_eval(self.defined["__all__"].value) if "__all__" in self.defined else None

    def comment(self, node: ast.stmt) -> str:
        """The comment behind a statement, or else the lines of comment right above it."""
        behind = self.lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().lstrip()
        if behind.startswith("# "):
            return behind[2:]
        above = []
        for line in reversed(self.lines[: node.lineno - 1]):
            if not line.startswith("# "):
                break
            above.insert(0, line[2:])
        return " ".join(above)

    def offered(self) -> list[str]:
        """The names of its own that the module offers, in the order of the source."""
        own = [name for name in self.defined if not name.startswith("_")]
        if self.listed is not None:
            return [name for name in own if name in self.listed]
        return [name for name in own if not is_constant(self.defined[name]) or self.comment(self.defined[name])]


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign)


@dataclass(frozen=True)
class Entry:
    """A public name: the path that it is imported from, the module that defines it, and its definition."""

    path: str
    source: Source
    node: ast.stmt

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def doc(self) -> str:
        return self.source.comment(self.node) if is_constant(self.node) else ast.get_docstring(self.node) or ""


class Package:
    """What `shared` in `root` offers: `rooms` gives, for each room, its modules with the entries that each defines."""

    def __init__(self, root: Path = ROOT):
        self.root = root
        self._sources: dict[str, Source | None] = {}
        found = {room: list(self._modules(f"shared.{room}")) for room in ROOMS if self.source(f"shared.{room}")}
        self.rooms: dict[str, list[tuple[Source, list[Entry]]]] = found
        modules = [module for room in found.values() for module in room]
        self.entries = {entry.path: entry for _, entries in modules for entry in entries}
        self._public = {id(entry.node): entry for entry in self.entries.values()}

    def source(self, name: str) -> Source | None:
        """The module of that dotted name, or None if `shared` has none."""
        if name not in self._sources:
            path = name.replace(".", "/")
            files = [f"{path}/__init__.py", f"{path}.py"] if name.startswith("shared.") else []
            there = [(file, self.root / file) for file in files if (self.root / file).is_file()]
            self._sources[name] = Source(name, there[0][0], there[0][1].read_text(encoding="utf-8")) if there else None
        return self._sources[name]

    def _modules(self, name: str) -> Iterator[tuple[Source, list[Entry]]]:
        own = self.source(name)
        yield own, [Entry(f"{name}.{one}", own, own.defined[one]) for one in own.offered()]
        for file in sorted(self.root.joinpath(*name.split(".")).glob("[!_]*.py")):
            inner = self.source(f"{name}.{file.stem}")
            if own.listed is None:  # its modules are imported, not their names
                names, where = inner.offered(), inner.name
            else:
                names = [
                    one for one in inner.defined if own.imported.get(one) == f"{inner.name}.{one}" and one in own.listed
                ]
                where = name
            if names:
                yield inner, [Entry(f"{where}.{one}", inner, inner.defined[one]) for one in names]

    def definition(self, source: Source, name: str) -> tuple[Source, ast.stmt] | None:
        """Where in `shared` a name that a module uses is defined, if it is."""
        while name not in source.defined:
            module, _, name = source.imported.get(name, "").rpartition(".")
            source = self.source(module)
            if source is None:
                return None
        return source, source.defined[name]

    def public(self, node: ast.stmt) -> Entry | None:
        return self._public.get(id(node))

    def bases(self, source: Source, node: ast.ClassDef) -> list[tuple[Source, ast.ClassDef] | str]:
        """A class's bases: those in `shared` with their modules, others as text."""
        names = [ast.unparse(base) for base in node.bases]
        return [
            self.definition(source, name) or re.sub(r"^nn\.", "torch.nn.", name.partition("[")[0]) for name in names
        ]

    def lineage(self, source: Source, node: ast.ClassDef) -> list[tuple[Source, ast.ClassDef]]:
        """A class and its bases in `shared`, the nearest first."""
        inner = [self.lineage(*base) for base in self.bases(source, node) if not isinstance(base, str)]
        return [(source, node), *(one for line in inner for one in line)]

    def family(self, entry: Entry) -> tuple[list[tuple[Source, ast.ClassDef]], list[Entry | str]]:
        """A class with those of its bases that are not public, whose methods are its own for a reader; and the bases that are."""
        own, public, waiting = [], [], [(entry.source, entry.node)]
        while waiting:
            own.append(waiting.pop(0))
            for base in self.bases(*own[-1]):
                known = base if isinstance(base, str) else self.public(base[1])
                (public if known else waiting).append(known or base)
        return own, public

    def methods(self, entry: Entry) -> list[tuple[Source, ast.FunctionDef]]:
        """The documented methods of a class, each once."""
        found: dict[str, tuple[Source, ast.FunctionDef]] = {}
        for source, node in self.family(entry)[0]:
            for method in node.body:
                named = isinstance(method, ast.FunctionDef) and (method.name[0] != "_" or method.name.endswith("__"))
                if named and ast.get_docstring(method):
                    found.setdefault(method.name, (source, method))
        return list(found.values())

    @cached_property
    def places(self) -> set[str]:
        """The path of everything that has a place on the pages: public names, and their methods."""
        classes = [entry for entry in self.entries.values() if isinstance(entry.node, ast.ClassDef)]
        return {
            *self.entries,
            *(f"{entry.path}.{method.name}" for entry in classes for _, method in self.methods(entry)),
        }

    def place(self, words: str, entry: Entry) -> str | None:
        """What the docstring of an entry means by `words`: a method of its own, a name of its module, or one that there is once.

        None for the entry itself, and for what has no place on the pages.
        """
        near = [words, f"{entry.path}.{words}", f"{entry.path.rpartition('.')[0]}.{words}"]
        far = [f"shared.{room}.{words}" for room in self.rooms if room != "exercises"]
        found = [one for one in near if one in self.places][:1] or [one for one in far if one in self.places]
        return found[0] if len(found) == 1 and found[0] != entry.path else None

    def used(self, chapters: dict) -> dict[str, list[Path]]:
        """For each public name the paths of the chapters (as of `pages`) whose code names it, in their order.

        Raises SystemExit with a sentence if a chapter's code cannot be read.
        """
        found: dict[str, list[Path]] = {}
        for path, notebook in chapters.items():
            try:
                trees = parsed_cells(notebook)
            except ValueError as error:
                raise SystemExit(f"{path.name}: {error}.") from None
            bound = {name: place for name, place, _ in imports(trees) if place.split(".")[0] == "shared"}
            named = (chain for tree in trees for chain in chains(tree) if chain[0] in bound)
            paths = {".".join([bound[first], *rest]) for first, *rest in named}
            for entry in self.entries.values():
                if any(one == entry.path or one.startswith(f"{entry.path}.") for one in paths):
                    found.setdefault(entry.path, []).append(path)
        return found


class Shorter(ast.NodeTransformer):
    """Makes an annotation legible: shapes without quotes, and in the place of a name that is not public what it stands for."""

    def __init__(self, package: Package, source: Source):
        self.package, self.source = package, source

    def text(self, node: ast.expr | None) -> str:
        """The annotation as text; it is copied, since a transformer changes the tree that it is given."""
        return "" if node is None else ast.unparse(self.visit(ast.parse(ast.unparse(node), mode="eval").body))

    def visit_Name(self, node):
        source, found = self.package.definition(self.source, node.id) or (None, None)
        private = is_constant(found) and not self.package.public(found)
        return ast.Name(Shorter(self.package, source).text(found.value)) if private else node

    def visit_Constant(self, node):
        return ast.Name(self.text(ast.parse(node.value, mode="eval").body)) if isinstance(node.value, str) else node

    def visit_Subscript(self, node):
        kind = ast.unparse(node.value)
        if kind in KINDS:
            array, shape = node.slice.elts
            axes = ", ".join(shape.value.split()) or "()"
            return ast.Name(
                f"{kind}[{axes}]" if ast.unparse(array) == "Tensor" else f"{kind}[{ast.unparse(array)}: {axes}]"
            )
        if kind == "Union":
            return ast.Name(" | ".join(map(self.text, node.slice.elts)))
        return self.generic_visit(node)


def marks(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The names of its decorators, without modules and arguments."""
    return [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list]


class Writer:
    """Writes the entries of a package as Markdown with the directives of Sphinx's Python domain."""

    def __init__(self, package: Package, chapters: dict):
        self.package, self.used = package, package.used(chapters)

    def arguments(self, source: Source, node: ast.FunctionDef, bound: bool = False) -> list[Argument]:
        """The arguments of a function in order, with `*` and `/`, and without the first if the function is bound to it."""
        shorter = Shorter(self.package, source)

        def one(given: ast.arg, default: ast.expr | None = None, stars: str = "") -> Argument:
            value = f"={ast.unparse(default)}" if default else ""
            return Argument(given.arg, stars + given.arg + value, shorter.text(given.annotation))

        args = node.args
        places = [*args.posonlyargs, *args.args]
        found = list(map(one, places, [None] * (len(places) - len(args.defaults)) + args.defaults))
        found[len(args.posonlyargs) : len(args.posonlyargs)] = [Argument("", "/")] if args.posonlyargs else []
        found += [one(args.vararg, stars="*")] if args.vararg else [Argument("", "*")] if args.kwonlyargs else []
        found += list(map(one, args.kwonlyargs, args.kw_defaults))
        found += [one(args.kwarg, stars="**")] if args.kwarg else []
        return found[bound:]

    def fields(self, entry: Entry) -> list[Argument]:
        """What makes an instance of a class: the arguments of its `__init__`, or its fields, inherited ones first."""
        lineage = self.package.lineage(entry.source, entry.node)
        for source, node in lineage:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return self.arguments(source, method, bound=True)
        if "NamedTuple" not in self.package.bases(entry.source, entry.node) and "dataclass" not in marks(entry.node):
            return []
        found = []
        for source, node in reversed(lineage):
            for field in (one for one in node.body if isinstance(one, ast.AnnAssign)):
                value = f"={ast.unparse(field.value)}" if field.value else ""
                kind = Shorter(self.package, source).text(field.annotation)
                found.append(Argument(field.target.id, field.target.id + value, kind, source.comment(field)))
        return found

    def link(self, entry: Entry, given: list[Argument]) -> Callable[[str], str | None]:
        names = {argument.name for argument in given}
        return lambda words: None if words.partition(".")[0] in names else self.package.place(words, entry)

    def function(
        self, entry: Entry, source: Source, node: ast.FunctionDef, method: bool = False, note: str = ""
    ) -> str:
        """A function, or a method of the class `entry`."""
        given = self.arguments(source, node, bound=method and "staticmethod" not in marks(node))
        returns = Shorter(self.package, source).text(node.returns)
        name = f"{entry.name}.{node.name}" if method else node.name
        signature = f"{name}({', '.join(argument.shown for argument in given)})"
        if "contextmanager" in marks(node):
            returns = re.fullmatch(r"Iterator\[(.*)\]", returns)[1]
            note = f"A context manager, for a `with` block.\n\n{note}"
        place = returns if returns in self.package.entries else self.package.place(returns, entry)
        shown = f"{{py:obj}}`{returns} <{place}>`" if place else f"`{returns}`" * (returns not in ("", "None"))
        text = markdown(ast.get_docstring(node) or "", self.link(entry, given), given, shown)
        if "property" in marks(node):
            return directive("property", name, text)
        options = [f"{mark}:" for mark in marks(node) if mark in ("staticmethod", "classmethod")]
        return directive("method" if method else "function", signature, f"{text}\n\n{note}", *options)

    def of_class(self, entry: Entry, note: str) -> str:
        given, bases = self.fields(entry), self.package.family(entry)[1]
        names = [f"`{one}`" if isinstance(one, str) else f"{{py:obj}}`{one.name} <{one.path}>`" for one in bases]
        kind = "A named tuple." if names == ["`NamedTuple`"] else f"Derived from {', '.join(names)}." * bool(names)
        methods = [self.function(entry, *method, method=True) for method in self.package.methods(entry)]
        text = "\n\n".join([markdown(entry.doc, self.link(entry, given), given), f"{kind} {note}".strip(), *methods])
        error = any(isinstance(one, str) and one.endswith(("Error", "Exception")) for one in bases)
        signature = f"{entry.name}({', '.join(argument.shown for argument in given)})" if given else entry.name
        return directive("exception" if error else "class", signature, text, fence="`````")

    def constant(self, entry: Entry, note: str) -> str:
        target, value = entry.node.targets[0], entry.node.value
        several = isinstance(target, ast.Tuple)
        if several:
            value = value.elts[[part.id for part in target.elts].index(entry.name)]
        first = (
            not several or target.elts[0].id == entry.name
        )  # of several names that share a statement and its comment
        text = inline(entry.doc, self.link(entry, [])) if first else ""
        shown = ast.unparse(value)
        options = [f"value: {json.dumps(shown, ensure_ascii=False)}"] if len(shown) <= LONGEST_VALUE else []
        return directive("data", entry.name, f"{text}\n\n{note}", *options)

    def entry(self, entry: Entry) -> str:
        """A public name, with all that there is to say of it and the chapters that use it."""
        links = [f"[{int(path.name[:2])}](../chapters/{path.name})" for path in self.used.get(entry.path, [])]
        words = " and ".join(filter(None, [", ".join(links[:-1]), *links[-1:]]))
        note = f"Used in chapter{'s' * (len(links) > 1)} {words}." * bool(links)
        if is_constant(entry.node):
            return self.constant(entry, note)
        if isinstance(entry.node, ast.ClassDef):
            return self.of_class(entry, note)
        return self.function(entry, entry.source, entry.node, note=note)

    def room(self, name: str) -> str:
        """The page of a room, module by module, each with what its docstring says of all that is in it."""
        address, branch = repository(self.package.root)
        parts = [DO_NOT_EDIT, f"(shared.{name})=\n# {escaped(f'shared.{name}')}"]
        for source, entries in self.package.rooms[name]:
            where = entries[0].path.rpartition(".")[0] if entries else f"shared.{name}"
            inner = source.name.removeprefix(f"shared.{name}").removeprefix(".")
            parts += [f"## {escaped(inner)}"] if inner else []
            parts += [markdown(source.doc, self.link(Entry(f"{where}.", source, source.tree), []))]
            parts += [f"Source: [{escaped(source.file)}]({address}/blob/{branch}/{source.file})"]
            parts += [f"```{{py:currentmodule}} {where}\n```", *map(self.entry, entries)]
        return "\n\n".join(parts) + "\n"

    def index(self) -> str:
        parts = [DO_NOT_EDIT, "# The package `shared`", ABOUT.format(address=repository(self.package.root)[0]).strip()]
        for name, modules in self.package.rooms.items():
            names = [entry.path.removeprefix(f"shared.{name}.") for _, entries in modules for entry in entries]
            listed = ", ".join(f"{{py:obj}}`{one} <shared.{name}.{one}>`" for one in names)
            parts += [f"## [{escaped(name)}](api/{name}.md)", first_sentence(modules[0][0].doc), listed]
        return "\n\n".join(parts) + "\n"


def directive(kind: str, signature: str, content: str, *options: str, fence: str = "````") -> str:
    """A directive of Sphinx's Python domain around some Markdown; an option is like "value: 3"."""
    return "\n".join([f"{fence}{{py:{kind}}} {signature}", *(f":{one}" for one in options), "", content.strip(), fence])


def pages(chapters: dict, root: Path = ROOT) -> Iterator[tuple[Path, str | None]]:
    """Each page of the reference with what it must hold; None for one whose room is gone.

    `chapters` holds the notebooks by path, in reading order.
    """
    package = Package(root)
    writer = Writer(package, chapters)
    if package.rooms:
        yield root / "api.md", writer.index()
    for name in package.rooms:
        yield root / "api" / f"{name}.md", writer.room(name)
    for path in sorted((root / "api").glob("*.md")):
        if path.stem not in package.rooms:
            yield path, None
