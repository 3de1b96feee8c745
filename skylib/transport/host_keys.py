"""Which key a host may show: the user's known_hosts files, then ours; a new host's key is accepted once and kept.

Homes that share their state (a `db`) share this record, too: a host that one of them has met is known to all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from skylib.errors import HostKeyError, TransportError
from skylib.locks import Locks
from skylib.paths import SkyHome, ensure_private_dir, write_private
from skylib.transport.known_hosts import KnownKey, fingerprint, judge, known_name, parse, render

__all__ = ["HostKeys", "SharedHostKeys", "preferred_order"]

_log = logging.getLogger(__name__)
_LOCK_TIMEOUT_S = 30.0


class SharedHostKeys(Protocol):
    """Keys that several homes have in common. where: their place, for people."""

    @property
    def where(self) -> str: ...

    def key(self, name: str) -> str:
        """The line of a host, as known_hosts has it; "" when it is not known. Raises StateError."""

    def add(self, name: str, line: str) -> str:
        """Keep a host's line unless it has one; the line that stands after. Raises StateError."""

    def forget(self, name: str) -> None:
        """Raises StateError."""


@attrs.frozen(kw_only=True)
class HostKeys:
    """The record of one home. Files are read anew each time: they are small, and others write them too.

    locks: of the home's files; of its own by default.
    """

    home: SkyHome
    shared: SharedHostKeys | None = None
    locks: Locks = attrs.field(eq=False, repr=False, default=attrs.Factory(lambda self: Locks(self.home), takes_self=True))

    def kinds(self, name: str, port: int, files: Iterable[str]) -> tuple[str, ...]:
        """Kinds of key that are on record for a host: to be asked for first, or it would look changed."""
        wanted = known_name(name, port)
        found = (key.kind for key in self._read_all(files, wanted) if key.marker == "" and key.covers(wanted))
        return tuple(dict.fromkeys(found))

    def check(self, name: str, port: int, kind: str, blob: bytes, *, files: Iterable[str], host: str) -> bool:
        """True when the key was on record; False when the host was new and its key was written down now.

        files: the user's known_hosts files. host: for people. Raises HostKeyError when the record says otherwise,
        TransportError when our record cannot be written, StateError when the shared one cannot be used.
        """
        wanted = known_name(name, port)
        files = tuple(files)
        if self._allowed(self._read_all(files, wanted), wanted, kind, blob, host):
            self._share(wanted, kind, blob, host)
            return True
        with self.locks.hold("known_hosts", operation="known_hosts", timeout_s=_LOCK_TIMEOUT_S):
            # Somebody else may have met the host since.
            if self._allowed(self._read_all(files, wanted), wanted, kind, blob, host):
                return True
            self._share(wanted, kind, blob, host)
            self._append(render(wanted, kind, blob), host)
        _log.info("%s is a new host; its %s key %s was accepted", host, kind, fingerprint(blob))
        return False

    def forget(self, name: str) -> int:
        """Take a host out of our record and the shared one; how many lines of ours went. The user's files stay.

        name: as known_hosts has it, "host" or "[host]:port".
        """
        wanted = name.lower()
        with self.locks.hold("known_hosts", operation="known_hosts", timeout_s=_LOCK_TIMEOUT_S):
            if self.shared is not None:
                self.shared.forget(wanted)
            lines = _text(str(self.home.known_hosts)).splitlines(keepends=True)
            kept = [line for line in lines if not any(wanted in key.hosts for key in parse(line))]
            if len(kept) < len(lines):
                write_private(self.home.known_hosts, "".join(kept).encode())
            return len(lines) - len(kept)

    def _share(self, name: str, kind: str, blob: bytes, host: str) -> None:
        """Raises HostKeyError when another home has met another key meanwhile."""
        if self.shared is not None:
            stands = self.shared.key(name) or self.shared.add(name, render(name, kind, blob))
            self._allowed(parse(stands, self.shared.where), name, kind, blob, host)

    def _allowed(self, keys: Iterable[KnownKey], name: str, kind: str, blob: bytes, host: str) -> bool:
        verdict = judge(keys, name, kind, blob)
        against = verdict.against
        if against is None:
            return verdict.known
        revoked = against.marker == "@revoked"
        raise HostKeyError(
            f"the host key of {name} is revoked" if revoked else f"the host key of {name} is not the one on record",
            host=host,
            step="host key",
            evidence=(
                f"on record: {against.kind} {fingerprint(against.blob)} ({against.file}, line {against.line}); "
                f"shown now: {kind} {fingerprint(blob)}"
            ),
            hint=(
                "the key was marked as revoked: do not use the host before its owner gave it a new one"
                if revoked
                else "somebody may stand in between. If the host was installed anew, "
                f"client.forget_host_key({name!r}) or remove line {against.line} of {against.file}, and try again"
            ),
            expected=fingerprint(against.blob),
            seen=fingerprint(blob),
            file=against.file,
            line=against.line,
        )

    def _read_all(self, files: Iterable[str], name: str) -> list[KnownKey]:
        found: list[KnownKey] = []
        if self.shared is not None:
            found += parse(self.shared.key(name), self.shared.where)
        for file in (*files, str(self.home.known_hosts)):
            keys = parse(_text(file), file)
            if any(key.marker == "@cert-authority" for key in keys):
                _log.debug("%s: @cert-authority lines are passed over; host certificates are not used", file)
            found += keys
        return found

    def _append(self, line: str, host: str) -> None:
        path = self.home.known_hosts
        try:
            ensure_private_dir(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                file.seek(0)
                content = file.read()
                file.write((b"" if not content or content.endswith(b"\n") else b"\n") + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            message = f"could not write the new host's key down in {path}: {exc.strerror}"
            raise TransportError(message, host=host, step="host key", path=str(path)) from exc


def preferred_order(supported: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """`supported` algorithms with those for `known` kinds of key first ("ssh-rsa" keys sign with rsa-sha2-*)."""
    supported = tuple(supported)
    first: list[str] = []
    for kind in known:
        wanted = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa") if kind == "ssh-rsa" else (kind,)
        first += [name for name in wanted if name in supported]
    return tuple(dict.fromkeys((*first, *supported)))


def _text(file: str) -> str:
    """A file that is missing or that we may not read says nothing, as with OpenSSH."""
    try:
        return Path(file).read_text(errors="replace")
    except OSError as exc:
        if not isinstance(exc, FileNotFoundError):
            _log.debug("%s cannot be read: %s", file, exc.strerror)
        return ""
