"""What homes that share a database know in common beside clusters: the keys of their SSH hosts."""

from __future__ import annotations

import attrs

from skylib.state.base import StateStore

__all__ = ["StoredHostKeys"]

_PREFIX = "host_keys/"


@attrs.frozen(kw_only=True)
class StoredHostKeys:
    """Lines of known_hosts, one for each host, in the store's small values. where: the database, for people."""

    store: StateStore
    where: str

    def key(self, name: str) -> str:
        """The line of a host ("host" or "[host]:port"); "" when it is not known. Raises StateError."""
        return str(self.store.config_get(_PREFIX + name) or "")

    def add(self, name: str, line: str) -> str:
        """Keep a host's line unless it has one; the line that stands after. Raises StateError."""
        return str(self.store.config_add(_PREFIX + name, line))

    def forget(self, name: str) -> None:
        """Raises StateError."""
        self.store.config_set(_PREFIX + name, None)
