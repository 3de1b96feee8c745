"""The error of a request that cannot be served."""

from __future__ import annotations

__all__ = ["Refused"]


class Refused(Exception):
    """A request that cannot be served. kind: the protocol's name for the cause; facts travel with the error."""

    def __init__(self, kind: str, message: str, **facts: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.facts = facts
