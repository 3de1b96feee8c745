"""Where a task's files go on a node. Pure: names in, places out.

Source: SkyPilot's rules. `workdir` goes to `<root>/sky_workdir`; a relative target below that; `~/x` to `<root>/x`;
`/tmp/x` to itself; any other absolute target's data to `<root>/.sky/file_mounts/<target>`, with a link at the target.
`<root>` is the account's home, or the node's own directory for the `local` provider.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

import attrs

from skylib.errors import InvalidSpecError

__all__ = ["WORKDIR", "Mount", "map_mounts"]

WORKDIR = "sky_workdir"
_OURS = (".sky", "skypilot-runtime", "sky_logs")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_RELATIVE_HINT = "targets are ~/path, /absolute/path, or relative to the workdir"


@attrs.frozen(kw_only=True)
class Mount:
    """One source and its place.

    source, dst: as the task says them; dst is "workdir" for that one. below_root: `place` is relative to the node's
    root, else absolute. link: absolute path of the link that leads to the place, "" when there is none.
    """

    source: str
    dst: str
    place: str
    below_root: bool = True
    link: str = ""

    def on(self, root: str) -> str:
        """The absolute path on a node. root: absolute."""
        return f"{root.rstrip('/')}/{self.place}" if self.below_root else self.place

    @property
    def is_workdir(self) -> bool:
        return self.below_root and self.place == WORKDIR

    @property
    def goes_with_cluster(self) -> bool:
        """Its place is removed when the cluster is taken down; what lies in the home or in /tmp is the user's."""
        return self.below_root and self.place.split("/")[0] in (WORKDIR, ".sky")


def map_mounts(workdir: object, file_mounts: Mapping[str, object] | None) -> tuple[Mount, ...]:
    """The places of a task's files, the workdir first.

    Raises InvalidSpecError (fact: field) for a target that escapes, is ours, or overlaps another one, and for sources
    that are not local paths. Whether a source exists is not asked here.
    """
    mounts: list[Mount] = []
    if workdir is not None:
        source = _local_source(workdir, field="workdir")
        mounts.append(Mount(source=source, dst="workdir", place=WORKDIR))
    for dst, value in (file_mounts or {}).items():
        field = f"file_mounts.{dst}"
        mounts.append(_place(dst, _local_source(value, field=field), field))
    _refuse_overlaps(mounts)
    return tuple(mounts)


def _local_source(value: object, *, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidSpecError(f"{field}: only a local path can be sent yet, not {type(value).__name__}", field=field)
    if not value:
        raise InvalidSpecError(f"{field}: the source is empty", field=field)
    if "\0" in value:
        raise InvalidSpecError(f"{field}: the source has a NUL in it", field=field)
    if _SCHEME.match(value):
        raise InvalidSpecError(f"{field}: only a local path can be sent yet, not {value}", field=field)
    return value


def _place(dst: str, source: str, field: str) -> Mount:
    if not dst or "\0" in dst:
        raise InvalidSpecError(f"{field}: {dst!r} is no path", field=field, hint=_RELATIVE_HINT)
    if dst not in ("/", "~/") and dst.endswith("/"):
        hint = f"write {dst.rstrip('/')}"
        raise InvalidSpecError(f"{field}: a target has no slash at its end", field=field, hint=hint)
    if ".." in dst.split("/"):
        raise InvalidSpecError(f"{field}: a target must not climb with '..'", field=field)
    plain = re.sub("/+", "/", posixpath.normpath(dst))
    if plain in ("/", "~", "."):
        raise InvalidSpecError(f"{field}: {dst} itself cannot be a target", field=field, hint=_RELATIVE_HINT)
    if plain.startswith("~/"):
        below = plain[2:]
        if below.split("/")[0] in _OURS:
            raise InvalidSpecError(f"{field}: {dst} is kept for the cluster's own files", field=field)
        return Mount(source=source, dst=dst, place=below)
    if plain.startswith("~"):
        raise InvalidSpecError(f"{field}: other accounts' homes cannot be targets", field=field, hint=_RELATIVE_HINT)
    if not plain.startswith("/"):
        return Mount(source=source, dst=dst, place=f"{WORKDIR}/{plain}")
    if plain == "/tmp" or plain.startswith("/tmp/ray"):
        raise InvalidSpecError(f"{field}: {dst} is in use by others", field=field, hint="choose a name below /tmp")
    if plain.startswith("/tmp/"):
        return Mount(source=source, dst=dst, place=plain, below_root=False)
    return Mount(source=source, dst=dst, place=f".sky/file_mounts{plain}", link=plain)


def _refuse_overlaps(mounts: list[Mount]) -> None:
    """Two targets may not be one, nor may one lie in another; but mounts may lie in the workdir."""
    seen: dict[tuple[bool, str], Mount] = {}
    for mount in sorted(mounts, key=lambda mount: mount.place.count("/")):
        field = f"file_mounts.{mount.dst}"
        same = seen.get((mount.below_root, mount.place))
        if same is not None:
            raise InvalidSpecError(f"{field}: {mount.dst} and {same.dst} are the same target", field=field)
        parts = mount.place.split("/")
        for depth in range(1, len(parts)):
            outer = seen.get((mount.below_root, "/".join(parts[:depth])))
            if outer is not None and not outer.is_workdir:
                raise InvalidSpecError(f"{field}: {mount.dst} lies in {outer.dst}, another target", field=field)
        seen[mount.below_root, mount.place] = mount
