"""What is removed on a node, and what is left to others: asked of this machine in folders of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skylib.models.node import HostAddress
from skylib.models.receipts import NodeReceipt
from skylib.runtime.teardown import release_node
from skylib.transport.local import LocalTransport
from tests.records import node_record

OURS, ANOTHER = "11111111-aaaa", "22222222-bbbb"
DAMAGED = ["", "{garb", "[]", '{"cluster": 5, "cluster_id": 7}', '{"cluster_id": ""}']


def mark_of(cluster_id: str) -> str:
    return json.dumps({"cluster": "k", "cluster_id": cluster_id, "members": []}, indent=1)


class Account:
    """A node's root and temp dir, both of our cluster."""

    def __init__(self, base: Path, kind: str) -> None:
        self.root, self.temp = base / "root", base / "temp"
        self.mark, self.temp_mark = self.root / ".sky" / "cluster.json", self.temp / "cluster.json"
        self.agent = self.root / ".sky" / "agent.json"
        self.agent.parent.mkdir(parents=True)
        self.temp.mkdir()
        for mark in (self.mark, self.temp_mark, self.agent):
            mark.write_text(mark_of(OURS))
        address = HostAddress(kind=kind)
        self.node = node_record(root=str(self.root), temp_dir=str(self.temp), address=address)

    def release(self) -> NodeReceipt:
        return release_node(LocalTransport(), self.node, cluster_id=OURS)

    def is_taken_away(self) -> bool:
        return not (self.mark.exists() or self.agent.exists() or self.temp.exists())


@pytest.fixture(params=["ssh", "local"])
def account(tmp_path: Path, request: pytest.FixtureRequest) -> Account:
    return Account(tmp_path, request.param)


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("with_agent", [True, False])
def test_a_damaged_mark_goes_with_the_rest(account: Account, text: str, with_agent: bool) -> None:
    """A cluster.json that names nobody keeps nothing: it is ours, and the account is free afterwards."""
    account.mark.write_text(text)
    account.temp_mark.write_text(text)
    if not with_agent:
        account.agent.unlink()
    receipt = account.release()
    assert receipt.clean, receipt
    assert str(account.temp) in receipt.paths_removed
    assert account.is_taken_away()


@pytest.mark.parametrize("indent", [None, 1])
def test_ours_under_the_mark_of_another_cluster_is_left_and_told(account: Account, indent: int | None) -> None:
    """Nothing is removed, and the receipt is not clean: it names the mark and the cluster."""
    for mark in (account.mark, account.temp_mark):
        mark.write_text(json.dumps({"cluster_id": ANOTHER}, indent=indent))
    receipt = account.release()
    assert not receipt.clean
    assert receipt.leftovers == (f"{account.mark}: held by another cluster, {ANOTHER}",)
    assert receipt.paths_removed == ()
    assert account.agent.exists()
    assert account.temp.exists()


@pytest.mark.parametrize("with_temp", [True, False])
def test_the_name_of_another_cluster_in_one_file_keeps_nothing(account: Account, with_temp: bool) -> None:
    """Who holds an account has its temp dir, too: where the rest is ours, it is a file that somebody wrote over."""
    account.mark.write_text(mark_of(ANOTHER))
    if not with_temp:
        account.temp_mark.unlink()
    assert account.release().clean
    assert account.is_taken_away()


def test_a_damaged_mark_beside_the_agent_of_another_cluster_is_not_ours(account: Account) -> None:
    """Where cluster.json names nobody, agent.json says whose the account is."""
    account.mark.write_text("")
    account.agent.write_text(mark_of(ANOTHER))
    assert account.release().paths_removed == ()
    assert account.agent.exists()


def test_an_account_that_is_another_clusters_is_left_alone(account: Account) -> None:
    """It was taken over whole: nothing there is ours, so nothing is left of us."""
    account.mark.write_text(mark_of(ANOTHER))
    account.agent.write_text(mark_of(ANOTHER))
    receipt = account.release()
    assert (receipt.clean, receipt.paths_removed) == (True, ())
    assert account.mark.exists()
    assert account.temp.exists()


def test_the_temp_dir_of_another_cluster_stays(account: Account) -> None:
    """Ours lost it to a cluster that came later: what is in the root goes, and that is all there was of us."""
    account.temp_mark.write_text(mark_of(ANOTHER))
    assert account.release().clean
    assert account.temp_mark.exists()
    assert not account.mark.exists()


def test_a_node_without_a_mark_is_clean(account: Account) -> None:
    """Nobody holds it, whatever an agent's file says: its root was emptied, or it was never ours."""
    account.mark.unlink()
    assert account.release().clean
