"""What staging costs before anything is sent: 20,000 small files and 1 GiB, beside `cp -a` of the same in the same run.

In memory, where there is a /dev/shm: a disk is measured by itself, and ext4 makes files many times more slowly for a
while after others were removed. So nothing is removed before the end.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.staging.plan import plan_sync
from skylib.staging.snapshot import Snapshots
from tests.benchmarks.report import Report, seconds_of

pytestmark = pytest.mark.bench

FOLDERS, FILES = 400, 50
LAUNCHES = 10
GIB = 1 << 30


class Stager:
    """Scan and snapshot of one tree in one home."""

    def __init__(self, home: Path, source: Path) -> None:
        locks = Locks(SkyHome(home))
        self._source = str(source)
        self._snapshots = Snapshots(
            home / "mounts", hold=lambda scope: locks.hold(scope, operation="staging", timeout_s=600), max_bytes=100 * GIB
        )

    def stage(self) -> None:
        """What a launch does before it looks for hosts, with the look after old snapshots at its end."""
        began_ns = time.time_ns()
        with self._snapshots.staged(plan_sync(self._source), scanned_ns=began_ns):
            pass


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


def _copy(source: Path, target: Path) -> float:
    return seconds_of(lambda: subprocess.run(["cp", "-a", "--reflink=never", source, target], check=True))


def test_staging_many_small_files(place: Path) -> None:
    """The first time is some copies' worth; again is at most half a copy, scan included, and one edit at most one."""
    source = place / "work"
    for folder in range(FOLDERS):
        (source / f"d{folder}").mkdir(parents=True)
        for number in range(FILES):
            (source / f"d{folder}/f{number}").write_bytes(os.urandom(500 + 20 * number))
    report = Report(f"staging {FOLDERS * FILES} small files")
    many = f"{LAUNCHES} at once, one edit"
    stager = Stager(place / "home", source)
    for run in range(3):
        report.add("cp -a", _copy(source, place / f"copy{run}"))
        report.add("first time", seconds_of(Stager(place / f"home{run}", source).stage))
        stager.stage()
        report.add("again", seconds_of(stager.stage))
        (source / "d7/f7").write_text(f"{run}")
        report.add("one edit", seconds_of(stager.stage))
    with ThreadPoolExecutor(LAUNCHES) as pool:
        (source / "d7/f7").write_text("all")
        report.add(many, seconds_of(lambda: list(pool.map(lambda _: stager.stage(), range(LAUNCHES)))))
    for name in ("first time", "again", "one edit", many):
        report.against(name, "cp -a")
    report.print()
    copied = report.best("cp -a")
    assert report.best("first time") <= 4 * copied
    assert report.best("again") <= 0.5 * copied
    assert report.best("one edit") <= copied


def test_staging_one_gib(place: Path) -> None:
    """The first time is a copy, where the file system shares nothing; again costs nothing that is seen."""
    source = place / "work"
    source.mkdir()
    with open(source / "file", "wb") as file:
        for _ in range(1024):
            file.write(os.urandom(1 << 20))
    report = Report("staging 1 GiB in one file")
    stager = Stager(place / "home", source)
    report.add("cp -a", _copy(source, place / "copy"))
    report.add("first time", seconds_of(stager.stage))
    report.add("again", seconds_of(stager.stage))
    for name in ("first time", "again"):
        report.against(name, "cp -a")
    report.print()
    assert report.best("first time") <= 3 * report.best("cp -a")
    assert report.best("again") <= 0.1 * report.best("cp -a")
