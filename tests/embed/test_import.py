"""What an application pays for `import skylib` and for a Client that is not used yet: nothing but a little time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embed.child import run_python

HEAVY = ["paramiko", "cryptography", "sqlite_utils", "sqlite3", "portalocker", "ray", "uv", "yaml", "asyncio", "numpy"]
# The process before and after an act: everything that an import could change behind its importer's back.
OBSERVE = """
import atexit, faulthandler, gc, locale, logging, os, signal, sys, threading, warnings

def seen():
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the one that listed
    umask = os.umask(0o022)
    os.umask(umask)
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "environ": dict(os.environ),
        "signals": {str(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "files": sorted(os.path.join(at, name) for at, dirs, files in os.walk(os.environ["HOME"]) for name in dirs + files),
        "fds": sorted(fds.values()),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
        "root_handlers": len(logging.getLogger().handlers),
        "own_handlers": len(logging.getLogger("skylib").handlers),
        "own_level": logging.getLogger("skylib").level,
        "filters": len(warnings.filters),
        "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__],
        "path": list(sys.path),
        "umask": umask,
        "cwd": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "faulthandler": faulthandler.is_enabled(),
        "gc": gc.isenabled(),
    }

def changes(act):
    before = seen()
    act()
    after = seen()
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}
"""


def test_importing_changes_nothing(isolated_home: Path) -> None:
    """`import skylib` makes no file, thread, socket, child, handler or hook, and leaves environment and cwd alone."""
    program = f"{OBSERVE}\nanswer = changes(lambda: __import__('skylib'))"
    assert run_python(program, home=isolated_home) == {}


def test_using_every_public_name_changes_nothing(isolated_home: Path) -> None:
    """Names that are loaded late do no more than the import did."""
    program = f"""{OBSERVE}
def act():
    import skylib
    for name in skylib.__all__:
        getattr(skylib, name)
answer = changes(act)
"""
    assert run_python(program, home=isolated_home) == {}


def test_making_a_client_changes_nothing(isolated_home: Path) -> None:
    """A Client is a value until a verb is called: constructing, showing, entering and closing it touch nothing."""
    program = f"""{OBSERVE}
import skylib
skylib.Client
def act():
    with skylib.Client() as client:
        repr(client), str(client), client.home
    skylib.Client("elsewhere", config={{"ssh": {{"parallel": 2}}}}, events=lambda event: None).close()
answer = changes(act)
"""
    assert run_python(program, home=isolated_home) == {}


def test_making_a_task_changes_nothing(isolated_home: Path) -> None:
    """Tasks and resources are values."""
    program = f"""{OBSERVE}
import skylib
def act():
    task = skylib.Task(run="echo hello", num_nodes=2, resources=skylib.Resources(infra="ssh/lab", accelerators="A100:8"))
    repr(task), hash(task), task == task
answer = changes(act)
"""
    assert run_python(program, home=isolated_home) == {}


@pytest.mark.parametrize("heavy", HEAVY)
def test_the_import_leaves_heavy_packages_out(heavy: str, isolated_home: Path) -> None:
    """`import skylib` alone does not pull what only some verbs need."""
    program = f"import sys\nbefore = {heavy!r} in sys.modules\nimport skylib\nanswer = [before, {heavy!r} in sys.modules]"
    assert run_python(program, home=isolated_home) == [False, False]


@pytest.mark.parametrize("heavy", ["paramiko", "cryptography", "sqlite_utils", "portalocker", "ray", "uv"])
def test_a_client_leaves_heavy_packages_out(heavy: str, isolated_home: Path) -> None:
    """Nor do all public names and a Client that has not been asked anything."""
    program = f"""
import sys
import skylib
for name in skylib.__all__:
    getattr(skylib, name)
skylib.Client()
skylib.Task(run="true", resources=skylib.Resources(infra="local"))
answer = {heavy!r} in sys.modules
"""
    assert run_python(program, home=isolated_home) is False


@pytest.mark.parametrize("options", [("-O",), ("-OO",), ("-W", "error"), ("-I",), ("-bb",)], ids=" ".join)
def test_every_module_imports_in_every_mode(options: tuple[str, ...], isolated_home: Path) -> None:
    """All modules of the client load silently without asserts and docstrings, and with warnings as errors."""
    checkout = Path(__file__).resolve().parents[2]
    program = f"""
import importlib, pathlib, sys
sys.path.insert(0, {str(checkout)!r})
root = pathlib.Path({str(checkout)!r})
answer = []
for path in sorted((root / "skylib").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[1:2] != ("agent",) and parts[-1] != "__init__":
        importlib.import_module(".".join(parts))
        answer.append(parts[-1])
"""
    assert len(run_python(program, home=isolated_home, options=options)) > 20


def test_what_the_home_is_is_decided_when_the_client_is_made(isolated_home: Path) -> None:
    """$SKY_HOME counts when a Client is made, not when skylib is imported, and a given home comes first."""
    program = """
import os
import skylib
found = [str(skylib.Client().home)]
os.environ["SKY_HOME"] = "/somewhere/else"
found.append(str(skylib.Client().home))
found.append(str(skylib.Client("/given").home))
answer = found
"""
    assert run_python(program, home=isolated_home) == [str(isolated_home / ".sky"), "/somewhere/else", "/given"]
