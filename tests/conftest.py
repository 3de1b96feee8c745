"""Fixtures that all tests share: a home of their own for every test, and SSH hosts from the test bed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_CHECKOUT = Path(__file__).resolve().parents[1]
if str(_CHECKOUT) not in sys.path:
    sys.path.insert(0, str(_CHECKOUT))

from tests.postgres import Server, close_shared_server, shared_server, tests_skipped  # noqa: E402
from tests.testbed import Host, PythonMissing, Testbed, missing_requirement  # noqa: E402

_MARKERS = {
    "hosts": "needs real SSH hosts (root, iproute2, openssh-server)",
    "ray": "starts a real Ray",
    "slow": "takes long; run on demand with -m slow",
    "bench": "a benchmark, run on demand with -m bench",
}
# Variables that would let a test reach the person's own account, agent or cluster.
_FOREIGN = ("SSH_AUTH_SOCK", "SSH_AGENT_PID", "RAY_ADDRESS", "RAY_TMPDIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
_HOST_FIXTURES = frozenset({"testbed", "ssh_hosts", "make_host"})
_SKIPPED = pytest.StashKey[list[str]]()

_any = hypothesis.settings(deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("ci", _any, max_examples=60, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", _any, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Declares the markers, and moves the whole run into a home of its own, before anything is imported or made."""
    for name, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.stash[_SKIPPED] = []
    _keep_caches(Path.home())
    scratch = tempfile.TemporaryDirectory(prefix="skylib-tests-home-")
    patch = pytest.MonkeyPatch()
    _isolate(patch, Path(scratch.name))
    config.add_cleanup(scratch.cleanup)
    config.add_cleanup(patch.undo)
    config.add_cleanup(close_shared_server)


def _keep_caches(home: Path) -> None:
    """Package caches stay the person's own, else each run downloads everything anew; so does pyenv's place."""
    os.environ.setdefault("UV_CACHE_DIR", str(home / ".cache" / "uv"))
    os.environ.setdefault("PIP_CACHE_DIR", str(home / ".cache" / "pip"))
    if (home / ".pyenv").is_dir():
        os.environ.setdefault("PYENV_ROOT", str(home / ".pyenv"))


def _isolate(patch: pytest.MonkeyPatch, home: Path) -> None:
    patch.setenv("HOME", str(home))
    patch.setenv("SKY_HOME", str(home / ".sky"))
    for name in _FOREIGN:
        patch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test that asks for hosts, so that `-m "not hosts"` needs no marker by hand."""
    for item in items:
        if _HOST_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.hosts)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that needs hosts where there can be none, and counts it for the summary."""
    reason = missing_requirement() if item.get_closest_marker("hosts") else None
    if reason is not None:
        _skip(item.config, f"no SSH hosts: {reason}")


def _skip(config: pytest.Config, reason: str) -> None:
    config.stash[_SKIPPED].append(reason)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says in red how many tests were not run for want of hosts, Pythons or PostgreSQL, and why."""
    reasons = [*config.stash[_SKIPPED], *tests_skipped()]
    if not reasons:
        return
    terminalreporter.section("NOT TESTED HERE", sep="!", red=True, bold=True)
    for reason in sorted(set(reasons)):
        terminalreporter.line(f"{reasons.count(reason)} tests skipped: {reason}", red=True)


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that only this test sees ($HOME; $SKY_HOME is its .sky, not made); no SSH agent, no Ray address."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    _isolate(monkeypatch, home)
    return home


@pytest.fixture
def postgres() -> Server:
    """The session's PostgreSQL; a test makes databases of its own in it and leaves it running."""
    return shared_server()


@pytest.fixture
def database(postgres: Server) -> str:
    """The URL of an empty database, this test's alone."""
    return postgres.new_database()


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """The session's test bed; its hosts end with the session, or with this process however that ends."""
    with Testbed() as bed:
        yield bed


@pytest.fixture(scope="session")
def ssh_hosts(testbed: Testbed) -> list[Host]:
    """Three plain hosts that the whole session shares; a test leaves them as it found them: running and in order."""
    return testbed.hosts(3)


@pytest.fixture
def make_host(testbed: Testbed, request: pytest.FixtureRequest) -> Iterator[Callable[..., Host]]:
    """Makes hosts for one test (arguments of Testbed.host) and closes them after it."""
    made: list[Host] = []

    def make(**options: Any) -> Host:
        try:
            host = testbed.host(**options)
        except PythonMissing as exc:
            _skip(request.config, str(exc))
            raise
        made.append(host)
        return host

    yield make
    for host in made:
        host.close()
