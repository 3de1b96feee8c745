"""The shape of the source: layers, cycles, hidden imports, sizes, public names. Syntax is read; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "skylib"

# Lowest first. A module may import its own layer (without a cycle) and those before. The longest prefix counts.
LAYERS = (
    ("errors", "events", "forks", "paths", "agent.protocol"),
    ("models",),
    ("config", "locks", "reprs", "journal", "identity"),
    ("state", "catalog", "transport"),
    ("facts",),
    ("optimizer", "staging", "providers"),
    ("runtime",),
    ("jobs",),
    ("session", "parts"),
    ("ops",),
    ("handles", "results", "progress"),
    ("client",),
)
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
JUNK_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# Imports of our own inside a function, "importer -> imported". None is needed; one that is must say why here.
HIDDEN_IMPORTS: frozenset[str] = frozenset()
# Lazy names are this file's purpose: a type checker sees them under TYPE_CHECKING, nobody else imports through it.
LAZY_ROOT = "skylib"
# Runs on nodes only, in a process of its own, inside the private environment; every other module does without Ray.
RAY_DRIVER = "skylib.agent.ranks"


@attrs.frozen
class Import:
    """One import of our own. hidden: inside a function. Imports under TYPE_CHECKING are no exception."""

    importer: str
    imported: str
    line: int
    hidden: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@attrs.frozen
class Source:
    """One module of the package."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def sources() -> dict[str, Source]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Source(name, path, text, ast.parse(text, filename=str(path)))
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import of a module of ours by another."""
    return tuple(
        each
        for source in sources().values()
        if source.name != LAZY_ROOT
        for each in _imports_of(source)
        if each.imported != each.importer
    )


def _imports_of(source: Source) -> Iterator[Import]:
    for node, hidden in _walk(source.tree, hidden=False):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = _targets(source, node)
        elif isinstance(node, ast.Call) and _call_name(node) in ("import_module", "__import__"):
            targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for target in targets:
            if target == "skylib" or target.startswith("skylib."):
                yield Import(source.name, target, node.lineno, hidden)


def _walk(node: ast.AST, *, hidden: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, hidden
        inside = hidden or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, hidden=inside)


def _targets(source: Source, node: ast.ImportFrom) -> list[str]:
    """Modules that a `from` import loads: a name that is a module counts as that module."""
    base = node.module or ""
    if node.level:
        parts = source.package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
    names = {f"{base}.{alias.name}" for alias in node.names}
    modules = sorted(names & sources().keys())
    return modules + ([base] if len(modules) < len(names) else [])


def _call_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def layer(module: str) -> int | None:
    """The layer's number; None for the bare package and what belongs to the agent alone."""
    inner = module.removeprefix("skylib").removeprefix(".")
    ranks = [
        (len(name), rank)
        for rank, names in enumerate(LAYERS)
        for name in names
        if inner == name or inner.startswith(f"{name}.")
    ]
    return max(ranks)[1] if ranks else None


def is_agent(module: str) -> bool:
    return module == "skylib.agent" or module.startswith("skylib.agent.")


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def public_names(source: Source) -> list[str] | None:
    """What `__all__` lists; None without one."""
    for node in source.tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = node.value
            assert isinstance(value, (ast.List, ast.Tuple)), f"{source.name}: __all__ is not a plain list"
            return [ast.literal_eval(element) for element in value.elts]
    return None


def defined_names(source: Source) -> dict[str, ast.AST]:
    """What the module binds at its top level, imports included, and what a type checker alone sees."""
    found: dict[str, ast.AST] = {}
    for node in _top_level(source.tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update({(alias.asname or alias.name.split(".")[0]): node for alias in node.names})
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found.update({name.id: node for name in ast.walk(target) if isinstance(name, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try)):
                yield from _top_level(getattr(node, inner, []))
        for handler in getattr(node, "handlers", []):
            yield from _top_level(handler.body)


def with_code() -> list[str]:
    """Modules that are more than the docstring of an empty package."""
    return [name for name, source in sources().items() if any(not _is_text(node) for node in source.tree.body)]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_every_module_has_a_layer() -> None:
    """A new module is put into a layer before it is used."""
    homeless = [name for name in with_code() if name != LAZY_ROOT and not is_agent(name) and layer(name) is None]
    assert homeless == []


def test_layers_import_only_downward() -> None:
    """No module imports one of a layer above its own, under TYPE_CHECKING neither."""
    upward = []
    for each in imports():
        own, other = layer(each.importer), layer(each.imported)
        if own is not None and other is not None and other > own:
            upward.append(f"{each} ({'/'.join(LAYERS[own])} < {'/'.join(LAYERS[other])})")
    assert upward == []


def test_there_is_no_cycle() -> None:
    """No module imports itself by way of others, packages' own files included."""
    graph: dict[str, set[str]] = {name: set() for name in sources()}
    for each in imports():
        if each.imported in graph:
            graph[each.importer].add(each.imported)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "cycle: " + " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_imports_of_our_own_are_at_the_top() -> None:
    """An own import inside a function hides a dependency."""
    hidden = {f"{each.importer} -> {each.imported}": str(each) for each in imports() if each.hidden}
    assert [text for edge, text in hidden.items() if edge not in HIDDEN_IMPORTS] == []
    assert not HIDDEN_IMPORTS - hidden.keys(), "an exception that is not needed any more"


def test_what_is_imported_exists() -> None:
    """Each own module that is imported is there."""
    assert [str(each) for each in imports() if each.imported not in sources()] == []


def test_the_agent_imports_only_itself() -> None:
    """The agent runs on nodes without skylib: relative imports of its own modules and the standard library."""
    foreign = [str(each) for each in imports() if is_agent(each.importer) and not is_agent(each.imported)]
    absolute = [
        f"{source.name}:{node.lineno}"
        for source in sources().values()
        if is_agent(source.name)
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("skylib"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("skylib") for alias in node.names))
    ]
    assert (foreign, absolute) == ([], [])


def test_nothing_but_the_protocol_of_the_agent_is_imported() -> None:
    """The client shares the protocol with the agent; the rest of the agent is a file that it ships."""
    others = [
        str(each)
        for each in imports()
        if is_agent(each.imported) and not is_agent(each.importer) and each.imported != "skylib.agent.protocol"
    ]
    assert others == []


def test_the_agent_is_python_3_8() -> None:
    """Its syntax is one that the oldest supported node can read."""
    for source in sources().values():
        if is_agent(source.name):
            ast.parse(source.text, filename=str(source.path), feature_version=(3, 8))


def test_modules_are_small() -> None:
    """No module has more than 400 lines."""
    sizes = {name: len(source.text.splitlines()) for name, source in sources().items()}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES} == {}


def test_functions_are_small() -> None:
    """No function has more than 60 lines, its decorators and docstring included."""
    long = {}
    for source in sources().values():
        for function in functions(source):
            first = min([function.lineno, *[each.lineno for each in function.decorator_list]])
            lines = (function.end_lineno or function.lineno) - first + 1
            if lines > MAX_FUNCTION_LINES:
                long[f"{source.name}.{function.name}"] = lines
    assert long == {}


def test_no_module_is_a_drawer_for_everything() -> None:
    """A module's name says what is in it."""
    assert [name for name in sources() if JUNK_NAMES.intersection(name.split("."))] == []


def test_every_module_says_what_is_public() -> None:
    """`__all__` is there, has no name twice, and lists names that the module defines."""
    wrong = {}
    for name in with_code():
        listed, known = public_names(sources()[name]), defined_names(sources()[name])
        if listed is None:
            wrong[name] = "no __all__"
        elif len(set(listed)) < len(listed) or set(listed) - known.keys():
            wrong[name] = f"twice or unknown: {sorted(set(listed) - known.keys())}"
    assert wrong == {}


def test_public_functions_and_classes_are_listed() -> None:
    """What a module imports from another of ours by name is in that one's `__all__`, or is that module's own business."""
    taken = []
    for source in sources().values():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ImportFrom) or source.name == LAZY_ROOT:
                continue
            for alias in node.names:
                for target in _targets(source, ast.ImportFrom(module=node.module, names=[alias], level=node.level)):
                    known = sources().get(target)
                    if known is None or target == "skylib" or target.endswith(f".{alias.name}"):
                        continue
                    if alias.name not in (public_names(known) or []):
                        taken.append(f"{source.name}:{node.lineno} takes {alias.name} of {target}")
    assert taken == []


def test_public_names_are_explained() -> None:
    """Every module, and every function and class that it makes public, has a docstring."""
    bare = [name for name, source in sources().items() if not ast.get_docstring(source.tree)]
    for name, source in sources().items():
        known = defined_names(source)
        for public in public_names(source) or []:
            node = known.get(public)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not ast.get_docstring(node):
                bare.append(f"{name}.{public}")
    assert bare == []


@pytest.mark.parametrize("name", ["pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"])
def test_nothing_is_pickled_at_rest(name: str) -> None:
    """No module imports a pickler."""
    users = [
        source.name
        for source in sources().values()
        for node in ast.walk(source.tree)
        if name in _packages(node)
    ]
    assert users == []


def test_nothing_is_printed() -> None:
    """The library logs and emits; only the agent's programs on nodes write to stdout, by sys.stdout."""
    printers = [
        f"{source.name}:{node.lineno}"
        for source in sources().values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printers == []


def test_host_keys_are_never_waved_through() -> None:
    """paramiko's policies that accept any host key are not used, nor the shell where an argument list will do."""
    used = [
        f"{source.name}: {word}"
        for source in sources().values()
        for node in ast.walk(source.tree)
        for word in ("AutoAddPolicy", "WarningPolicy")
        if (isinstance(node, ast.Attribute) and node.attr == word) or (isinstance(node, ast.Name) and node.id == word)
    ]
    shells = [
        f"{source.name}:{node.lineno}"
        for source in sources().values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
    ]
    assert (used, shells) == ([], [])


def test_input_is_not_checked_by_assert() -> None:
    """`assert` vanishes under -O: library code raises typed errors."""
    asserts = [
        f"{source.name}:{node.lineno}"
        for source in sources().values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


@pytest.mark.parametrize("heavy", ["paramiko", "sqlite_utils", "portalocker", "psycopg", "ray", "uv", "yaml"])
def test_heavy_packages_are_imported_where_they_are_used(heavy: str) -> None:
    """No module imports them at its top level, where `import skylib` would pay for it."""
    eager = []
    for source in sources().values():
        if (heavy, source.name) == ("ray", RAY_DRIVER):
            continue
        guarded = _type_checking_lines(source)
        for node, hidden in _walk(source.tree, hidden=False):
            if not hidden and heavy in _packages(node) and getattr(node, "lineno", 0) not in guarded:
                eager.append(f"{source.name}:{getattr(node, 'lineno', 0)}")
    assert eager == []


def test_only_the_driver_on_the_head_imports_ray() -> None:
    """The client never imports Ray, and the agent lives on when Ray dies, so one module has it to itself."""
    users = {
        source.name
        for source in sources().values()
        for node in ast.walk(source.tree)
        if "ray" in _packages(node)
    }
    assert users - {RAY_DRIVER} == set()


def _packages(node: ast.AST) -> set[str]:
    """Top-level packages that an import statement names; none for anything else."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {(node.module or "").split(".")[0]}
    return set()


def _type_checking_lines(source: Source) -> set[int]:
    return {
        line
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def test_no_module_keeps_changing_state() -> None:
    """`global` is not used: a Client is a value, two may live in one process."""
    users = [
        f"{source.name}:{node.lineno}"
        for source in sources().values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Global)
    ]
    assert users == []
