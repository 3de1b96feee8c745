"""README tells the truth: its commands, its blocks and its table of settings are checked against what is there.

`python -m tests.unit.test_readme` writes the table anew.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import skylib
from skylib.config.layers import Origin
from skylib.config.load import Config, load_config
from skylib.config.schema import DATABASE, Key, keys
from skylib.models.task import Task
from skylib.paths import SkyHome
from skylib.providers.pool_file import read_pools
from skylib.runtime import layout

CHECKOUT = Path(__file__).resolve().parents[2]
README = CHECKOUT / "README.rst"
BEGIN, END = ".. settings begin\n", ".. settings end\n"
MAX_LINES = 200  # besides the table
# What a name in an example stands for.
MEANING = {
    "client": skylib.Client,
    "cluster": skylib.Cluster,
    "job": skylib.Job,
    "each": skylib.Job,
    "task": skylib.Task,
    "plan": skylib.Plan,
    "record": skylib.JobRecord,
    "again": skylib.JobRecord,
    "receipt": skylib.DownReceipt,
    "line": skylib.LogLine,
}


def text() -> str:
    return README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of one language, in order."""
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", text(), re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def settings_table() -> str:
    """The table of all settings, as README shall have it."""
    rows = [("Setting", "Default", "Task", "Meaning")]
    rows += [(f"``{key.name}``", _default(key), "yes" if key.per_task else "", _meaning(key)) for key in (DATABASE, *keys())]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["", rule, lines[0], rule, *lines[1:], rule, "", ""])


def _default(key: Key) -> str:
    value = f"{key.default:g}" if isinstance(key.default, float) else str(key.default)
    return f"``{value}``" if value else "(empty)"


def _meaning(key: Key) -> str:
    bounds = [f"at least {key.minimum:g}"] if key.minimum else []
    bounds += [f"at most {key.maximum:g}"] if key.maximum is not None else []
    return f"{key.meaning} {', '.join(bounds).capitalize()}." if bounds else key.meaning


def in_readme() -> str:
    return text().partition(BEGIN)[2].partition(END)[0]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call, object]]:
    """Calls of skylib in an example: as written, the node, and the function that is meant."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target = meant(node.func)
        if target is not None:
            yield ast.unparse(node.func), node, target


def meant(node: ast.expr) -> object:
    """What an expression of an example stands for; None when that is not ours. Fails on a name that does not exist."""
    if isinstance(node, ast.Name):
        return skylib if node.id == "skylib" else MEANING.get(node.id)
    if isinstance(node, ast.Call):
        function = meant(node.func)
        if function is None or inspect.isclass(function):
            return function
        returned = inspect.signature(function).return_annotation  # type: ignore[arg-type]
        return getattr(skylib, str(returned).strip("'"), None)
    if isinstance(node, ast.Attribute):
        owner = meant(node.value)
        if owner is None:
            return None
        if node.attr in {field.name for field in getattr(owner, "__attrs_attrs__", ())}:
            return None
        value = inspect.getattr_static(owner, node.attr, None) if inspect.isclass(owner) else getattr(owner, node.attr, None)
        assert value is not None, f"README names {ast.unparse(node)}, which does not exist"
        return None if isinstance(value, property) else getattr(owner, node.attr)
    return None


def test_readme_is_short() -> None:
    """It is read in a few minutes: at most 200 lines besides the table."""
    assert len(text().replace(in_readme(), "").splitlines()) <= MAX_LINES


def test_readme_is_valid_restructured_text() -> None:
    """docutils, which package indexes use, has nothing to complain of."""
    core = pytest.importorskip("docutils.core")
    complaints: list[str] = []

    class Stream:
        def write(self, words: str) -> None:
            complaints.append(words)

    settings = {"report_level": 1, "halt_level": 5, "warning_stream": Stream(), "syntax_highlight": "none"}
    document = core.publish_doctree(text(), settings_overrides=settings)
    assert complaints == []
    assert document["names"] == ["skylib"]


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python examples/quickstart.py",
        "python3 tests/run.py",
    ],
)
def test_the_two_commands_are_there(command: str) -> None:
    """Each stands on a line of its own, indented, once, and what it runs exists."""
    assert text().count(f"\n\n    {command}\n\n") == 1
    assert (CHECKOUT / command.split()[-1]).is_file()


def test_there_are_no_other_commands() -> None:
    """Literal blocks after `::` are the two commands; everything else is a code block with its language."""
    assert len(re.findall(r"[^:]::\n", text().replace("code-block::", ""))) == 2


def test_the_table_of_settings_is_the_schemas() -> None:
    """Every setting with its default, bounds and meaning, as skylib/config/schema.py has it."""
    assert text().count(BEGIN) == text().count(END) == 1
    assert in_readme() == settings_table(), "run: python -m tests.unit.test_readme"


def test_yaml_blocks_are_read_by_skylib(tmp_path: Path) -> None:
    """Each YAML block says in its first line which file it is, and skylib takes it as that."""
    seen = []
    for block in blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ").removeprefix("~/.sky/")
        home = SkyHome(tmp_path)
        (tmp_path / name).write_text(block)
        if name == "task.yaml":
            assert Task.from_yaml(tmp_path / name).num_nodes == 2
        elif name == "ssh_node_pools.yaml":
            (pool,) = read_pools(home.ssh_node_pools).values()
            assert pool.infra == "ssh/lab"
            assert [(host.address.port, host.address.proxy_jump, host.price_per_hour) for host in pool.hosts] == [
                (None, None, None),
                (2222, "me@gateway", 1.5),
            ]
        else:
            assert load_config(home, environ={}, cwd=tmp_path).ssh.connect_timeout_s == 5
        if name == "task.yaml":
            assert Config().tuned(Task.from_yaml(tmp_path / name).config, lambda path: Origin(source=name)) != Config()
        seen.append(name)
    assert seen == ["task.yaml", "ssh_node_pools.yaml", "config.yaml"]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[-1].strip()[:30])
def test_python_blocks_use_what_exists(block: str) -> None:
    """Every verb, field and keyword that an example uses is there, with these arguments."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            meant(node)
    found = 0
    for written, call, function in calls(tree):
        found += 1
        keywords = {each.arg: None for each in call.keywords if each.arg}
        signature = inspect.signature(function)  # type: ignore[arg-type]
        bound_self = [None] if "self" in signature.parameters else []
        try:
            signature.bind(*bound_self, *[None] * len(call.args), **keywords)
        except TypeError as error:
            pytest.fail(f"README calls {written}({ast.unparse(call)}): {error}")
    assert found > 3


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[-1].strip()[:30])
def test_python_blocks_run_up_to_the_client(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example does without hosts is done here: imports, tasks from code and from the file beside it."""
    (tmp_path / "task.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(block)
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign))
        and not {"client", "job"} & {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    ]
    names: dict[str, object] = {}
    exec(compile(tree, "README.rst", "exec"), names)
    assert isinstance(names["task"], skylib.Task)


def test_every_verb_is_named() -> None:
    """The list of verbs in README is the Client's."""
    listed = re.search(r"Verbs: ``([a-z_ ]+)``", text().replace("\n", " "))
    assert listed is not None
    public = {name for name, _ in inspect.getmembers(skylib.Client, inspect.isfunction) if not name.startswith("_")}
    assert set(listed[1].split()) == public - {"close", "cluster"}


def test_numbers_are_those_of_the_code() -> None:
    """Ports, paths, version and environment in README are the ones in force."""
    ports = (f"port {layout.RAY_PORT}", f"dashboard {layout.DASHBOARD_PORT}")
    others = (layout.TEMP_DIR, f"Ray {layout.SKY_REMOTE_RAY_VERSION}", f"~/{layout.ENV_NAME}")
    for value in (*ports, *others):
        assert value in text().replace("\n", " ")


if __name__ == "__main__":
    README.write_text(text().replace(BEGIN + in_readme() + END, BEGIN + settings_table() + END), encoding="utf-8")
