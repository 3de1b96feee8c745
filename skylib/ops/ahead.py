"""What a client can do before any cluster is launched: bring Ray's packages to this machine."""

from __future__ import annotations

from skylib.errors import InvalidSpecError
from skylib.facts.hardware import probe
from skylib.models.receipts import PrefetchReceipt
from skylib.runtime.environment import first_choice
from skylib.runtime.lock import RAY_LOCK, load_lock
from skylib.runtime.prefetch import list_for, platform_named, prefetch, python_named
from skylib.runtime.wheelhouse import Platform
from skylib.session import Session
from skylib.transport.local import LocalTransport

__all__ = ["Runtime"]


class Runtime:
    """Ray's packages under the home, from which all clusters of it are served."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def prefetch(self, platform: str | None = None, python: str | None = None) -> PrefetchReceipt:
        """Bring the packages for one kind of node here, so that launches need no package index any more.

        platform: "linux-x86_64" or "linux-aarch64" for every host of that kind, "manylinux_2_28_x86_64" for those with
        that glibc or a newer one; None: this machine's. python: what the nodes have, "3.8" to "3.11"; None: what a
        cluster on this machine would take. Each file is checked against the list's hashes; what is here and whole is not
        downloaded again. May run in several processes at once.
        Raises InvalidSpecError for what no packages are for, PreflightError for this machine when none are for it,
        StagingError when the index cannot be reached, sends another file, or the disk is full.
        """
        wanted = None if platform is None else platform_named(platform)
        version = None if python is None else python_named(python)
        with self._session.operation("prefetch"):
            if wanted is not None and version is not None:
                return prefetch(self._session.wheelhouse, wanted, list_for(wanted, version), version)
            transport = LocalTransport()
            facts = probe(transport)
            where = wanted or Platform.of(facts)
            if version is not None:
                return prefetch(self._session.wheelhouse, where, list_for(where, version), version)
            lock, version = first_choice(transport, facts, local=True, python=self._session.config.runtime.python)
            if wanted is None:
                return prefetch(self._session.wheelhouse, where, lock, version)
            if lock.version("ray") != load_lock(RAY_LOCK).version("ray"):
                seen = f"{version[0]}.{version[1]}"
                raise InvalidSpecError(
                    f"this machine's Python is {seen}, which nodes have no use for: say which one the nodes have",
                    field="python",
                    hint='prefetch(platform, "3.11")',
                )
            return prefetch(self._session.wheelhouse, where, list_for(where, version), version)
