"""Hosts that have the private environment already, and a cluster that several tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, copy_runtime, make_lab, remove_home
from tests.runtime_fixture import shared_wheels, warm_alone
from tests.testbed import Host, Testbed


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The kept wheels of all tests on this machine; downloaded when they are first needed."""
    return shared_wheels()


@pytest.fixture(scope="session")
def warm_host(testbed: Testbed, wheels: Path) -> Iterator[Host]:
    """A host whose account has the private environment: made once by a real launch, then only copied from."""
    host = testbed.host(name="warm")
    with tempfile.TemporaryDirectory(prefix="skylib-warm-") as scratch:
        lab = make_lab(Path(scratch, "sky"), [host], wheels=wheels)
        with warm_alone():  # the wheels that it may download are other test runs' as well
            lab.client.launch(lab.task("true"), "warm").wait()
        lab.client.down("warm")
        remove_home(lab)
    yield host
    host.close()


@pytest.fixture(scope="session")
def warm_hosts(testbed: Testbed, warm_host: Host) -> list[Host]:
    """Three hosts with the environment, shared by the session; every test leaves them free."""
    hosts = testbed.hosts(3)
    for host in hosts:
        copy_runtime(warm_host, host)
    return hosts


@pytest.fixture
def lab(warm_hosts: list[Host], wheels: Path, tmp_path: Path) -> Iterator[Lab]:
    """A fresh home on the three warm hosts; after the test whatever stands is taken down."""
    made = make_lab(tmp_path / "sky", warm_hosts, wheels=wheels)
    yield made
    for record in made.client.status():
        made.client.down(record.name, purge=True)
    made.client.close()


@pytest.fixture
def make_warm_host(make_host: Callable[..., Host], warm_host: Host) -> Callable[..., Host]:
    """Makes hosts for one test that have the environment already (arguments of Testbed.host)."""

    def make(**options: object) -> Host:
        host = make_host(**options)
        copy_runtime(warm_host, host)
        return host

    return make


@pytest.fixture(scope="module")
def shared(warm_hosts: list[Host], wheels: Path) -> Iterator[Lab]:
    """A cluster `shared` on the three warm hosts that stands for the tests of one module."""
    with tempfile.TemporaryDirectory(prefix="skylib-shared-") as scratch:
        made = make_lab(Path(scratch, "sky"), warm_hosts, wheels=wheels)
        made.client.launch(made.task("true", num_nodes=3), "shared").wait()
        yield made
        made.client.down("shared", purge=True)
        made.assert_nothing_left()
        remove_home(made)
