"""A task's sources that are elsewhere (git repositories, web URLs), brought here before anything is scanned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from skylib.events import EventSink
from skylib.models.task import Task
from skylib.models.task_parts import GitWorkdir
from skylib.session import Session
from skylib.staging.git_source import GitAccess, checked_out
from skylib.staging.shelf import Shelf
from skylib.staging.url_source import downloaded, is_web_url, local_path

__all__ = ["local_sources"]

_WAIT_S = 1800.0
_GIB = 1 << 30


@contextmanager
def local_sources(
    session: Session, task: Task, folder: Path, events: EventSink, *, workdir_only: bool
) -> Iterator[tuple[object, Mapping[str, object]]]:
    """The workdir and the mounts with a local path in the place of each source that is elsewhere.

    folder: where what is fetched is kept, bounded by staging.max_gib. Nothing of it is removed inside the `with` block.
    Raises StagingError and InvalidSpecError.
    """

    def hold(scope: str) -> AbstractContextManager[object]:
        return session.file_locks.hold(scope, operation="staging", timeout_s=_WAIT_S)

    shelf = Shelf(folder, alone=lambda: hold("staging-sources"))
    max_bytes = session.config.staging.max_gib * _GIB
    workdir: object = task.workdir
    mounts: dict[str, object] = {} if workdir_only else dict(task.file_mounts)
    fetched = False
    with ExitStack() as used:
        if isinstance(task.workdir, GitWorkdir):
            fetched = True
            workdir = str(used.enter_context(checked_out(task.workdir, _access(task), shelf, hold=hold, events=events)))
        for target, source in mounts.items():
            if not isinstance(source, str):
                continue
            field = f"file_mounts.{target}"
            if is_web_url(source):
                fetched = True
                one = downloaded(source, shelf, hold=hold, max_bytes=max_bytes, events=events, field=field)
                mounts[target] = str(used.enter_context(one))
            else:
                mounts[target] = local_path(source, field=field)
        if fetched:
            shelf.sweep(max_bytes)
        yield workdir, mounts


def _access(task: Task) -> GitAccess:
    """The task's secrets go before its variables, these before the client's environment."""

    def value(name: str) -> str:
        if name in task.secrets:
            return task.secrets[name].reveal()
        return task.envs.get(name) or os.environ.get(name, "")

    return GitAccess(token=value("GIT_TOKEN"), ssh_key=value("GIT_SSH_KEY_PATH"))
