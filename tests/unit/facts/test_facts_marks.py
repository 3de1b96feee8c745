"""The look at a machine's clusters: asked of this machine in folders of its own, and its answer read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import FactError
from skylib.facts.marks import Look, look_at, parse_look
from skylib.transport.local import LocalTransport
from tests.unit.models.test_models_mark import MARK, MEMBER


def local_mark(*roots: Path, cluster_id: str = "c1") -> str:
    members = [
        {**MEMBER, "rank": rank, "root": str(root), "address": {"kind": "local", "host": "localhost"}}
        for rank, root in enumerate(roots)
    ]
    return json.dumps({**MARK, "infra": "local", "cluster_id": cluster_id, "members": members}, indent=1)


def put(root: Path, text: str) -> Path:
    root.joinpath(".sky").mkdir(parents=True)
    root.joinpath(".sky", "cluster.json").write_text(text)
    return root


def look(temp: Path) -> Look:
    return look_at(LocalTransport("localhost"), local=True, temp_dir=str(temp))


def test_a_machine_without_clusters_says_so(tmp_path: Path) -> None:
    """No mark, no root, nothing that runs."""
    found = look(tmp_path / "temp")
    assert (dict(found.roots), found.temp_marks) == ({}, ())
    assert (found.uid, bool(found.machine)) == (os.getuid(), True)


def test_roots_of_a_local_cluster_are_found_by_the_temp_dirs_mark(tmp_path: Path) -> None:
    """Each root tells its own mark, and whether it has had jobs."""
    roots = [tmp_path / "a b" / "rank0", tmp_path / "a b" / "rank1", tmp_path / "gone"]
    text = local_mark(*roots)
    put(roots[0], text)
    put(roots[1], "rubbish")
    roots[0].joinpath(".sky", "jobs.db").write_bytes(b"x")
    temp = tmp_path / "temp"
    temp.mkdir()
    temp.joinpath("cluster.json").write_text(text)
    found = look(temp)
    assert [mark.mark is not None and mark.mark.cluster_id for mark in found.temp_marks] == ["c1"]
    assert sorted(found.roots) == [str(roots[0]), str(roots[1])]
    first, second = found.roots[str(roots[0])], found.roots[str(roots[1])]
    assert first.mark is not None
    assert first.mark.mark is not None
    assert (first.mark.mark.name, first.jobs) == ("train", True)
    assert second.mark is not None
    assert (second.mark.mark, second.mark.problem, second.jobs) == (None, "it is no JSON", False)


def test_a_mark_in_a_temp_dir_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    """A temp dir is the account's own directory, or it says nothing."""
    real = tmp_path / "real"
    real.mkdir()
    real.joinpath("cluster.json").write_text(local_mark(tmp_path / "root"))
    tmp_path.joinpath("temp").symlink_to(real)
    assert look(tmp_path / "temp").temp_marks == ()


def test_processes_are_counted_by_what_they_carry(tmp_path: Path) -> None:
    """Those of a cluster are told, whatever they are called."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"SKYLIB_CLUSTER_ID": "look-1"})
    try:
        deadline = time.monotonic() + 20
        while look(tmp_path).running.get("look-1") != 1:
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.wait()


def test_a_mark_of_any_size_is_bounded(tmp_path: Path) -> None:
    """A huge file is one short problem, and not brought home whole."""
    temp = tmp_path / "temp"
    temp.mkdir()
    with temp.joinpath("cluster.json").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    (mark,) = look(temp).temp_marks
    assert mark.mark is None
    assert "larger" in mark.problem or "no JSON" in mark.problem


HEAD = b"skylib-look 1\nuid\t7\nhome\t/h\nmachine\tm b:1\n"


@pytest.mark.parametrize("around", [b"", b"Welcome!\nskylib-look 0\n"])
def test_what_a_login_shell_prints_is_skipped(around: bytes) -> None:
    """A banner before the answer is none of it."""
    assert parse_look(around + HEAD + b"running\t3 c1\nend\nbye\n").running == {"c1": 3}


@pytest.mark.parametrize(
    "answer",
    [b"", b"bash: sh: not found\n", HEAD, HEAD + b"what\tis this\nend\n", b"skylib-look 1\nuid\tx\nhome\t/h\nend\n"],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    """Cut off, foreign or without an account: FactError with what came."""
    with pytest.raises(FactError):
        parse_look(answer)


@given(st.binary())
def test_files_may_hold_anything(content: bytes) -> None:
    """Whatever a mark's file holds, the answer is read, and the file has a problem."""
    lines = b"".join(b"|" + line + b"\n" for line in content.split(b"\n"))
    found = parse_look(HEAD + b"mark\t/h/.sky/cluster.json\n" + lines + b"end\n")
    mark = found.roots["/h"].mark
    assert mark is not None
    assert mark.mark is None
    assert mark.problem


@given(st.binary())
def test_any_answer_is_read_or_refused(answer: bytes) -> None:
    """No answer raises anything but FactError."""
    for text in (answer, HEAD + answer + b"\nend\n"):
        try:
            parse_look(text)
        except FactError:
            continue
