"""The pool file: SkyPilot's format and ours, and what wrong ones get."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import ConfigError, PoolNotFound
from skylib.models.infra import Infra
from skylib.models.node import HostAddress
from skylib.providers.pool_file import parse_pools, pick_pools, read_pools

FILE = Path("/nowhere/ssh_node_pools.yaml")
FULL = """\
lab:
  user: ubuntu
  identity_file: ~/.ssh/lab
  password: "sudo, please"
  port: 2200
  price_per_hour: 0.5
  hosts:
    - gpu-alias
    - ip: 10.0.0.2
      user: root
      identity_file: /keys/two
      port: 22
      proxy_jump: me@gate:2222,inner
      price_per_hour: 2
    - {ip: "fd00::7"}
spare:
  hosts: [10.0.0.9]
"""


def test_pool_values_are_defaults_of_its_hosts() -> None:
    """A host has what it says, else what its pool says, else nothing, which leaves it to ~/.ssh/config."""
    pools = parse_pools(FULL, file="pools.yaml")
    assert [(host.name, host.price_per_hour, host.address) for host in pools["lab"].hosts] == [
        (
            "gpu-alias:2200",
            0.5,
            HostAddress(
                kind="ssh", host="gpu-alias", user="ubuntu", port=2200, identity_file="~/.ssh/lab"
            ),
        ),
        (
            "10.0.0.2",
            2.0,
            HostAddress(
                kind="ssh",
                host="10.0.0.2",
                user="root",
                port=22,
                identity_file="/keys/two",
                proxy_jump="me@gate:2222,inner",
            ),
        ),
        (
            "[fd00::7]:2200",
            0.5,
            HostAddress(kind="ssh", host="fd00::7", user="ubuntu", port=2200, identity_file="~/.ssh/lab"),
        ),
    ]
    assert [host.address for host in pools["spare"].hosts] == [HostAddress(kind="ssh", host="10.0.0.9")]
    assert [(pool.infra, pool.line) for pool in pools.values()] == [("ssh/lab", 1), ("ssh/spare", 16)]


def test_countable_resources_of_a_host() -> None:
    """A host has those that it names, else its pool's."""
    text = "a:\n  resources: {license: 1}\n  hosts: [h, {ip: i, resources: {FPGA: 4, disk.fast: 2}}, {ip: j, resources: {}}]"
    hosts = parse_pools(text, file="pools.yaml")["a"].hosts
    assert [host.custom for host in hosts] == [{"license": 1.0}, {"FPGA": 4.0, "disk.fast": 2.0}, {}]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("[license]", "expected a map of names to counts"),
        ("{license: 0}", "license"),
        ("{license: 1.5}", "license"),
        ("{GPU: 2}", "GPU is counted by itself"),
        ("{a: 1, A: 1}", "A stands twice"),
        ("{'two words': 1}", "expected a resource's name"),
        ("{skylib_rank_0: 1}", "expected a resource's name"),
    ],
)
def test_countable_resources_that_cannot_be_meant(resources: str, message: str) -> None:
    """They are refused with what is wrong."""
    with pytest.raises(ConfigError, match=message):
        parse_pools(f"a:\n  hosts: [{{ip: h, resources: {resources}}}]", file="pools.yaml")


def test_the_sudo_password_is_kept_nowhere() -> None:
    """`password` is accepted, for SkyPilot's files have it, and is in nothing that comes of the file."""
    assert "sudo, please" not in repr(parse_pools(FULL, file="pools.yaml"))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("- lab\n", 1, "expected a map of pools, got a list"),
        ("lab: 10.0.0.1\n", 1, "lab: expected a map with hosts, got text"),
        ("lab:\n  user: me\n", 1, "lab.hosts: expected a list of hosts, got null"),
        ("lab:\n  hosts: []\n", 2, "lab.hosts: expected a list of hosts, got an empty one"),
        ("lab:\n  hosts: 10.0.0.1\n", 2, "lab.hosts: expected a list of hosts, got text"),
        ("lab:\n  hosts: [a]\n  usr: me\n", 3, "lab.usr: unknown key, the nearest valid one is 'user'"),
        ("lab:\n  hosts:\n  - ip: a\n    prot: 22\n", 4, "nearest valid one is 'port'"),
        ("lab:\n  hosts: [a]\nlab:\n  hosts: [b]\n", 3, "this key stands twice, in lines 1 and 3"),
        ("lab:\n  hosts:\n  - a\n  - b\n  - a\n", 5, "a is in this pool already"),
        ("lab:\n  hosts:\n  - a\n  - {ip: a, user: you}\n", 4, "a is in this pool already"),
        ("lab:\n  hosts:\n  - user: me\n", 3, r"lab.hosts\[0\]: expected ip"),
        ("lab:\n  hosts:\n  - 10.1\n", 3, "expected a host's IP, name or alias, got 10.1"),
        ("lab:\n  hosts:\n  - ''\n", 3, "expected a host's IP"),
        ("lab:\n  hosts:\n  - -oProxyCommand=x\n", 3, "expected a host's IP"),
        ("lab:\n  hosts:\n  - me@a\n", 3, "expected a host's IP"),
        ("lab:\n  port: 0\n  hosts: [a]\n", 2, "expected an integer from 1 to 65535, got 0"),
        ("lab:\n  port: '22'\n  hosts: [a]\n", 2, "lab.port: expected an integer"),
        ("lab:\n  hosts:\n  - ip: a\n    price_per_hour: -1\n", 4, "expected dollars an hour, got -1"),
        ("lab:\n  hosts:\n  - ip: a\n    price_per_hour: .nan\n", 4, "expected dollars an hour, got nan"),
        ("lab:\n  user: [me]\n  hosts: [a]\n", 2, "lab.user: expected text, got a list"),
        ("lab:\n  password: {a: secret}\n  hosts: [a]\n", 2, "lab.password: expected text, got a map"),
        ("lab:\n  identity_file: keys/a\n  hosts: [a]\n", 2, "expected an absolute path"),
        ("lab:\n  hosts: [a\n", 3, "this is no YAML"),
        ("lab:\n  hosts: [a]\n---\nb:\n  hosts: [c]\n", 4, "here begins another"),
        ("lab:\n  hosts: [!!python/object:os.system a]\n", 2, "tag"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    """A wrong file raises ConfigError with file, line and what was expected; never with a secret."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_pools(text, file="pools.yaml")
    assert (caught.value.file, caught.value.line) == ("pools.yaml", line)  # type: ignore[attr-defined]
    assert str(caught.value).startswith(f"pools.yaml:{line}: ")
    assert "secret" not in str(caught.value)


@given(st.text())
def test_any_text_gives_pools_or_a_config_error(text: str) -> None:
    """No file content raises anything but ConfigError."""
    try:
        parse_pools(text, file="pools.yaml")
    except ConfigError:
        pass


def test_no_file_means_no_pools(tmp_path: Path) -> None:
    """A file that does not exist holds no pools; one that cannot be read raises ConfigError with its path."""
    assert read_pools(tmp_path / "none.yaml") == {}
    (tmp_path / "bad.yaml").write_bytes(b"lab: \xff\n")
    for wrong in (tmp_path, tmp_path / "bad.yaml"):
        with pytest.raises(ConfigError, match=str(wrong)):
            read_pools(wrong)


def test_an_infra_picks_its_pools() -> None:
    """`ssh/lab` is one pool, `ssh` and no infra are all of them."""
    pools = parse_pools(FULL, file="pools.yaml")
    picked = {text: [pool.name for pool in pick_pools(pools, Infra.parse(text), file=FILE)] for text in ("ssh/lab", "ssh")}
    assert picked == {"ssh/lab": ["lab"], "ssh": ["lab", "spare"]}
    assert [pool.name for pool in pick_pools(pools, None, file=FILE)] == ["lab", "spare"]
    assert pick_pools({}, None, file=FILE) == ()


def test_a_pool_that_does_not_exist_is_named_with_its_neighbour() -> None:
    """PoolNotFound tells the file, the pools there and the nearest name."""
    with pytest.raises(PoolNotFound, match="no SSH node pool 'lap' in /nowhere") as caught:
        pick_pools(parse_pools(FULL, file="pools.yaml"), Infra.parse("ssh/lap"), file=FILE)
    assert (caught.value.hint, caught.value.known) == ("did you mean 'lab'?", ("lab", "spare"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("infra", ["ssh", "ssh/lab"])
def test_ssh_without_a_pool_file_says_where_to_name_hosts(infra: str) -> None:
    """Asking for SSH hosts without any raises PoolNotFound with the file to write."""
    with pytest.raises(PoolNotFound, match=f"{FILE} does not exist"):
        pick_pools({}, Infra.parse(infra), file=FILE)
