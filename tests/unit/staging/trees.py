"""Looking at trees for comparison."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["snapshot"]


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All below `root` by path: kind, mode, whole-second time, and content or link target."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for folder, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = folder + b"/" + name
            info = os.lstat(path)
            mode = stat.S_IMODE(info.st_mode)
            local = path[len(top) + 1 :]
            if stat.S_ISLNK(info.st_mode):
                found[local] = ("link", os.readlink(path))
            elif stat.S_ISDIR(info.st_mode):
                found[local] = ("dir", mode)
            else:
                with open(path, "rb") as file:
                    found[local] = ("file", mode, int(info.st_mtime), file.read())
    return found
