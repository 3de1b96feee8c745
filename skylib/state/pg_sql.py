"""SQL as the store writes it, for psycopg."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256

__all__ = ["lock_key", "translated"]

# What a question mark may stand in and mean itself: literals, quoted names, comments. An open one goes to the end.
_PARTS = re.compile(r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|\?|%", re.DOTALL)


@lru_cache(maxsize=512)
def translated(sql: str) -> str:
    """`?` placeholders as %s, and every % doubled; what is quoted or a comment keeps its question marks."""
    return _PARTS.sub(_part, sql)


def _part(found: re.Match[str]) -> str:
    text = found[0]
    return "%s" if text == "?" else text.replace("%", "%%")


def lock_key(schema: str, scope: str) -> int:
    """64 bits, signed, for an advisory lock: one number for each scope of each schema, the same on every machine."""
    return int.from_bytes(sha256(f"{schema}\0{scope}".encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)
