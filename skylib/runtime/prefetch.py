"""A node's packages made ahead, for machines that will be without a package index when clusters are launched."""

from __future__ import annotations

import re

from skylib.errors import InvalidSpecError
from skylib.models.receipts import PrefetchReceipt
from skylib.runtime.lock import RAY_LOCK, Lock, load_lock, marker_values
from skylib.runtime.python_choice import NEWEST, OLDEST
from skylib.runtime.wheelhouse import Platform, Wheelhouse

__all__ = ["list_for", "platform_named", "prefetch", "python_named"]

_PLATFORM_HINT = (
    "linux-x86_64 or linux-aarch64 serve every host that Ray runs on; manylinux_2_28_x86_64 and the like those with that "
    "glibc or a newer one"
)
_PYTHON = re.compile(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?")
_LATE = 18  # the list is the same for all releases of a minor version but its first


def platform_named(name: object) -> Platform:
    """What "linux-x86_64", "manylinux_2_28_aarch64" and the like name. Raises InvalidSpecError (field: platform)."""
    found = Platform.named(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidSpecError(f"Ray has no packages for the platform {name!r}", field="platform", hint=_PLATFORM_HINT)
    return found


def python_named(version: object) -> tuple[int, int, int]:
    """What "3.11" or "3.11.7" names. Raises InvalidSpecError (field: python) for one that nodes cannot use."""
    found = _PYTHON.fullmatch(version.strip()) if isinstance(version, str) else None
    known = range(OLDEST[1], NEWEST[1] + 1)
    if found is None or int(found[1]) != OLDEST[0] or int(found[2]) not in known:
        seen = ", ".join(f'"{OLDEST[0]}.{minor}"' for minor in known)
        raise InvalidSpecError(f"nodes have no use for Python {version!r}", field="python", hint=f"one of {seen}")
    return int(found[1]), int(found[2]), int(found[3] or _LATE)


def list_for(platform: Platform, python: tuple[int, int, int]) -> Lock:
    """The locked list of what such a node needs."""
    return load_lock(RAY_LOCK).select(marker_values(python, os="Linux", arch=platform.arch))


def prefetch(wheelhouse: Wheelhouse, platform: Platform, lock: Lock, python: tuple[int, int, int]) -> PrefetchReceipt:
    """See to it that all is here, with the hashes that the list says. lock: already selected for that Python.

    What is here is read, and made anew when it is damaged. Raises StagingError when the index cannot be reached, a file
    is not what the list says, or the disk is full.
    """
    wheels = wheelhouse.wheels(lock, platform, python, check=True)
    files = (*wheels.files, wheels.listing, wheelhouse.uv(platform, check=True))
    return PrefetchReceipt(
        platform=wheels.directory.name.rpartition("-")[0],
        python=f"{python[0]}.{python[1]}",
        ray_version=lock.version("ray"),
        directory=wheels.directory,
        files=files,
        bytes=sum(path.stat().st_size for path in files),
        made=wheels.made,
    )
