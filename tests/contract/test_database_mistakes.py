"""Mistakes in `db` that libpq finds by itself: told at once, since nothing gets better by waiting."""

from __future__ import annotations

import pytest

from skylib.errors import ConfigError
from skylib.state.pg_connections import PgConnections

MISTAKES = {
    "sslmode=bogus": "sslmode",
    "service=nope": "nope",
    "target_session_attrs=some": "target_session_attrs",
    "connect_timeout=soon": "connect_timeout",
    "keepalives_idle=x": "keepalives_idle",
    "channel_binding=maybe": "channel_binding",
}


@pytest.mark.parametrize("query", MISTAKES)
def test_a_mistake_in_the_url_is_told_at_once(query: str) -> None:
    """As ConfigError that names the option and hides the password; no try follows."""
    told: list[object] = []
    connections = PgConnections(f"postgresql://ann:hunter22@127.0.0.1:9/x?{query}", events=told.append)
    with pytest.raises(ConfigError, match=MISTAKES[query]) as caught:
        connections.read(lambda each: each.rows("SELECT 1"))
    assert caught.value.key == "db"
    assert "hunter22" not in str(caught.value)
    assert told == []


def test_a_port_that_is_none_is_told_at_once() -> None:
    """Wherever in the URL the mistake is."""
    with pytest.raises(ConfigError, match="port"):
        PgConnections("postgresql://127.0.0.1:99999/x").read(lambda each: each.rows("SELECT 1"))
