"""Where a PostgreSQL database is, and what of that may be shown."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, quote_plus, unquote

import attrs

from skylib.config.database import place_of
from skylib.errors import ConfigError
from skylib.models.secret import Secret
from skylib.models.spec_errors import kind_of

__all__ = ["Address", "address_of"]

_HINT = "db: postgresql://user:password@host/name; percent-encode what is no letter or digit in the password"
_SECRET_PARAMETERS = frozenset({"password", "sslpassword"})
_REDACTED = "<redacted>"
_SHORT = 4
# `:password@` of a URL, `password=...` of its query and of libpq's own way to write an address.
_PLACES = r"(?<=:){0}(?=@)|(?<=password=){0}(?![^\s&'\"])|(?<=password='){0}(?=')"


@attrs.frozen(kw_only=True)
class Address:
    """A database's URL. where: for people, without password and parameters. hidden: texts that no message may hold."""

    url: Secret
    where: str
    hidden: tuple[Secret, ...] = ()

    def masked(self, text: str) -> str:
        """`text` without the password, as it is and as it is written in URLs. The longest form goes first.

        A very short one is hidden only where a password stands: elsewhere it is a part of other words.
        """
        for secret in sorted((each.reveal() for each in self.hidden), key=len, reverse=True):
            if len(secret) < _SHORT:
                text = re.sub(_PLACES.format(re.escape(secret)), _REDACTED, text)
            else:
                text = text.replace(secret, _REDACTED)
        return text


def address_of(url: Secret | str) -> Address:
    """Raises ConfigError, which does not show the URL, when it is no URL of a PostgreSQL database."""
    url = Secret(url) if isinstance(url, str) else url
    if not isinstance(url, Secret):
        raise ConfigError(f"db is a URL as text, not {kind_of(url)}", key="db", hint=_HINT)
    problem = ""
    try:
        where = place_of(url).masked
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ConfigError(f"db {problem}", key="db", hint=_HINT)
    return Address(url=url, where=where, hidden=_hidden(url.reveal()))


def _hidden(url: str) -> tuple[Secret, ...]:
    """The URL itself, and each password of it in each form. A password that is shown anyway, as a name, is none."""
    base, _, query = url.partition("?")
    user_info, at, _ = base.partition("://")[2].partition("/")[0].rpartition("@")
    user, colon, password = user_info.partition(":")
    written = {password} if at and colon else set()
    written |= {value for name, value in parse_qsl(query) if name in _SECRET_PARAMETERS}
    written |= {part.partition("=")[2] for part in query.split("&") if part.partition("=")[0] in _SECRET_PARAMETERS}
    forms = set()
    for each in written:
        plain = unquote(each)
        forms |= {each, plain, quote(plain), quote(plain, safe=""), quote_plus(plain)}
        forms |= {plain.replace("\\", "\\\\").replace("'", "\\'"), repr(plain)[1:-1]}
    return tuple(Secret(form) for form in sorted({url, *(forms - {"", user, unquote(user)})}))
