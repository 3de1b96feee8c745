"""Pools that several homes share through a database: what each wrote into its pool file is known to all.

Each home remembers what its file said when it was last looked at, so that an edit can be told from a copy that is old:
a pool that was changed here goes to the database, one that was not is what the database says by now. Of two edits of
one pool the later look wins. Passwords in the file are not kept, as ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import attrs

from skylib.errors import ConfigError
from skylib.models.yaml_source import write_document
from skylib.paths import SkyHome, write_private
from skylib.providers.pool_file import Pool, parse_pools, read_pool_bodies

__all__ = ["PoolBodies", "PoolChanges", "SharedPools", "merge_pools"]

# A pool as its owner wrote it, without password, by name.
PoolBodies = Mapping[str, Mapping[str, object]]
_PREFIX = "pools/"


@attrs.frozen(kw_only=True)
class PoolChanges:
    """What is to be done in the database, and the pools that count then."""

    put: PoolBodies
    drop: frozenset[str]
    effective: PoolBodies


def merge_pools(base: PoolBodies, mine: PoolBodies | None, theirs: PoolBodies) -> PoolChanges:
    """Three-way, pool by pool. base: this home's file when it was last looked at. mine: now; None: there is no file.

    A pool edited here since wins; one that was deleted here goes, unless another home has changed it since.
    """
    if mine is None:
        return PoolChanges(put={}, drop=frozenset(), effective=theirs)
    put = {name: body for name, body in mine.items() if body != base.get(name) and body != theirs.get(name)}
    drop = frozenset(
        name for name in base if name not in mine and name in theirs and theirs[name] == base[name]
    )
    effective = {name: body for name, body in theirs.items() if name not in drop}
    effective.update(put)
    return PoolChanges(put=put, drop=drop, effective=effective)


class Values(Protocol):
    """The part of a StateStore that this needs."""

    def config_set(self, key: str, value: object) -> None: ...

    def config_items(self, prefix: str) -> dict[str, object]: ...


@attrs.frozen(kw_only=True)
class SharedPools:
    """The pools of one home whose state is in a database. hold: a lock that all homes share. where: for people."""

    home: SkyHome
    values: Values
    where: str
    hold: Callable[[], AbstractContextManager[object]]

    def pools(self) -> dict[str, Pool]:
        """Every pool there is, after this home's edits went to the database.

        Raises ConfigError (file and line for the file's own faults), StateError.
        """
        mine = read_pool_bodies(self.home.ssh_node_pools)
        base = self._base()
        changes = merge_pools(base, mine, self._theirs())
        if changes.put or changes.drop:
            with self.hold():
                changes = merge_pools(base, mine, self._theirs())
                for name, body in changes.put.items():
                    self.values.config_set(_PREFIX + name, dict(body))
                for name in changes.drop:
                    self.values.config_set(_PREFIX + name, None)
        if mine is not None and mine != base:
            write_private(self._seen, json.dumps({self.where: mine}).encode())
        return parse_pools(write_document(changes.effective), file=self.where) if changes.effective else {}

    def _theirs(self) -> PoolBodies:
        found = {key.removeprefix(_PREFIX): value for key, value in self.values.config_items(_PREFIX).items()}
        wrong = [name for name, body in found.items() if not isinstance(body, Mapping)]
        if wrong:
            raise ConfigError(f"{self.where}: pool {wrong[0]!r} is no map", file=self.where, key=wrong[0])
        return found  # type: ignore[return-value]

    @property
    def _seen(self) -> Path:
        return self.home.root / "ssh_node_pools.seen.json"

    def _base(self) -> PoolBodies:
        """Nothing, where it was not looked at for this database, or the record of it cannot be read."""
        try:
            seen = json.loads(self._seen.read_bytes())
        except (OSError, ValueError):
            return {}
        found = seen.get(self.where) if isinstance(seen, dict) else None
        return found if isinstance(found, dict) else {}
