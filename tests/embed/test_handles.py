"""Handles travel: through pickle, copy and JSON, into other processes, without sockets and without being asked."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib import Client, Cluster, Job
from skylib.errors import ClusterNotFound
from tests.embed.child import run_python

NAMES = st.from_regex(r"[a-zA-Z]([-_.a-zA-Z0-9]{0,30}[a-zA-Z0-9])?", fullmatch=True)
HOMES = st.from_regex(r"/[^\0/~][^\0]{0,40}", fullmatch=True)


@given(home=HOMES, name=NAMES, job_id=st.integers(1, 10**9), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_handles_survive_pickle_and_json(home: str, name: str, job_id: int, protocol: int) -> None:
    """A handle that comes back from pickle, copy or JSON is equal, hashes alike and names the same home."""
    for handle in (Job(home, name, job_id), Cluster(home, name)):
        trips = [
            pickle.loads(pickle.dumps(handle, protocol)),
            copy.copy(handle),
            copy.deepcopy(handle),
            type(handle).from_json(handle.to_json()),
            type(handle).from_json(json.dumps(json.loads(handle.to_json()))),
        ]
        for made in trips:
            assert type(made) is type(handle)
            assert made == handle
            assert hash(made) == hash(handle)
            assert made.home == handle.home


def test_different_things_are_not_equal(tmp_path: Path) -> None:
    """Home, cluster and id all count, and a job is no cluster."""
    job = Job(tmp_path, "train", 1)
    others = [Job(tmp_path, "train", 2), Job(tmp_path, "other", 1), Job(tmp_path / "x", "train", 1)]
    assert [job == other for other in [*others, Cluster(tmp_path, "train"), "train", None]] == [False] * 6
    assert job == Job(str(tmp_path), "train", 1)


def test_adoption_survives_pickling(tmp_path: Path) -> None:
    """Whether the job was there already under its key is part of the handle."""
    job = Job(tmp_path, "train", 1, adopted=True)
    assert pickle.loads(pickle.dumps(job)).adopted is True
    assert Job(tmp_path, "train", 1).adopted is False


def test_a_handle_of_an_open_client_leaves_its_session_behind(tmp_path: Path) -> None:
    """A handle that has a session still pickles to a few words: home, name, id."""
    with Client(tmp_path) as client:
        job = Job(tmp_path, "train", 1, session=client._session)
        cluster = Cluster(tmp_path, "train", session=client._session)
        for handle in (job, cluster):
            data = pickle.dumps(handle)
            assert b"Session" not in data
            assert len(data) < 300
            assert pickle.loads(data) == handle


def test_json_is_a_recipe_of_words_and_numbers(tmp_path: Path) -> None:
    """The JSON of a handle has its home, its cluster and, for a job, its id and whether it was adopted."""
    home = str(tmp_path)
    recipe = {"home": home, "cluster_name": "train", "cluster_id": None, "job_id": 7, "adopted": False}
    assert json.loads(Job(home, "train", 7).to_json()) == recipe
    assert json.loads(Cluster(home, "train").to_json()) == {"home": home, "cluster_name": "train"}


def test_showing_a_handle_asks_nobody(tmp_path: Path) -> None:
    """repr, str, == and hash do no I/O: the home is not even made."""
    home = tmp_path / "home"
    job, cluster = Job(home, "train", 7), Cluster(home, "train")
    assert (repr(job), repr(cluster)) == ("Job(cluster='train', id=7)", "Cluster('train')")
    assert len({job, cluster, Job(home, "train", 7)}) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_relative_home_means_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle's home is absolute, so that the handle means the same in another directory."""
    monkeypatch.chdir(tmp_path)
    job = Job("here", "train", 1)
    monkeypatch.chdir("/")
    assert Job.from_json(job.to_json()).home == str(tmp_path / "here")


@pytest.mark.parametrize("way", ["pickle", "json"])
def test_a_handle_works_in_another_process(way: str, tmp_path: Path, isolated_home: Path) -> None:
    """Another process that gets the handle asks the same home, and is told the same typed error there."""
    cluster = Cluster(tmp_path / "home", "train")
    made = {
        "pickle": f"pickle.loads({pickle.dumps(cluster)!r})",
        "json": f"skylib.Cluster.from_json({cluster.to_json()!r})",
    }[way]
    program = f"""
import pickle
import skylib
cluster = {made}
try:
    cluster.record()
    answer = "found"
except skylib.errors.ClusterNotFound as error:
    answer = [cluster.home, error.cluster, list(error.known)]
"""
    assert run_python(program, home=isolated_home) == [str(tmp_path / "home"), "train", []]
    with pytest.raises(ClusterNotFound):
        cluster.record()
