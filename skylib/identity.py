"""Who and where this client is: the account, its machine, and the eight hex digits that name a home."""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from skylib.paths import SkyHome, write_private

__all__ = ["account_name", "client_hash", "known_hash", "machine_name"]


def account_name() -> str:
    """The account's name, else its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def machine_name(machine_id: Path = Path("/etc/machine-id")) -> str:
    """What this account of this machine is called among others: "<host>-<hash>-uid<uid>".

    A `local` cluster is the account's. Machines of one image often share their name, and sometimes the id: they differ
    where either does. Without a machine id there are no six digits of its hash. Source of the id: machine-id(5), which
    asks that it be hashed before it is shown.
    """
    try:
        identity = machine_id.read_bytes().strip()
    except OSError:
        identity = b""
    digits = f"-{hashlib.sha256(b'skylib' + identity).hexdigest()[:6]}" if identity else ""
    return f"{socket.gethostname()}{digits}-uid{os.getuid()}"


def client_hash(home: SkyHome) -> str:
    """Eight hex digits that name this client, made once per home; $SKYPILOT_USER_ID has its way.

    Of several processes that make it at once one wins, and all have that one's.
    """
    given = os.environ.get("SKYPILOT_USER_ID")
    if given:
        return given
    known = known_hash(home)
    if not known:
        seed = f"{account_name()}@{machine_name()}:{secrets.token_hex(8)}"
        made = hashlib.sha256(seed.encode()).hexdigest()[:8]
        beside = home.user_hash.with_name(f".{home.user_hash.name}.{made}")
        write_private(beside, made.encode() + b"\n")
        try:
            os.link(beside, home.user_hash)
        except FileExistsError:
            if not known_hash(home):  # an empty one that something else left
                os.replace(beside, home.user_hash)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        known = known_hash(home)
    return known


def known_hash(home: SkyHome) -> str:
    """The digits that the home has, "" when it has none yet. Raises OSError when they cannot be read."""
    try:
        return home.user_hash.read_text().strip()
    except FileNotFoundError:
        return ""
