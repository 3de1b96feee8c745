"""Lines of known_hosts files, parsed and matched. The format is that of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

import attrs

from skylib.transport.ssh_config import pattern_matches

__all__ = ["KnownKey", "Verdict", "fingerprint", "judge", "known_name", "parse", "render"]


@attrs.frozen(kw_only=True)
class KnownKey:
    """One line. hosts: its patterns, or one hashed name "|1|salt|hash". marker: "", "@revoked" or "@cert-authority"."""

    hosts: tuple[str, ...]
    kind: str
    blob: bytes = attrs.field(repr=False)
    marker: str = ""
    file: str = ""
    line: int = 0

    def covers(self, name: str) -> bool:
        if len(self.hosts) == 1 and self.hosts[0].startswith("|1|"):
            return _hash_matches(self.hosts[0], name)
        return pattern_matches(self.hosts, name)


@attrs.frozen(kw_only=True)
class Verdict:
    """known: the key is on record. against: the line that contradicts it, when one does. Both unset: a new host."""

    known: bool = False
    against: KnownKey | None = None


def known_name(host: str, port: int) -> str:
    """As known_hosts names it: "host", or "[host]:port" for another port than 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def fingerprint(blob: bytes) -> str:
    """As `ssh-keygen -l` shows it: SHA256 and base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def parse(text: str, file: str = "") -> tuple[KnownKey, ...]:
    """Every line that can be read; others are passed over, as OpenSSH does."""
    return tuple(key for number, line in enumerate(text.splitlines(), 1) if (key := _parse_line(line, file, number)))


def render(name: str, kind: str, blob: bytes) -> str:
    """One line of a known_hosts file, with its newline."""
    return f"{name} {kind} {base64.b64encode(blob).decode()}\n"


def judge(keys: Iterable[KnownKey], name: str, kind: str, blob: bytes) -> Verdict:
    """What the record says of the key that `name` shows. A revoked key is refused wherever else it stands.

    A host of which only keys of other kinds are on record counts as changed: it was asked for those kinds first.
    """
    known = False
    against: KnownKey | None = None
    for key in keys:
        if not key.covers(name) or key.marker == "@cert-authority":
            continue
        if key.marker == "@revoked":
            if key.blob == blob:
                return Verdict(against=key)
        elif key.blob == blob:
            known = True
        elif against is None or (key.kind == kind and against.kind != kind):
            against = key
    return Verdict(known=True) if known else Verdict(against=against)


def _parse_line(line: str, file: str, number: int) -> KnownKey | None:
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    marker = words.pop(0) if words[0].startswith("@") else ""
    if marker not in ("", "@revoked", "@cert-authority") or len(words) < 3:
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    return KnownKey(hosts=tuple(words[0].split(",")), kind=words[1], blob=blob, marker=marker, file=file, line=number)


def _hash_matches(hashed: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hashed[3:].split("|"))
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
