"""What goes wrong with a PostgreSQL database, judged: away for now, to be done again, or an error of ours for good."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from skylib.errors import ConfigError, SkyError, StateError
from skylib.state.pg_address import Address

if TYPE_CHECKING:
    import psycopg

__all__ = ["Again", "Away", "Busy", "judged"]


class Away(Exception):
    """The database cannot be used now, and the connection is of no use any more. Never leaves the state layer."""


class Again(Exception):
    """The database asks for the transaction to be run again. Never leaves the state layer."""


class Busy(Exception):
    """A lock was not free in time. Never leaves the state layer."""


# SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY = frozenset({"25006", "25P03", "53300", "57P01", "57P02", "57P03", "57P05"})
_AWAY_CLASS = "08"
_AGAIN = frozenset({"40001", "40P01"})
_LOCK_TIMEOUT = "55P03"
_LOST_TABLES = (
    "a table of the state is not there: restore it from a backup; or begin with an empty state, where client.discover() "
    "lists the clusters that run and client.adopt(name) takes them up"
)
_HINTS = {
    "28000": "see pg_hba.conf of the server, and the user of `db`",
    "28P01": "see the password of `db`, or PGPASSWORD and ~/.pgpass of this account",
    "3D000": "create the database, or name another one in `db`",
    "42501": "give the user of `db` the right to connect to that database, and to its schema skylib",
    "42P01": _LOST_TABLES,
    "53100": "free space on the database server",
    "57014": "somebody ended the statement on the server (pg_cancel_backend): try again",
}
# A refused connection has no SQLSTATE in libpq, only words; in another language it is taken for one that may be tried again.
_REFUSALS = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("pg_hba.conf rejects", "28000"),
    ("is not permitted to log in", "28000"),
    ("authentication failed", "28000"),
    ("permission denied for database", "42501"),
    ("server does not support SSL", "28000"),
    ("certificate", "28000"),
)
# What libpq says before it asks any server: nothing gets better by waiting.
_MISTAKES = re.compile(
    r"invalid (?!response)\S+ value: |definition of service .* not found|service file .* not found|syntax error in service"
    r"|invalid port number|invalid (integer )?value .* for connection option|could not match \d+ "
    r"|invalid connection option|root certificate file .* does not exist|certificate .* does not exist"
    r"|weak sslmode|may not be used with|requires? .*sslmode"
)


def judged(error: psycopg.Error, address: Address, *, broken: bool) -> Exception:
    """Away, Again, Busy or a SkyError, with the password masked. broken: the connection is of no use any more."""
    said = " ".join(address.masked(str(error)).split()) or type(error).__name__
    if error.sqlstate is None and _MISTAKES.search(said):
        hint = "see `db`, and the variables PG* of this process"
        return ConfigError(f"{address.where} cannot be connected to as `db` says: {said}", key="db", hint=hint)
    state = error.sqlstate or _refusal(said)
    if state is None:
        if broken:
            return Away(said)
        return StateError(f"{address.where} could not be used: {said}", evidence=type(error).__name__)
    if state in _AWAY or state.startswith(_AWAY_CLASS):
        return Away(said)
    if state in _AGAIN:
        return Again(said)
    if state == _LOCK_TIMEOUT:
        return Busy(said)
    return _for_good(said, state, address)


def _for_good(said: str, state: str, address: Address) -> SkyError:
    return StateError(
        f"{address.where} could not be used: {said}", evidence=f"SQLSTATE {state}", sqlstate=state, hint=_HINTS.get(state)
    )


def _refusal(said: str) -> str | None:
    for words, state in _REFUSALS:
        if words in said:
            return state
    if "FATAL:" in said and "does not exist" in said:
        return "28000" if "role " in said else "3D000"
    return None
