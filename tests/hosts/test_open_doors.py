"""A cluster whose Ray would answer strangers does not come to stand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from skylib.errors import BringUpError
from tests.lab import Lab
from tests.testbed import Host

GUARD = "~/skypilot-runtime/lib/python3*/site-packages/skylib_door_guard.pth"


@contextmanager
def unguarded(host: Host) -> Iterator[None]:
    """The private environment has lost what guards Ray's HTTP servers."""
    host.sh(f"for pth in {GUARD}; do mv $pth $pth.away; done", check=True)
    try:
        yield
    finally:
        host.sh(f"for away in {GUARD}.away; do mv $away ${{away%.away}}; done", check=True)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_door_that_is_open_fails_the_launch_by_name(lab: Lab, count: int) -> None:
    """The error names host and port; nothing of the cluster is left. On one node as on several."""
    host = lab.hosts[0]
    task = lab.task("true", num_nodes=count)
    with unguarded(host), pytest.raises(BringUpError) as failed:
        lab.client.launch(task, "open")
    assert (failed.value.step, failed.value.host) == ("runtime.doors", host.ip)
    assert failed.value.port in range(8000, 32000)  # type: ignore[attr-defined]
    assert f"{host.ip}:{failed.value.port} answers HTTP" in str(failed.value.evidence)  # type: ignore[attr-defined]
    lab.assert_nothing_left()
