"""The private Ray environment of a node, `skypilot-runtime`: made in one exchange, skipped when it stands already.

The node needs a Python and a shell. It gets uv's binary and the wheels as one stream, so neither pip, venv, ensurepip, tar's
absence nor a missing way to the package index matter; the account's own environments are never touched.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from importlib import resources
from pathlib import Path

import attrs

from skylib.errors import BringUpError, PreflightError, StagingError
from skylib.events import EventSink, discard, span
from skylib.models.node import NodeFacts, PythonFound
from skylib.runtime.install_script import CONDA_FAILED, INSTALL_SCRIPT, NO_SPACE, NOT_OURS, WARM_SCRIPT
from skylib.runtime.layout import ENV_NAME, NodeLayout
from skylib.runtime.lock import Lock, load_lock, marker_values
from skylib.runtime.python_choice import PythonChoice, choose_python, client_python
from skylib.runtime.wheelhouse import WHEELS_TXT, Platform, Wheelhouse, client_uv
from skylib.staging.manifest import Entry, Kind
from skylib.staging.pack import Member, pack
from skylib.transport.base import Completed, Transport
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport

__all__ = ["DIGEST_FILE", "Environment", "ensure_environment", "first_choice", "runtime_digest"]

DIGEST_FILE = ".skylib-digest"
_STEP = "runtime.environment"
_TIMEOUT_S = 600.0
_SAY_VERSION = "import sys; print(*sys.version_info[:3])"
_NEEDED_GIB = 0.6  # wheels, uv and the environment, all at once
_FULL = re.compile(r"no space left|disk quota exceeded|quota exceeded|os error 28|os error 122", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Environment:
    """A runtime environment that stands on a node. created: it was made by this call."""

    env: str
    ray_version: str
    digest: str
    created: bool

    @property
    def python(self) -> str:
        return f"{self.env}/bin/python"

    @property
    def ray(self) -> str:
        return f"{self.env}/bin/ray"


@attrs.frozen(kw_only=True)
class _Plan:
    """What one choice comes to. lock: selected for its Python."""

    choice: PythonChoice
    lock: Lock
    digest: str


@attrs.frozen(kw_only=True)
class _Packages:
    """Where packages come from, and how long installing them may take."""

    wheelhouse: Wheelhouse
    source: str
    timeout_s: float


def runtime_digest(lock: Lock, python: tuple[int, int, int], arch: str) -> str:
    """What an environment is made of: its list (selected), Python minor, architecture and our own three files."""
    parts = (lock.digest, f"{python[0]}.{python[1]}", arch, _source("start_hook"), WARM_SCRIPT, _source("door_guard"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def ensure_environment(
    transport: Transport,
    facts: NodeFacts,
    layout: NodeLayout,
    *,
    wheelhouse: Wheelhouse,
    source: str = "client",
    python: str = "",
    timeout_s: float = _TIMEOUT_S,
    events: EventSink = discard,
) -> Environment:
    """See to it that the environment stands. One that does costs no round trip when the facts carry its digest.

    source: where packages come from: the client sends them, or the node asks its own "index". This machine itself (a
    LocalTransport) takes them where they are, and may use Python 3.12 and newer with the newer Ray. python: the one to
    use, a version ("3.10") or an absolute path; "" takes the best. timeout_s: for making it.
    Raises PreflightError (no Python fits, too little disk), StagingError (download failed, disk full), BringUpError
    (the node could not make it; evidence is its stderr), and what Transport.run raises.
    """
    local = isinstance(transport, LocalTransport)
    plans = _plans(facts, local=local, wanted=python, more=_asked(transport, facts, python))
    env = layout.runtime_env
    packages = _Packages(wheelhouse=wheelhouse, source=source, timeout_s=timeout_s)
    found = _standing(transport, facts, layout, plans)
    if found is None and facts.disk_free_gib < _NEEDED_GIB:
        raise _no_space(transport.host, env, f"{facts.disk_free_gib:.2f} GiB are free", error=PreflightError)
    if found is None and local:
        with wheelhouse.hold(f"environment:{env}"):
            return _make(transport, facts, env, plans, packages, events=events)
    if found is None:
        return _make(transport, facts, env, plans, packages, events=events)
    return Environment(env=env, ray_version=found.lock.version("ray"), digest=found.digest, created=False)


def first_choice(
    transport: Transport, facts: NodeFacts, *, local: bool = False, python: str = ""
) -> tuple[Lock, tuple[int, int, int]]:
    """The list and the Python that ensure_environment takes first on a machine. Raises PreflightError when none fits."""
    plan = _plans(facts, local=local, wanted=python, more=_asked(transport, facts, python))[0]
    return plan.lock, plan.choice.version


def _make(
    transport: Transport,
    facts: NodeFacts,
    env: str,
    plans: tuple[_Plan, ...],
    packages: _Packages,
    *,
    events: EventSink,
) -> Environment:
    """By the first plan that can be carried out."""
    for plan in plans:
        with span(events, "runtime.install", host=transport.host, env=env, conda=bool(plan.choice.conda)) as running:
            done = _install(transport, facts, env, plan, packages)
            running.note(returncode=done.returncode, digest=plan.digest[:16])
            if done.returncode == CONDA_FAILED and plan is not plans[-1]:
                continue
            if not done.ok:
                raise _failed(transport.host, env, done)
            created = b"present" not in done.stdout.split()
            return Environment(env=env, ray_version=plan.lock.version("ray"), digest=plan.digest, created=created)
    raise ValueError("no plan")


def _asked(transport: Transport, facts: NodeFacts, wanted: str) -> tuple[PythonFound, ...]:
    """The interpreter at a path that the probe did not see; none when it does not say its version."""
    if not wanted.startswith("/") or any(python.path == wanted for python in facts.pythons):
        return ()
    done = transport.run(Command.of(wanted, "-S", "-E", "-c", _SAY_VERSION), timeout_s=60)
    numbers = done.stdout.decode(errors="replace").split()
    if not done.ok or len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return ()
    major, minor, micro = map(int, numbers)
    return (PythonFound(path=wanted, version=(major, minor, micro)),)


def _plans(facts: NodeFacts, *, local: bool, wanted: str, more: tuple[PythonFound, ...]) -> tuple[_Plan, ...]:
    """What to try, in order."""
    own = (client_python(),) if local else ()
    choice: PythonChoice | None = choose_python(facts, allow_newer=local, more=(*own, *more), wanted=wanted)
    plans = []
    while choice is not None:
        lock = load_lock(choice.lock).select(marker_values(choice.version, os=facts.os, arch=facts.arch))
        plans.append(_Plan(choice=choice, lock=lock, digest=runtime_digest(lock, choice.version, facts.arch)))
        choice = choice.without_conda()
    return tuple(plans)


def _standing(transport: Transport, facts: NodeFacts, layout: NodeLayout, plans: tuple[_Plan, ...]) -> _Plan | None:
    """The plan whose environment is there already."""
    digest = facts.runtime_digest
    if layout.runtime_env != f"{layout.root}/{ENV_NAME}":  # not where the probe looks
        done = transport.run(Command.of("cat", f"{layout.runtime_env}/{DIGEST_FILE}"), timeout_s=60)
        digest = done.stdout.decode(errors="replace").strip() if done.ok else ""
    return next((plan for plan in plans if plan.digest == digest), None)


def _install(transport: Transport, facts: NodeFacts, env: str, plan: _Plan, packages: _Packages) -> Completed:
    wheelhouse, source, timeout_s = packages.wheelhouse, packages.source, packages.timeout_s
    local = isinstance(transport, LocalTransport)
    if local and (source == "index" or facts.os != "Linux"):
        with tempfile.TemporaryDirectory(prefix="skylib-") as here:
            Path(here, WHEELS_TXT).write_text(plan.lock.render(), encoding="utf-8")
            return transport.run(_command(env, plan, pack=here, uv=str(client_uv()), index="index"), timeout_s=timeout_s)
    platform = Platform.of(facts)
    if local:
        wheels = wheelhouse.wheels(plan.lock, platform, plan.choice.version)
        uv = str(wheelhouse.uv(platform))
        command = _command(env, plan, pack=str(wheels.directory), uv=uv, index="conda")  # as this is the client itself
        return transport.run(command, timeout_s=timeout_s)
    members = [_member("uv", wheelhouse.uv(platform))]
    if source == "index":
        members.append(Member.literal(f"pack/{WHEELS_TXT}", plan.lock.render().encode()))
    else:
        wheels = wheelhouse.wheels(plan.lock, platform, plan.choice.version)
        members += [_member(f"pack/{path.name}", path) for path in (wheels.listing, *wheels.files)]
    command = _command(env, plan, pack="-", uv="-", index="index" if source == "index" else "")
    return transport.run(command, stdin=pack(members), timeout_s=timeout_s)


def _member(name: str, path: Path) -> Member:
    entry = Entry(path=name, kind=Kind.FILE, mode=0o700, size=path.stat().st_size, mtime_ns=0)
    return Member(name=name, entry=entry, source=str(path.resolve()))


def _command(env: str, plan: _Plan, *, pack: str, uv: str, index: str) -> Command:
    python = plan.choice.python.path if plan.choice.python else ""
    version = plan.choice.version
    return Command.sh(
        INSTALL_SCRIPT,
        *(env, plan.digest, python, plan.choice.conda, f"{version[0]}.{version[1]}"),
        *(pack, uv, index, _source("start_hook"), WARM_SCRIPT, _source("door_guard")),
    )


def _source(name: str) -> str:
    return (resources.files("skylib.runtime") / f"{name}.py").read_text(encoding="utf-8")


def _failed(host: str, env: str, done: Completed) -> StagingError | BringUpError | PreflightError:
    said = done.stderr[-2000:].decode(errors="replace")
    if done.returncode == NO_SPACE or _FULL.search(said):
        return _no_space(host, env, said or "df shows no free space", error=StagingError)
    if done.returncode == NOT_OURS:
        return BringUpError(
            f"{env} on {host} was not made by skylib, so it is left alone",
            host=host,
            step=_STEP,
            path=env,
            hint=f"move it away there (mv {env} {env}.mine), or use another account",
        )
    what = "conda could not make" if done.returncode == CONDA_FAILED else "could not make"
    how = f"was ended by SIG{done.signal}" if done.signal else f"exited {done.returncode}"
    hint = "nothing was left behind; the same call may be made again"
    if done.returncode == CONDA_FAILED:
        hint = (
            "nodes fetch nothing unless told to: put a Python 3.8 to 3.11 there (`uv python install 3.11`), or let conda "
            "and Ray's packages be fetched by the node with runtime.source: index"
        )
    return BringUpError(
        f"{what} the runtime environment {env}: the script {how}",
        host=host,
        step=_STEP,
        evidence=said,
        hint=hint,
        returncode=done.returncode,
    )


def _no_space(
    host: str, env: str, evidence: str, *, error: type[StagingError] | type[PreflightError]
) -> StagingError | PreflightError:
    return error(
        f"too little disk space on {host} for the runtime environment {env}",
        host=host,
        step=_STEP,
        path=env,
        evidence=evidence,
        hint=f"free at least {_NEEDED_GIB} GiB there",
    )
