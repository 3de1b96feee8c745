"""The names that users import: which there are, where they live, what the verbs take."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import skylib
from skylib.client import Client
from skylib.handles import Cluster, Job
from skylib.ops.ahead import Runtime

PUBLIC = {
    "Client",
    "Cluster",
    "ClusterCost",
    "ClusterRecord",
    "ClusterStatus",
    "CostReport",
    "Discovered",
    "DownReceipt",
    "Fetched",
    "FirstCause",
    "InfraStatus",
    "Job",
    "JobRecord",
    "JobStatus",
    "LeftOut",
    "LogLine",
    "LogStream",
    "NodeReceipt",
    "OutputsReceipt",
    "Plan",
    "PrefetchReceipt",
    "Reconciled",
    "Resources",
    "StartReceipt",
    "SyncReport",
    "Task",
    "TreeReport",
    "__version__",
    "errors",
    "events",
    "progress",
}
# Positional parameters, "*", keyword-only ones. Names and order are what callers rely on: SkyPilot's where it has the verb.
CLIENT = {
    "__init__": "home * config events",
    "launch": "task cluster_name * key idle_minutes_to_autostop down retry_until_up fast no_setup timeout_s lease",
    "exec": "task_or_command cluster_name * key",
    "submit_many": "tasks cluster_name * keys",
    "plan": "task cluster_name",
    "plan_sync": "task",
    "status": "names * refresh timeout_s",
    "cluster": "name",
    "start": "name",
    "stop": "name",
    "down": "name * purge",
    "autostop": "name idle_minutes * down wait_for hook hook_timeout_s",
    "reconcile": "names",
    "queue": "name",
    "job": "name job_id",
    "cancel": "name job_ids * all",
    "tail_logs": "name job_id * follow offset tail",
    "fetch_outputs": "name job_id",
    "download_logs": "name job_ids",
    "discover": "hosts",
    "adopt": "name * cluster_id hosts",
    "cost_report": "days",
    "check": "",
    "forget_host_key": "host",
    "close": "",
}
JOB = {
    "record": "",
    "status": "",
    "wait": "timeout_s * check",
    "logs": "* follow offset tail",
    "cancel": "",
    "to_json": "",
    "from_json": "text",
}
CLUSTER = {
    "record": "* refresh",
    "nodes": "",
    "queue": "",
    "job": "job_id",
    "exec": "task_or_command * key",
    "submit_many": "tasks * keys",
    "run": "command * timeout_s",
    "get": "remote local * rank",
    "put": "local remote * ranks",
    "ssh_command": "rank",
    "to_json": "",
    "from_json": "text",
}
RUNTIME = {"prefetch": "platform python"}
OWNERS = [(Client, CLIENT), (Job, JOB), (Cluster, CLUSTER), (Runtime, RUNTIME)]


def parameters(function: object) -> str:
    """Names in order, with "*" before those that are keyword-only."""
    words: list[str] = []
    for name, each in inspect.signature(function).parameters.items():  # type: ignore[arg-type]
        if name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(name)
    return " ".join(words)


def test_the_package_shows_its_public_names_and_no_others() -> None:
    """`__all__`, `dir()` and the list here are the same."""
    assert set(skylib.__all__) == PUBLIC == set(dir(skylib))
    assert len(skylib.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_loads(name: str) -> None:
    """Each name gives an object, the same one every time, which its own module lists."""
    value = getattr(skylib, name)
    assert value is getattr(skylib, name)
    if inspect.isclass(value):
        home = importlib.import_module(value.__module__)
        assert getattr(home, name) is value
        assert name in home.__all__


def test_star_import_gives_the_public_names() -> None:
    """`from skylib import *` works with names that are loaded late."""
    found: dict[str, object] = {}
    exec("from skylib import *", found)
    assert PUBLIC <= found.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The package answers like any module when it has no such name."""
    with pytest.raises(AttributeError, match="module 'skylib' has no attribute 'nothing_like_it'"):
        skylib.nothing_like_it  # noqa: B018
    assert not hasattr(skylib, "nothing_like_it")


def test_type_checkers_see_the_same_names() -> None:
    """What is imported under TYPE_CHECKING is what is loaded late, from the same modules."""
    tree = ast.parse(Path(str(skylib.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.keys() | {"__version__"} == PUBLIC
    for name, module in seen.items():
        value = getattr(skylib, name)
        assert value is getattr(importlib.import_module(str(module)), name, value)


def test_the_version_is_the_distributions() -> None:
    """`skylib.__version__` and setup.cfg agree."""
    text = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text()
    declared = re.search(r"^version = (.+)$", text, re.MULTILINE)
    assert declared is not None
    assert declared[1] in (skylib.__version__, "attr: skylib.__version__")


@pytest.mark.parametrize(("owner", "verbs"), OWNERS, ids=[owner.__name__ for owner, _ in OWNERS])
def test_verbs_take_what_they_promise(owner: type, verbs: dict[str, str]) -> None:
    """Every promised verb is there with its parameters in order; flags are keyword-only."""
    assert {name: parameters(getattr(owner, name)) for name in verbs} == verbs


@pytest.mark.parametrize(("owner", "verbs"), OWNERS, ids=[owner.__name__ for owner, _ in OWNERS])
def test_there_is_no_verb_that_is_not_promised(owner: type, verbs: dict[str, str]) -> None:
    """A public method is a promise, so it is listed here."""
    public = {name for name, value in inspect.getmembers(owner, inspect.isroutine) if not name.startswith("_")}
    assert public - verbs.keys() == set()


@pytest.mark.parametrize("owner", [owner for owner, _ in OWNERS], ids=lambda owner: owner.__name__)
def test_public_methods_are_explained_and_typed(owner: type) -> None:
    """Each has a docstring, and a type on every parameter and on what it returns."""
    bare = []
    for name, value in inspect.getmembers(owner, inspect.isroutine):
        if name.startswith("_"):
            continue
        signature = inspect.signature(value)
        untyped = [each.name for each in signature.parameters.values() if each.annotation is each.empty]
        if not inspect.getdoc(value) or signature.return_annotation is signature.empty or set(untyped) - {"self", "cls"}:
            bare.append(name)
    assert bare == []
