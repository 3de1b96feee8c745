"""What tests share of the runtime: wheels that are downloaded once per machine, and a Python that has Ray 2.9.3.

Both are kept in `.venv-test/skylib-cache` of the checkout when that folder exists, else in the account's cache.
"""

from __future__ import annotations

import os
import pwd
from contextlib import AbstractContextManager
from pathlib import Path

from skylib.facts.hardware import probe
from skylib.locks import Grip, Locks
from skylib.paths import SkyHome, ensure_private_dir
from skylib.runtime.environment import ensure_environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.wheelhouse import Wheelhouse
from skylib.transport.local import LocalTransport

__all__ = ["ray_environment", "ray_python", "shared_wheelhouse", "shared_wheelhouse_home", "shared_wheels", "warm_alone"]

_CHECKOUT = Path(__file__).resolve().parents[1]


def shared_wheelhouse_home() -> SkyHome:
    """The home whose wheels and environment all tests use. Nothing else belongs there."""
    kept = _CHECKOUT / ".venv-test"
    if kept.is_dir():
        return SkyHome(kept / "skylib-cache")
    account = Path(pwd.getpwuid(os.getuid()).pw_dir)  # tests run with another $HOME
    return SkyHome(Path(os.environ.get("XDG_CACHE_HOME") or account / ".cache") / "skylib-tests")


def shared_wheelhouse() -> Wheelhouse:
    """The wheelhouse of that home; it downloads what is not there yet."""
    home = shared_wheelhouse_home()
    locks = Locks(home)
    return Wheelhouse(home, hold=lambda scope: locks.hold(scope, operation="tests", timeout_s=1800))


def shared_wheels() -> Path:
    """The folder to link a test's `<home>/runtime/wheels` to."""
    return ensure_private_dir(shared_wheelhouse_home().runtime / "wheels")


def warm_alone() -> AbstractContextManager[Grip]:
    """While inside, no other run of tests downloads wheels: homes that share a wheelhouse have locks of their own."""
    return Locks(shared_wheelhouse_home()).hold("tests:ray-environment", operation="tests", timeout_s=1800)


def ray_environment() -> Path:
    """A runtime environment on this machine, made by skylib itself when it is first asked for."""
    home = shared_wheelhouse_home()
    root = ensure_private_dir(home.runtime / "ray")
    transport = LocalTransport()
    with warm_alone():
        facts = probe(transport, root=str(root))
        made = ensure_environment(transport, facts, NodeLayout(root=str(root)), wheelhouse=shared_wheelhouse())
    return Path(made.env)


def ray_python() -> Path:
    """Its interpreter: Ray 2.9.3 where this machine has a Python 3.8 to 3.11, else the newer one."""
    return ray_environment() / "bin" / "python"
