"""The agent as one file: a zip that Python runs, the same bytes for the same sources."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib import resources

import attrs

__all__ = ["Bundle", "build_bundle"]

_PACKAGE = "skylib_agent"
_START = f"""import sys
from {_PACKAGE}.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@attrs.frozen(kw_only=True)
class Bundle:
    """sha256: hex digest of `data`, which names the file on nodes. data: a zipapp for Python 3.8 and later."""

    sha256: str
    data: bytes = attrs.field(repr=False)


def build_bundle() -> Bundle:
    """The agent's sources as they are installed here. Uncompressed: a few KiB more to send, milliseconds less to start."""
    files = {"__main__.py": _START.encode()}
    for source in resources.files("skylib.agent").iterdir():
        if source.name.endswith(".py"):
            files[f"{_PACKAGE}/{source.name}"] = source.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    data = buffer.getvalue()
    return Bundle(sha256=hashlib.sha256(data).hexdigest(), data=data)
