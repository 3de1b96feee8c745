"""What a cluster that gave itself up leaves behind goes when its time is over, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from skylib.facts.expiry import EXPIRE, KEPT_DAYS, LEFT_IN_SKY

ID = "6f6b3a52-0000-4000-8000-00000000abcd"
DAY_S = 86400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node whose cluster gave itself up more than seven days ago, with a mount, and files of the user's own."""
    root = tmp_path / "home"
    for name in LEFT_IN_SKY:
        (root / ".sky" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / ".sky" / name).write_text("x")
    (root / ".sky" / "file_mounts").unlink()
    data = tmp_path / "data"
    mounted = Path(f"{root}/.sky/file_mounts{data}")
    mounted.parent.mkdir(parents=True)
    mounted.write_text("mounted")
    data.symlink_to(mounted)
    for name in ("sky_logs/1/run.log", "sky_workdir/a b", "skypilot-runtime/bin/python", "mine.txt", ".sky/mine.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    temp = tmp_path / "ray"
    temp.mkdir()
    for path in (root / ".sky" / "cluster.json", temp / "cluster.json"):
        path.write_text(json.dumps({"cluster": "c", "cluster_id": ID}))
    say(root, age_days=KEPT_DAYS + 0.1)
    return root


def say(root: Path, *, age_days: float, **fields: object) -> None:
    path = root / ".sky" / "stopped.json"
    path.write_text(json.dumps({"reason": "lease", "down": True, "cluster_id": ID, "stopping": False, **fields}))
    os.utime(path, (time.time() - age_days * DAY_S,) * 2)


def expire(root: Path) -> None:
    script = f"{EXPIRE}\nexpire \"$1\" \"$2\" </dev/null 2>/dev/null\n"
    subprocess.run(["/bin/sh", "-s", "--", str(root), str(root.parent / "ray")], input=script.encode(), check=False)


def files(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file() or each.is_symlink())


def test_what_is_over_goes(root: Path):
    """All of the cluster, its mounts' links and Ray's directory; the environment and the user's files stay."""
    expire(root)
    assert files(root.parent) == ["home/.sky/mine.txt", "home/mine.txt", "home/skypilot-runtime/bin/python"]


def younger(root: Path) -> None:
    say(root, age_days=KEPT_DAYS - 0.1)


def only_stopped(root: Path) -> None:
    say(root, age_days=99, down=False)


def of_another(root: Path) -> None:
    (root / ".sky" / "cluster.json").write_text(json.dumps({"cluster": "d", "cluster_id": "another"}))


def without_a_mark(root: Path) -> None:
    (root / ".sky" / "cluster.json").unlink()


def unreadable(root: Path) -> None:
    path = root / ".sky" / "stopped.json"
    path.write_text("down")
    os.utime(path, (0, 0))


def running(root: Path) -> None:
    (root / ".sky" / "stopped.json").unlink()


@pytest.mark.parametrize("change", [younger, only_stopped, of_another, without_a_mark, unreadable, running])
def test_what_is_not_over_stays(root: Path, change):
    """Too young, stopped to be started, another cluster's, or a doubt: nothing is touched."""
    change(root)
    before = files(root.parent)
    expire(root)
    assert files(root.parent) == before


def test_what_somebody_reads_stays(root: Path):
    """An agent that was woken to be read carries the cluster's id."""
    before = files(root.parent)
    with subprocess.Popen(["sleep", "60"], env={"SKYLIB_CLUSTER_ID": ID, "PATH": os.environ["PATH"]}) as reader:
        expire(root)
        reader.kill()
    assert files(root.parent) == before


def test_a_temp_dir_of_another_cluster_stays(root: Path):
    """Only the one whose mark names the cluster goes."""
    (root.parent / "ray" / "cluster.json").write_text(json.dumps({"cluster_id": "another"}))
    expire(root)
    assert "ray/cluster.json" in files(root.parent)
    assert not (root / "sky_logs").exists()
