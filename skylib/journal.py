"""The journal of one operation: each of its events as a line of JSON in a file of its own under `<home>/logs`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import secrets
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from types import TracebackType

from skylib.events import Event
from skylib.paths import SkyHome, ensure_private_dir

__all__ = ["Journal"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-.+-[0-9a-f]{6}\.jsonl")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")
_LONGEST_TEXT = 16_384
_DEEPEST = 8


class Journal:
    """An event sink that writes `<utc time>-<operation>-<cluster>-<short id>.jsonl` (mode 0600), one write per event.

    The file is made on the first event. Each line has at, step, phase, seconds and facts; what JSON does not have
    becomes text, texts are cut at 16,384 characters. keep: how many such files stay; the oldest go when a new one is
    made. Nothing that goes wrong here reaches the operation: the first OSError is logged, and the journal falls silent.
    """

    def __init__(self, home: SkyHome, operation: str, cluster: str = "", *, keep: int = 500) -> None:
        self._folder = home.logs
        self._title = "-".join(_UNSAFE.sub("_", part)[:80] for part in (operation, cluster) if part)
        self._keep = keep
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"Journal({self._title!r})"

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path | None:
        """The file; None until the first event."""
        return self._path

    def __call__(self, event: Event) -> None:
        line = _line(event)
        with self._mutex:
            if self._ended:
                return
            try:
                if self._descriptor is None:
                    self._descriptor = self._open(event.at)
                _write_all(self._descriptor, line)
            except OSError as error:
                self._end()
                _log.warning("the journal %s cannot be written: %s", self._path or self._folder, error)

    def close(self) -> None:
        """End the journal; events that come later are dropped."""
        with self._mutex:
            self._end()

    def _end(self) -> None:
        self._ended = True
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _open(self, at: float) -> int:
        ensure_private_dir(self._folder)
        _prune(self._folder, self._keep - 1)
        time = datetime.fromtimestamp(at, timezone.utc).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        self._path = self._folder / f"{time}Z-{self._title}-{secrets.token_hex(3)}.jsonl"
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest journals until `keep` are left; their names sort by time."""
    names = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))
    for name in names[: max(0, len(names) - max(0, keep))]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / name)


def _write_all(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _line(event: Event) -> bytes:
    fields = {
        "at": round(event.at, 6),
        "step": event.step,
        "phase": event.phase.value,
        "seconds": None if event.seconds is None else round(event.seconds, 6),
        "facts": _plain(dict(event.facts)),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _plain(value: object, depth: int = 0) -> object:
    """`value` as JSON has it."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {_text(key): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _DEEPEST:
        return [_plain(inner, depth + 1) for inner in value]
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        text = bytes(value[: _LONGEST_TEXT + 1]).decode("utf-8", "replace")
    else:
        try:
            text = str(value)
        except Exception as error:  # a value's own __str__: whatever it raises, the operation goes on
            text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
