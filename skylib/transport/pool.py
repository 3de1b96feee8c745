"""The transports of one client: one for each address, made when first asked for."""

from __future__ import annotations

from pathlib import Path

from skylib.errors import ConnectError, InvalidSpecError
from skylib.events import EventSink, discard
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.base import Transport
from skylib.transport.host_keys import HostKeys
from skylib.transport.local import LocalTransport
from skylib.transport.ssh import SshTransport
from skylib.transport.ssh_params import SshSettings

__all__ = ["Transports"]


class Transports:
    """Makes and keeps transports. Safe from threads and after fork: each transport sees to its own connection."""

    def __init__(
        self,
        home: SkyHome,
        *,
        settings: SshSettings | None = None,
        user_config_path: Path | None = None,
        host_keys: HostKeys | None = None,
        machine: str = "localhost",
        events: EventSink = discard,
    ) -> None:
        """host_keys: by default those of the home alone. machine: what this one is called in a state that they share."""
        self._home = home
        self._settings = settings or SshSettings()
        self._user_config_path = user_config_path
        self._host_keys = host_keys or HostKeys(home=home)
        self._machine = machine
        self._events = events
        self._kept: dict[HostAddress, Transport] = {}

    def get(self, address: HostAddress) -> Transport:
        """The transport of an address; nothing is connected yet.

        Raises InvalidSpecError on an unknown kind, ConnectError for a `local` node that is another machine's.
        """
        kept = self._kept.get(address)
        if kept is not None:
            return kept
        # setdefault is one step for all threads, and needs no lock that a fork could leave locked
        return self._kept.setdefault(address, self._make(address))

    def use(self, settings: SshSettings, user_config_path: Path | None) -> None:
        """Make connections with these from now on; those that are open stay as they are."""
        self._settings, self._user_config_path = settings, user_config_path
        for transport in tuple(self._kept.values()):
            if isinstance(transport, SshTransport):
                transport.settings = settings

    def close(self) -> None:
        """Close every connection; the transports open anew when they are used again."""
        for transport in tuple(self._kept.values()):
            transport.close()

    def __enter__(self) -> Transports:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make(self, address: HostAddress) -> Transport:
        if address.kind == "local":
            if address.is_elsewhere(self._machine):
                raise ConnectError(
                    f"this node is `local` to machine {address.host!r}, and this is {self._machine!r}",
                    host=address.host,
                    hint=f"use the cluster from {address.host}: on that machine, as that user",
                    retryable=False,
                )
            return LocalTransport(address.host, events=self._events)
        if address.kind == "ssh":
            return SshTransport(
                address,
                home=self._home,
                settings=self._settings,
                user_config_path=self._user_config_path,
                host_keys=self._host_keys,
                events=self._events,
            )
        message = f"no transport of kind {address.kind!r}"
        raise InvalidSpecError(message, field="kind", hint='kinds are "local" and "ssh"', host=address.host)
