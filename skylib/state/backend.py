"""What a store of rows is kept in, as a protocol: transactions, and SQL that both SQLite and PostgreSQL take.

Statements are written once for both: `?` placeholders, positional; INSERT ... ON CONFLICT ... DO UPDATE, no RETURNING
(statements.py says what else is not in both); names that are words of SQL ("end") in double quotes. Values are str, int,
float, bool and None; JSON is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["Backend", "Connection"]

_T = TypeVar("_T")


class Connection(Protocol):
    """One connection inside one transaction. Never kept beyond it, never used by two threads."""

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""

    def execute(self, sql: str, *parameters: object) -> int:
        """Run one statement; how many rows it changed."""

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each row of parameters; nothing for no rows."""


class Backend(Protocol):
    """Transactions on one store. Safe from many threads and processes, and after fork; opened at the first use.

    Both raise StateError (retryable when it was busy or away for too long) and MigrationError (the store is newer).
    An action may be called again, when the store was busy: it must do nothing but use its connection.
    """

    @property
    def where(self) -> str:
        """The store's place, for people: a path, or an URL without its password."""

    def read(self, action: Callable[[Connection], _T]) -> _T:
        """What `action` returns; it sees one state of the store throughout."""

    def write(self, action: Callable[[Connection], _T], *, durable: bool = True) -> _T:
        """`action` as one transaction that no other writer is inside of; any error undoes all of it.

        durable: it survives a power cut once this returns. Else it survives the end of this process, and a power cut
        may undo it, never half: enough for what was observed and can be observed again.
        """

    def close(self) -> None:
        """Let go of connections; the next call opens new ones."""
