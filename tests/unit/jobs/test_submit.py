"""What the agent is asked to run, from a task alone."""

from __future__ import annotations

import attrs
import pytest

from skylib.agent.protocol import OWN_KEY
from skylib.errors import InvalidSpecError
from skylib.jobs.submit import demand_of, job_spec, key_for, setup_hash
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.frozen_map import FrozenMap
from skylib.models.node import Gpu, HostAddress
from skylib.models.resources import Resources
from skylib.models.task import Task

NODE = NodeRecord(
    rank=0,
    host="h1",
    address=HostAddress(kind="ssh", host="10.0.0.1"),
    internal_ip="10.0.0.1",
    root="/home/me",
    temp_dir="/tmp/ray_skypilot",
    env="/home/me/skypilot-runtime",
    python="/home/me/skypilot-runtime/bin/python",
    gpus=(Gpu(index=0, name="NVIDIA A100-SXM4-80GB", memory_gib=79.6),),
)
CLUSTER = ClusterRecord(
    name="train",
    cluster_id="c1",
    status=ClusterStatus.UP,
    status_since=1.0,
    infra="ssh/lab",
    num_nodes=1,
    launched_at=1.0,
    nodes=(NODE,),
)


def test_a_rank_that_names_nothing_reserves_half_a_cpu():
    """SkyPilot's default demand: several small jobs share a node."""
    assert demand_of(Resources(), CLUSTER) == {"CPU": 0.5}


def test_cpus_and_memory_are_reserved_as_asked():
    """'4+' and '16GB' become figures."""
    assert demand_of(Resources(cpus="4+", memory="16GB"), CLUSTER) == {"CPU": 4.0, "memory_gib": 16.0}


def test_devices_go_by_the_clusters_own_name_for_them():
    """What was asked for by memory is reserved by the model that the cluster has."""
    wanted = {"CPU": 0.5, "GPU": 1.0, "accelerators": {"A100-80GB": 1.0}}
    assert demand_of(Resources(accelerators="80GB+"), CLUSTER) == wanted
    assert demand_of(Resources(accelerators="a100-80gb"), CLUSTER) == wanted


def test_a_custom_resource_is_asked_for_as_an_accelerator():
    """By the name that the host's owner gave it; no GPU is reserved with it."""
    cluster = attrs.evolve(CLUSTER, nodes=(attrs.evolve(NODE, custom=FrozenMap({"FPGA": 4.0})),))
    assert demand_of(Resources(accelerators="fpga:2"), cluster) == {"CPU": 0.5, "custom": {"FPGA": 2.0}}


def test_a_jobs_timeout_and_retries_reach_the_agent():
    """timeout_s is the task's own; retries are asked for in SkyPilot's words."""
    recovery = {"max_restarts_on_errors": 2, "recover_on_exit_codes": [33, 34]}
    spec = job_spec(Task(run="x", timeout_s=5, resources={"job_recovery": recovery}), CLUSTER, user="me")
    assert (spec["timeout_s"], spec["max_retries"], spec["retry_exit_codes"]) == (5.0, 2, [33, 34])


def test_outputs_go_with_the_job(monkeypatch, tmp_path):
    """Local directories are absolute, whoever fetches them and from where; a size is no output that is fetched."""
    monkeypatch.chdir(tmp_path)
    task = Task(run="x", outputs={"r/*": "here", "m": "/abs"})
    wanted = {"r/*": f"{tmp_path}/here", "m": "/abs"}
    assert job_spec(task, CLUSTER, user="me", client="c1")["outputs"] == {"wanted": wanted, "client": "c1"}
    assert "outputs" not in job_spec(Task(run="x", outputs={"s3://b": 3}), CLUSTER, user="me")


@pytest.mark.parametrize("key", ["", "~mine", 7, "x" * 1001, b"k"])
def test_what_cannot_be_a_key(key):
    """It is refused before anything is asked."""
    with pytest.raises(InvalidSpecError, match="a key is text of 1 to 1000 characters"):
        key_for(key)


def test_the_candidate_that_the_cluster_has_is_what_is_reserved():
    """Of several alternatives the demand is that of one which the cluster can serve."""
    wanted = Resources(any_of=[{"accelerators": "H100"}, {"accelerators": "A100-80GB"}])
    assert demand_of(wanted, CLUSTER)["accelerators"] == {"A100-80GB": 1.0}


def test_memory_that_a_kernel_keeps_is_not_asked_for():
    """A machine sold with 16 GB has a little less: the demand is what it has."""
    small = attrs.evolve(CLUSTER, nodes=(attrs.evolve(NODE, memory_gib=15.5),))
    assert demand_of(Resources(memory="16+"), small)["memory_gib"] == 15.5


def test_a_submit_always_has_a_key():
    """With a key of our own a submit can be asked twice when its channel breaks; the user's own has its way."""
    made = {str(job_spec(Task(run="true"), CLUSTER, user="me")["key"]) for _ in range(2)}
    assert len(made) == 2
    assert all(key.startswith(OWN_KEY) for key in made)
    assert job_spec(Task(run="true"), CLUSTER, user="me", key="k")["key"] == "k"


def test_secrets_travel_apart_from_variables():
    """envs and secrets are two maps; only the second holds secret values."""
    spec = job_spec(Task(run="true", envs={"A": "1"}, secrets={"TOKEN": "s3"}), CLUSTER, user="me")
    assert spec["envs"] == {"A": "1"}
    assert spec["secrets"] == {"TOKEN": "s3"}


def test_exec_leaves_setup_out():
    """Without setup neither the script nor its hash is sent."""
    spec = job_spec(Task(run="true", setup="pip install x"), CLUSTER, user="me", setup=False, setup_digest="d")
    assert (spec["setup"], spec["setup_hash"]) == ("", "")


def test_the_setup_hash_changes_with_all_that_setup_sees():
    """Script, variables, secrets, files and environment: a change of any one runs setup again."""
    task = Task(run="true", setup="make", envs={"A": "1"}, secrets={"T": "x"})
    known = setup_hash(task, files_digest="f", runtime_digest="r")
    assert known == setup_hash(task, files_digest="f", runtime_digest="r")
    assert known == setup_hash(attrs.evolve(task, run="other"), files_digest="f", runtime_digest="r")
    others = {
        setup_hash(attrs.evolve(task, setup="make all"), files_digest="f", runtime_digest="r"),
        setup_hash(attrs.evolve(task, envs={"A": "2"}), files_digest="f", runtime_digest="r"),
        setup_hash(attrs.evolve(task, secrets={"T": "y"}), files_digest="f", runtime_digest="r"),
        setup_hash(task, files_digest="g", runtime_digest="r"),
        setup_hash(task, files_digest="f", runtime_digest="s"),
    }
    assert known not in others
    assert len(others) == 5


def test_a_task_without_setup_has_no_hash():
    """Nothing to skip."""
    assert setup_hash(Task(run="true"), files_digest="f", runtime_digest="r") == ""
