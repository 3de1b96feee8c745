"""Programs that run on several nodes at once and find each other by SkyPilot's variables: the examples, each for real."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import attrs
import pytest

import skylib
from tests.lab import Lab, ranks_text

pytestmark = [pytest.mark.hosts, pytest.mark.ray]

GANGS = Path(__file__).resolve().parents[2] / "examples" / "gangs"
# torchrun of torch 1.13 (Debian 12) cannot read its own default, "0: nowhere", on Python 3.11; a map that says nothing of
# rank 0 means the same.
OLD_TORCHRUN = {"PET_REDIRECTS": "1:1", "PET_TEE": "1:1"}


def example(name: str, **fields: object) -> skylib.Task:
    """A task of the examples, on the hosts of the tests; its own folder is the workdir."""
    task = skylib.Task.from_yaml(GANGS / f"{name}.yaml", **fields)  # type: ignore[arg-type]
    return attrs.evolve(task, workdir=str(GANGS), resources=attrs.evolve(task.resources, infra="ssh/lab"))


@pytest.mark.skipif(shutil.which("torchrun", path="/usr/bin") is None, reason="Debian's python3-torch is not installed")
def test_torchrun_trains_one_model_on_two_nodes(shared: Lab) -> None:
    """Both ranks meet, learn from data of their own, and end with the same, right weights."""
    job = shared.client.exec(example("torchrun", envs=OLD_TORCHRUN), "shared")
    lines = list(job.logs())
    said = ranks_text([line for line in lines if line.text.startswith("rank ")])
    wanted = [(rank, f"rank {rank} of 2: weights 1.00 -2.00 3.00 0.50, all ranks agree: True") for rank in (0, 1)]
    assert said == wanted, "\n".join(map(str, lines))
    assert job.wait().exit_codes == (0, 0)


@pytest.mark.skipif(shutil.which("mpirun", path="/usr/bin") is None, reason="Debian's openmpi-bin is not installed")
def test_mpi_runs_on_three_nodes_without_ssh_between_them(shared: Lab) -> None:
    """mpirun on rank 0 starts its daemons through the other ranks; every process gets the sum."""
    job = shared.client.exec(example("mpi", secrets={"MPI_TOKEN": "only-the-gang-knows"}), "shared")
    lines = list(job.logs())
    said = [re.fullmatch(r"rank (\d) of 3 on (\S+): 6", line.text) for line in lines]
    job.wait()
    found = {match[1]: match[2] for match in said if match is not None}
    assert sorted(found) == ["0", "1", "2"], "\n".join(map(str, lines))
    assert sorted(found.values()) == sorted(host.name for host in shared.hosts)


def test_plain_sockets_add_up_on_three_nodes(shared: Lab) -> None:
    """Each rank knows its place in the ring, reaches the next one, and has the sum."""
    job = shared.client.exec(example("allreduce"), "shared")
    said = ranks_text(list(job.logs()))
    job.wait()
    assert said == [(rank, f"rank {rank} of 3: 111") for rank in range(3)]
