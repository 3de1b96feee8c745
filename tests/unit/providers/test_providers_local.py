"""This machine as a provider: one local cluster at a time, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from skylib.models.offer import Survey
from skylib.models.resources import Resources
from skylib.paths import SkyHome
from skylib.providers.base import ProviderContext
from skylib.providers.local import LocalProvider
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport

ANSWER = (Path(__file__).parents[2] / "data" / "facts" / "two_models.txt").read_bytes()
MARK = "temp_cluster\t" + json.dumps({"cluster": "other", "cluster_id": "1", "home": "/home/x/.sky", "owner": "ab"})


class Recorded(LocalTransport):
    """A machine that gives a recorded answer to the probe."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        super().__init__()
        extra = "".join(f"{line}\n" for line in lines).encode()
        self.answer = ANSWER.replace(b"\nend\n", b"\n" + extra + b"end\n")

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        return Completed(returncode=0, stdout=self.answer, stderr=b"")


def survey(tmp_path: Path, *lines: str, num_nodes: int = 2, **options: object) -> Survey:
    recorded = Recorded(lines)
    context = ProviderContext(home=SkyHome(tmp_path), transports=lambda address: recorded, **options)  # type: ignore[arg-type]
    return LocalProvider().survey(Resources(), num_nodes, context)


def test_this_machine_offers_as_many_nodes_as_are_asked_for(tmp_path: Path) -> None:
    """One offer with all that the machine has, for so many nodes."""
    (offer,) = survey(tmp_path, num_nodes=3).offers
    assert (offer.infra, offer.host, offer.cpus, len(offer.gpus), offer.capacity) == ("local", "localhost", 8, 3, 3)


def test_a_local_cluster_of_another_home_holds_this_machine(tmp_path: Path) -> None:
    """A cluster of the same account in another home is found by its mark, and named with that home."""
    found = survey(tmp_path, MARK)
    assert found.offers == ()
    (refusal,) = found.refusals
    assert refusal.reason.startswith("held by cluster 'other' of ab, whose home is /home/x/.sky (")
    assert "client.adopt('other'), then client.down('other')" in refusal.reason
    assert (refusal.temporary, refusal.capacity) == (True, 2)


def test_a_cluster_is_not_in_its_own_way(tmp_path: Path) -> None:
    """The mark of the cluster that asks does not hold the machine against it."""
    assert len(survey(tmp_path, MARK, cluster_id="1").offers) == 1


@pytest.mark.parametrize("text", ['{"cluster": "tr', "[]"])
def test_a_mark_that_cannot_be_read_holds_this_machine(tmp_path: Path, text: str) -> None:
    """Doubt does not free a machine."""
    (refusal,) = survey(tmp_path, f"cluster\t{text}").refusals
    assert "cluster.json cannot be read" in refusal.reason
    assert "delete the cluster.json in ~/.sky" in refusal.reason
