"""Strings in a row, each with its length before it. No imports, like all that a rank's supervisor needs."""

from __future__ import annotations

__all__ = ["join", "split"]


def join(strings: list[str]) -> bytes:
    """Any text, NUL and newlines included; bytes that were no UTF-8 travel as surrogates."""
    parts = []
    for text in strings:
        data = text.encode("utf-8", "surrogateescape")
        parts.append(b"%d:" % len(data) + data)
    return b"".join(parts)


def split(data: bytes) -> list[str]:
    """What `join` was given. Raises ValueError when it is something else, or not whole."""
    strings = []
    position = 0
    while position < len(data):
        colon = data.index(b":", position)
        end = colon + 1 + int(data[position:colon])
        if end > len(data):
            raise ValueError("the last string is not whole")
        strings.append(data[colon + 1 : end].decode("utf-8", "surrogateescape"))
        position = end
    return strings
