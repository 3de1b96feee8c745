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


def mark(root: Path, cluster_id: str = "1") -> str:
    members = [{"rank": 0, "root": str(root)}]
    body = {"cluster": "other", "cluster_id": cluster_id, "home": "/home/x/.sky", "owner": "ab", "members": members}
    return "temp_cluster\t" + json.dumps(body)


def test_this_machine_offers_as_many_nodes_as_are_asked_for(tmp_path: Path) -> None:
    """One offer with all that the machine has, for so many nodes."""
    (offer,) = survey(tmp_path, num_nodes=3).offers
    assert (offer.infra, offer.host, offer.cpus, len(offer.gpus), offer.capacity) == ("local", "localhost", 8, 3, 3)


def test_a_local_cluster_of_another_home_holds_this_machine(tmp_path: Path) -> None:
    """A cluster of the same account in another home is found by its mark, and named with that home."""
    standing = tmp_path / "rank0"
    (standing / ".sky").mkdir(parents=True)
    (standing / ".sky/cluster.json").write_text("{}")
    found = survey(tmp_path, mark(standing))
    assert found.offers == ()
    (refusal,) = found.refusals
    assert refusal.reason == "held by cluster 'other' of ab, launched from /home/x/.sky"
    assert (refusal.temporary, refusal.capacity) == (True, 2)


def test_a_mark_without_its_cluster_holds_nothing(tmp_path: Path) -> None:
    """When the roots that a mark lists are gone, the machine is free again."""
    assert len(survey(tmp_path, mark(tmp_path / "gone")).offers) == 1


def test_a_cluster_is_not_in_its_own_way(tmp_path: Path) -> None:
    """The mark of the cluster that asks does not hold the machine against it."""
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/cluster.json").write_text("{}")
    assert len(survey(tmp_path, mark(tmp_path, "mine"), cluster_id="mine").offers) == 1


@pytest.mark.parametrize("text", ['{"cluster": "tr', "[]"])
def test_a_mark_that_cannot_be_read_holds_this_machine(tmp_path: Path, text: str) -> None:
    """Doubt does not free a machine."""
    (refusal,) = survey(tmp_path, f"cluster\t{text}").refusals
    assert "cluster.json cannot be read" in refusal.reason
