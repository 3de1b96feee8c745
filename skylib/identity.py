"""Who and where this client is: the account, the machine, and the eight hex digits that name a home."""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import socket

from skylib.paths import SkyHome, write_private

__all__ = ["account_name", "client_hash", "machine_name"]


def account_name() -> str:
    """The account's name, else its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def machine_name() -> str:
    """What this machine calls itself."""
    return socket.gethostname()


def client_hash(home: SkyHome) -> str:
    """Eight hex digits that name this client, made once per home; $SKYPILOT_USER_ID has its way."""
    given = os.environ.get("SKYPILOT_USER_ID")
    if given:
        return given
    try:
        known = home.user_hash.read_text().strip()
    except FileNotFoundError:
        known = ""
    if not known:
        seed = f"{account_name()}@{machine_name()}:{secrets.token_hex(8)}"
        known = hashlib.sha256(seed.encode()).hexdigest()[:8]
        write_private(home.user_hash, known.encode() + b"\n")
    return known
