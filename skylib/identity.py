"""Who and where this client is: the account, the machine, and the eight hex digits that name a home."""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from skylib.paths import SkyHome, write_private

__all__ = ["account_name", "client_hash", "machine_name"]


def account_name() -> str:
    """The account's name, else its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def machine_name(machine_id: Path = Path("/etc/machine-id")) -> str:
    """What this machine is called among others: its host name and, where it has a machine id, six digits of its hash.

    Machines of one image often share their name, and sometimes the id: they differ where either does.
    Source of the id: machine-id(5), which asks that it be hashed before it is shown.
    """
    try:
        identity = machine_id.read_bytes().strip()
    except OSError:
        identity = b""
    name = socket.gethostname()
    return f"{name}-{hashlib.sha256(b'skylib' + identity).hexdigest()[:6]}" if identity else name


def client_hash(home: SkyHome) -> str:
    """Eight hex digits that name this client, made once per home; $SKYPILOT_USER_ID has its way.

    Of several processes that make it at once one wins, and all have that one's.
    """
    given = os.environ.get("SKYPILOT_USER_ID")
    if given:
        return given
    known = _known_hash(home)
    if not known:
        seed = f"{account_name()}@{machine_name()}:{secrets.token_hex(8)}"
        made = hashlib.sha256(seed.encode()).hexdigest()[:8]
        beside = home.user_hash.with_name(f".{home.user_hash.name}.{made}")
        write_private(beside, made.encode() + b"\n")
        try:
            os.link(beside, home.user_hash)
        except FileExistsError:
            if not _known_hash(home):  # an empty one that something else left
                os.replace(beside, home.user_hash)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        known = _known_hash(home)
    return known


def _known_hash(home: SkyHome) -> str:
    try:
        return home.user_hash.read_text().strip()
    except FileNotFoundError:
        return ""
