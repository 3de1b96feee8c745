"""A file behind an http(s) URL: fetched once on this machine, kept, and asked for again only when it has changed.

Source: RFC 9110 (conditional requests; 304 says that what is kept is what is there).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import attrs

from skylib.errors import InvalidSpecError, StagingError
from skylib.events import EventSink, span
from skylib.staging.shelf import NAME_LENGTH, Hold, Shelf, Use, boot_id

__all__ = ["downloaded", "is_web_url", "local_path", "shown_url"]

_TIMEOUT_S = 60.0
_CHUNK = 1 << 20
_REDIRECTS = 5


def is_web_url(source: str) -> bool:
    """Whether it is http:// or https://, in any case."""
    return source[:8].lower().startswith(("http://", "https://"))


def local_path(source: str, *, field: str) -> str:
    """The path that a file:// URL names; what is no such URL as it is. Raises InvalidSpecError for another host's."""
    if source[:7].lower() != "file://":
        return source
    parts = urlsplit(source)
    path = unquote(parts.path, errors="surrogateescape")
    if parts.netloc not in ("", "localhost") or not path:
        raise InvalidSpecError(f"{field}: {source} names no file of this machine", field=field, hint="file:///absolute/path")
    return path


def shown_url(url: str) -> str:
    """Without user, password and query, any of which may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


@contextlib.contextmanager
def downloaded(url: str, shelf: Shelf, *, hold: Hold, max_bytes: float, events: EventSink, field: str) -> Iterator[Path]:
    """The URL's file as it is now, which nothing changes or removes for the length of the `with` block.

    Emits `files.download` (url, bytes, cached). Raises StagingError (path: the URL without secrets; host; hint) when it
    is not there, refused, cut short or larger than max_bytes; InvalidSpecError for a URL that is none.
    """
    one = _Download(url, field, max_bytes)
    with span(events, "files.download", url=one.shown) as step, hold(f"staging-source:{one.source[:2]}"):
        use = one.fetch(shelf)
        step.note(bytes=use.tree.stat().st_size, cached=one.cached)
    try:
        yield use.tree
    finally:
        use.release()


@attrs.define
class _Validators:
    """What tells one state of a file from the next."""

    etag: str = ""
    modified: str = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """None, which makes it an error, for a way out of TLS or of the web."""
        if not is_web_url(newurl) or (req.full_url.lower().startswith("https:") and newurl.lower().startswith("http:")):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download:
    """One URL on its way to the shelf."""

    def __init__(self, url: str, field: str, max_bytes: float) -> None:
        self.shown, self.cached = shown_url(url), False
        self.source = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
        self._max_bytes, self._field = max_bytes, field
        try:
            parts = urlsplit(url)
            self._host = parts.hostname or ""
            _port = parts.port
        except ValueError:
            self._host = ""
        if not self._host or not url.isascii() or any(ord(char) < 33 for char in url):
            hint = "http(s)://host/path, with everything else than plain characters as %XX"
            raise InvalidSpecError(f"{field}: {self.shown} is no URL", field=field, hint=hint)
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self._request = urllib.request.Request(plain.geturl())
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login).decode())

    def fetch(self, shelf: Shelf) -> Use:
        known = self._newest(shelf)
        if known is not None:
            validators = _validators(known)
            if validators.etag:
                self._request.add_header("If-None-Match", validators.etag)
            if validators.modified:
                self._request.add_header("If-Modified-Since", validators.modified)
        try:
            with urllib.request.build_opener(_Redirects()).open(self._request, timeout=_TIMEOUT_S) as answer:
                made = self._keep(answer, shelf)
            if known is not None:
                known.release()
            return made
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 304 and known is not None:
                self.cached = True
                return known
            if known is not None:
                known.release()
            raise self._error(f"the server answered {error.code} {error.reason}", _hint(error.code)) from None
        except StagingError:
            raise
        except (http.client.HTTPException, urllib.error.URLError, OSError) as error:
            # not chained: it may hold the URL with its secrets
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise self._error(f"{reason}", f"{self._host} did not give the file; try again") from None

    def _newest(self, shelf: Shelf) -> Use | None:
        for kept in reversed(shelf.kept()):
            if (kept.source, kept.boot) == (self.source, boot_id()):
                use = shelf.use(kept.name)
                if use is not None:
                    return use
        return None

    def _keep(self, answer: http.client.HTTPResponse, shelf: Shelf) -> Use:
        announced = int(answer.headers.get("Content-Length") or -1)
        if announced > self._max_bytes:
            raise self._too_large()
        validators = _Validators(answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or "")
        use = shelf.begin()
        try:
            whole, size = hashlib.sha256(), 0
            with use.tree.open("xb") as file:
                while chunk := answer.read(_CHUNK):
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large()
                    whole.update(chunk)
                    file.write(chunk)
            if 0 <= announced != size:
                raise self._error(f"it was cut short: {size} of {announced} bytes came", "try again")
            os.chmod(use.tree, 0o644)
            (use.folder / "validators").write_text(json.dumps(attrs.asdict(validators)), encoding="utf-8")
            told = f"{self.source}\0{whole.hexdigest()}\0{validators}\0{boot_id()}"
            name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:NAME_LENGTH]
            return shelf.finish(use, name, source=self.source, boot=boot_id(), bytes=size)
        except BaseException:
            shelf.drop(use)
            raise

    def _too_large(self) -> StagingError:
        return self._error(f"it is larger than {self._max_bytes / (1 << 30):g} GiB", "raise staging.max_gib")

    def _error(self, message: str, hint: str) -> StagingError:
        return StagingError(f"{self._field}: {self.shown}: {message}", path=self.shown, host=self._host, hint=hint)


def _validators(use: Use) -> _Validators:
    try:
        return _Validators(**json.loads((use.folder / "validators").read_bytes()))
    except (OSError, ValueError, TypeError):
        return _Validators()


def _hint(code: int) -> str:
    if code in (401, 403):
        return "the URL needs a login: https://user:password@host/..., or a URL that is signed and has not expired"
    if code in (404, 410):
        return "look at the URL: nothing is there"
    return "try again later" if code >= 500 else "look at the URL and where it leads"
