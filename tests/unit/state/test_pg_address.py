"""What of a database's URL is shown, and what is hidden wherever it turns up."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import ConfigError
from skylib.models.secret import Secret
from skylib.state.pg_address import address_of


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))
def test_a_password_is_masked_in_every_form(password: str) -> None:
    """As it is, and as it is written in URLs, wherever a message has it."""
    core = f"QQ{password}QQ"
    address = address_of(Secret(f"postgresql://sky:{quote(core, safe='')}@host:5433/name"))
    for form in (core, quote(core), quote(core, safe=""), quote_plus(core)):
        assert form not in address.masked(f'connection to "{form}" failed')
    assert core not in repr(address)
    assert quote(core, safe="") not in address.where


def test_the_rest_of_the_url_is_shown() -> None:
    """User, host, port and name."""
    where = address_of(Secret("postgresql://sky:hush-hush@db.example:5433/name?sslmode=require")).where
    assert "hush-hush" not in where
    assert all(part in where for part in ("sky", "db.example:5433", "name"))


def test_a_password_that_is_the_users_name_spoils_no_message() -> None:
    """It is shown anyway."""
    address = address_of("postgresql://postgres:postgres@host/name")
    assert address.masked('role "postgres" is not permitted to log in') == 'role "postgres" is not permitted to log in'


@pytest.mark.parametrize("password", ["b", "ab", "a'b"])
def test_a_short_password_is_masked_where_a_password_stands(password: str) -> None:
    """Other words that have its letters stay readable."""
    masked = address_of(f"postgresql://sky:{quote(password)}@host/name").masked
    assert masked("database absent: role about a'bc") == "database absent: role about a'bc"
    assert masked(f"postgres://x:{quote(password)}@other") == "postgres://x:<redacted>@other"
    for text in (f"?password={quote(password)}&x=ab", f"password={password} x=ab", f"password='{password}' x=ab"):
        assert masked(text).replace("'", "") in ("?password=<redacted>&x=ab", "password=<redacted> x=ab")


@pytest.mark.parametrize("url", ["mysql://a:hush-hush@host/x", "hush-hush", "", 3])
def test_what_is_no_url_is_refused_unseen(url: object) -> None:
    """ConfigError for `db`."""
    with pytest.raises(ConfigError) as caught:
        address_of(url)  # type: ignore[arg-type]
    assert "hush-hush" not in str(caught.value)
    assert caught.value.key == "db"
