"""SQL for psycopg, and keys of advisory locks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.state.pg_sql import lock_key, translated


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT ?", "SELECT %s"),
        ("SELECT ?, '?' FROM t WHERE a = ?", "SELECT %s, '?' FROM t WHERE a = %s"),
        ("SELECT 'it''s ?', ?", "SELECT 'it''s ?', %s"),
        ('SELECT "a?""?", ?', 'SELECT "a?""?", %s'),
        ("SELECT ? -- why?\n, ?", "SELECT %s -- why?\n, %s"),
        ("SELECT ? /* why? */, ?", "SELECT %s /* why? */, %s"),
        ("SELECT a % 2 FROM t WHERE a LIKE '%?%'", "SELECT a %% 2 FROM t WHERE a LIKE '%%?%%'"),
        ("SELECT '?", "SELECT '?"),
        ("", ""),
    ],
)
def test_placeholders_outside_of_quotes_are_translated(sql: str, wanted: str) -> None:
    """What is quoted or a comment keeps its question marks; every % is doubled."""
    assert translated(sql) == wanted


_PLAIN = st.text("abc ,=()")
_QUOTED = st.text("ab?%-/*'\"").map(lambda text: "'" + text.replace("'", "''") + "'")


@given(st.lists(st.one_of(_PLAIN, _QUOTED, st.just("?"), st.just(" % "))))
def test_as_many_placeholders_as_were_written(parts: list[str]) -> None:
    """psycopg fills in what was meant: the text of the literals is what it was."""
    sql = " ".join(parts)
    filled = translated(sql) % tuple(f"${number}" for number in range(parts.count("?")))
    expected = iter(range(parts.count("?")))
    assert filled == " ".join(f"${next(expected)}" if part == "?" else part for part in parts)


@given(st.text(), st.text())
def test_lock_keys_are_64_bits_and_tell_scopes_apart(one: str, other: str) -> None:
    """Signed, as PostgreSQL takes them, and the same each time."""
    assert -(2**63) <= lock_key("skylib", one) < 2**63
    assert (lock_key("skylib", one) == lock_key("skylib", other)) is (one == other)
    assert lock_key("skylib", one) != lock_key("other", one)
