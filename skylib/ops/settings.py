"""Settings of a client: read, explained, and changed for all clients of the home or of the database."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from skylib.config.checking import checked, known_key
from skylib.config.document import read_document, read_text
from skylib.config.edit import changed
from skylib.config.layers import Origin, located
from skylib.config.load import Config, Explained
from skylib.config.schema import (
    DATABASE,
    AgentConfig,
    LocksConfig,
    LogsConfig,
    ProvisionConfig,
    RuntimeConfig,
    SshConfig,
)
from skylib.errors import ConfigError
from skylib.models.frozen_map import thaw
from skylib.paths import write_private
from skylib.session import Session

__all__ = ["Settings"]

_SCOPE = "config"
_BOM = b"\xef\xbb\xbf"


class Settings:
    """The settings in force, by section, and the way to change them.

    set and unset write into config.yaml of the home, or into the database where `db` is set. This client has the new
    values at once (connections that are open keep what they were opened with); another one when it is made or reloads.
    """

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def ssh(self) -> SshConfig:
        """How hosts are reached."""
        return self._session.config.ssh

    @property
    def provision(self) -> ProvisionConfig:
        """How clusters come up."""
        return self._session.config.provision

    @property
    def agent(self) -> AgentConfig:
        """The agent on the head node."""
        return self._session.config.agent

    @property
    def runtime(self) -> RuntimeConfig:
        """The environment that the internal Ray runs in."""
        return self._session.config.runtime

    @property
    def locks(self) -> LocksConfig:
        """Waiting for other operations."""
        return self._session.config.locks

    @property
    def logs(self) -> LogsConfig:
        """Logs of operations, under the home."""
        return self._session.config.logs

    def explain(self, key: str) -> Explained:
        """The value of a dotted key ("ssh.keepalive_s"), where it was written, and what that hides. Raises ConfigError."""
        return self._session.config.explain(key)

    def reload(self) -> Config:
        """Read all layers anew. Raises ConfigError, and keeps the values, when one of them is wrong."""
        return self._session.reload_config()

    def set(self, key: str, value: object) -> Explained:
        """Keep a setting for all clients, if the schema takes it: client.config.set("ssh.keepalive_s", 5).

        Returns what is in force then: a later layer, such as a variable, may hide the new value, and `origin` says so.
        In a file everything else stays as it was written. Raises ConfigError (unknown key, wrong value, a file that does
        not allow it), LockTimeout, StateError.
        """
        self._check(key)
        if value is None:
            raise ConfigError(f"{key} has no value None", key=key, hint=f"client.config.unset({key!r}) takes it away")
        self._check(key, value)
        return self._write(key, value)

    def unset(self, key: str) -> Explained:
        """Take a setting away, where `set` writes it; one that is not there is fine. Returns and raises as `set`."""
        self._check(key)
        return self._write(key, None)

    def _check(self, key: str, *value: object) -> None:
        if key == DATABASE.name:
            raise ConfigError(
                "db is not changed while a client works with it",
                key=key,
                hint="write it into config.yaml, and make a new Client",
            )
        known_key(key)
        section, name = key.split(".")
        for each in value:
            checked(located({section: {name: each}}, Origin(source=f"client.config.set({key!r}, ...)")))

    def _write(self, key: str, value: object) -> Explained:
        session = self._session
        with session.locks.hold(_SCOPE, operation="config", timeout_s=session.config.locks.timeout_s):
            if session.database is None:
                self._write_file(key, value)
            else:
                self._write_database(key, value)
            return session.reload_config().explain(key)  # under the lock: of two threads the later write is seen last

    def _write_file(self, key: str, value: object) -> None:
        path = self._session.home.config
        text = read_text(path)
        checked({name: each for name, each in read_document(text, str(path)).items() if name != DATABASE.name})
        new = changed(text, str(path), key, value)
        if new != text:
            target = Path(os.path.realpath(path))
            write_private(target, (_BOM if _has_mark(target) else b"") + new.encode())

    def _write_database(self, key: str, value: object) -> None:
        section, name = key.split(".")
        store = self._session.store
        stored = store.config_get(_SCOPE)
        kept = dict(stored) if isinstance(stored, Mapping) else {}
        settings = dict(kept.get(section) or {})
        settings.pop(name, None)
        if value is not None:
            settings[name] = value
        kept[section] = settings
        fresh = {section: content for section, content in kept.items() if content}
        store.config_set(_SCOPE, thaw(fresh) if fresh else None)

    def __repr__(self) -> str:
        """What is known without a look at files or the database."""
        known = self._session.known_config
        return "Settings(<not read yet>)" if known is None else repr(known)


def _has_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BOM)) == _BOM
    except FileNotFoundError:
        return False
