"""Pools that several homes share: what each home's file says, merged."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import ConfigError
from skylib.paths import SkyHome
from skylib.providers.shared_pools import SharedPools, merge_pools

_bodies = st.dictionaries(
    st.sampled_from("abc"), st.sampled_from("xyz").map(lambda host: {"hosts": [host]}), max_size=3
)


@given(base=_bodies, mine=_bodies, theirs=_bodies)
def test_an_edit_here_counts_and_an_old_copy_does_not(base: dict, mine: dict, theirs: dict) -> None:  # type: ignore[type-arg]
    """Pool by pool: edited here, as here; untouched here, as there; deleted here, gone unless changed there."""
    effective = merge_pools(base, mine, theirs).effective
    for name in {*base, *mine, *theirs}:
        if name in mine and mine[name] != base.get(name):
            assert effective[name] == mine[name]
        elif name in base and name not in mine and theirs.get(name) == base[name]:
            assert name not in effective
        else:
            assert effective.get(name) == theirs.get(name)


@given(base=_bodies, mine=st.none() | _bodies, theirs=_bodies)
def test_the_changes_lead_to_what_counts(base: dict, mine: dict | None, theirs: dict) -> None:  # type: ignore[type-arg]
    """Applied to the database, the changes give the effective pools, and a second look changes nothing."""
    changes = merge_pools(base, mine, theirs)
    after = {name: body for name, body in {**theirs, **changes.put}.items() if name not in changes.drop}
    assert after == changes.effective
    again = merge_pools(mine if mine is not None else base, mine, after)
    assert (again.put, again.drop, again.effective) == ({}, frozenset(), after)


class Values:
    """Values in memory, as a store keeps them."""

    def __init__(self) -> None:
        self.kept: dict[str, object] = {}

    def config_set(self, key: str, value: object) -> None:
        self.kept[key] = value
        if value is None:
            del self.kept[key]

    def config_items(self, prefix: str) -> dict[str, object]:
        return {key: value for key, value in sorted(self.kept.items()) if key.startswith(prefix)}


def _home(root: Path, text: str | None, values: Values) -> SharedPools:
    root.mkdir(mode=0o700, exist_ok=True)
    if text is not None:
        (root / "ssh_node_pools.yaml").write_text(text)
    return SharedPools(home=SkyHome(root), values=values, where="database db/skylib", hold=nullcontext)


def test_a_home_without_a_file_sees_the_pools_of_another(tmp_path: Path) -> None:
    """The pool file of one home serves another; its password stays where it is."""
    values = Values()
    text = (
        "lab:\n  user: me\n  identity_file: ~/.ssh/lab\n  password: hidden\n"
        "  hosts:\n    - {ip: h1, password: hidden}\n    - h2\n"
    )
    first = _home(tmp_path / "one", text, values).pools()
    second = _home(tmp_path / "two", None, values).pools()
    assert [host.address for host in second["lab"].hosts] == [host.address for host in first["lab"].hosts]
    assert "hidden" not in repr(values.kept)
    assert "hidden" not in (tmp_path / "one" / "ssh_node_pools.seen.json").read_text()


def test_homes_with_a_file_each_see_all_pools(tmp_path: Path) -> None:
    """Two files with a pool each make two pools for both; an edit in one reaches the other."""
    values = Values()
    one = _home(tmp_path / "one", "a:\n  hosts: [h1]\n", values)
    two = _home(tmp_path / "two", "b:\n  hosts: [h2]\n", values)
    one.pools()
    assert set(two.pools()) == set(one.pools()) == {"a", "b"}
    _home(tmp_path / "one", "a:\n  hosts: [h1, h3]\n", values).pools()
    assert [host.name for host in two.pools()["a"].hosts] == ["h1", "h3"]
    _home(tmp_path / "one", "{}\n", values).pools()
    assert set(two.pools()) == {"b"}


def test_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    """A pool file that cannot be read is told with its line, and the database keeps what it has."""
    values = Values()
    _home(tmp_path / "one", "a:\n  hosts: [h1]\n", values).pools()
    before = dict(values.kept)
    with pytest.raises(ConfigError) as caught:
        _home(tmp_path / "one", "a:\n  hostz: [h1]\n", values).pools()
    assert caught.value.line == 2
    assert values.kept == before
