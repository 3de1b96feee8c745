"""`db`: which database a home's state is kept in, found before anything else is read from the configuration.

Sources, later ones win: `db` in the home's config.yaml, `$SKYLIB_DB`, `Client(config={"db": ...})`. The URL holds a
password, so it travels as a Secret, and no message quotes what was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

import attrs

from skylib.config.checking import quoted, refused
from skylib.config.document import read_layer
from skylib.config.layers import Layer, Origin, Setting
from skylib.config.schema import DATABASE
from skylib.errors import ConfigError
from skylib.models.secret import Secret
from skylib.models.spec_errors import kind_of
from skylib.paths import SkyHome

__all__ = ["OVERRIDES", "Place", "database_setting", "find_database", "given_settings", "place_of", "refuse_others"]

OVERRIDES = Origin(source="Client(config=...)")
_SCHEMES = ("postgresql", "postgres")
_ENCODE = "percent-encode what is no letter or digit: urllib.parse.quote(password, safe='')"
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/]*)(?::\d{0,5})?")


def given_settings(config: Mapping[str, object] | None) -> dict[str, object]:
    """What Client(config=...) was given, its `db` as a Secret. Raises ConfigError for what is no map."""
    if config is not None and not isinstance(config, Mapping):
        raise refused(OVERRIDES, None, f"expected a map of settings, got {kind_of(config)}")
    given = dict(config or {})
    url = given.get(DATABASE.name)
    return {**given, DATABASE.name: Secret(url)} if isinstance(url, str) else given


def find_database(
    home: SkyHome, overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Secret | None:
    """The URL of the database that this home's state is kept in; None: the home keeps it itself.

    Raises ConfigError (facts: file, line, key) for what is no PostgreSQL URL, and for other keys beside `db` in
    config.yaml.
    """
    found = database_setting(home, overrides, environ)
    return found.value if found is not None and isinstance(found.value, Secret) else None


def database_setting(
    home: SkyHome, overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Setting | None:
    """`db` with its origin; the value is a Secret. Raises as find_database."""
    layer = read_layer(home.config)
    environment = os.environ if environ is None else environ
    given = (
        layer.get(DATABASE.name),
        Setting(value=environment.get(DATABASE.variable) or None, origin=Origin(source=f"${DATABASE.variable}")),
        Setting(value=(overrides or {}).get(DATABASE.name), origin=OVERRIDES),
    )
    found = None
    for setting in given:
        if setting is not None and setting.value is not None:
            found = Setting(value=_url(setting), origin=setting.origin)
    if found is not None:
        refuse_others(layer, found)
    return found


def refuse_others(layer: Layer, database: Setting) -> None:
    """Raises ConfigError that names every key of config.yaml beside `db`: those settings are kept in the database."""
    others = [(name, setting.origin) for name, setting in layer.items() if name != DATABASE.name]
    if others:
        first = others[0][1]
        each = ", ".join(f"{quoted(name, origin)} (line {origin.line})" for name, origin in others)
        raise refused(
            first,
            others[0][0],
            f"with db set (by {database.origin}) this file cannot have other keys: {each}",
            hint="remove them here, and keep them in the database with client.config.set(key, value)",
        )


@attrs.frozen(kw_only=True)
class Place:
    """What of a database's URL can be shown. label: "host/name". masked: the URL without password and parameters."""

    label: str
    masked: str


def place_of(url: Secret) -> Place:
    """Raises ValueError, which says what is wrong without quoting anything, when it is no PostgreSQL URL."""
    text = url.reveal()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("is a URL that begins with postgresql://")
    if re.search(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise ValueError("holds a blank or a character that cannot be in a URL")
    if _BARE_PERCENT.search(text):
        raise ValueError("holds a % that begins no percent-encoded character")
    base, question, query = rest.partition("?")
    authority, _, name = base.partition("/")
    user_info, at, hosts = authority.rpartition("@")
    if "@" in user_info or "@" in name or ("/" in name) or (not at and "@" in query):
        raise ValueError("holds an @, / or ? that is not percent-encoded")
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise ValueError("has no host, or host:port, where one belongs")
    user, colon, _ = user_info.partition(":")
    who = f"{user}{':<redacted>' if colon else ''}{at}"
    return Place(
        label=f"{unquote(hosts) or 'localhost'}/{unquote(name)}",
        masked=f"{scheme}://{who}{hosts}/{name}{'?...' if question else ''}",
    )


def _url(setting: Setting) -> Secret:
    value = setting.value
    if isinstance(value, str):
        value = Secret(value)
    if not isinstance(value, Secret):
        raise refused(setting.origin, DATABASE.name, f"db is a URL as text, not {kind_of(value)}")
    try:
        place_of(value)
    except ValueError as problem:
        raise _no_url(setting.origin, str(problem)) from None
    return value


def _no_url(origin: Origin, problem: str) -> ConfigError:
    return refused(origin, DATABASE.name, f"db {problem}", hint=f"db: postgresql://user:password@host/name; {_ENCODE}")
