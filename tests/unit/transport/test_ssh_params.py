"""How a host is to be reached, from the caller's words and the configuration."""

from __future__ import annotations

import attrs
import pytest

from skylib.errors import ConfigError
from skylib.models.node import HostAddress
from skylib.transport.ssh_config import ConfigSources, Local
from skylib.transport.ssh_params import SshParams, resolve

LOCAL = Local(user="me", home="/home/me", hostname="laptop.lan", uid=1000)


def resolved(text: str, host: str = "gpu", **address: object) -> SshParams:
    sources = ConfigSources(read={"/c": text}.get)
    return resolve(HostAddress(kind="ssh", host=host, **address), files=("/c",), local=LOCAL, sources=sources)  # type: ignore[arg-type]


def test_nothing_said_is_openssh_defaults() -> None:
    """An empty configuration: our user name, port 22, the default keys, the usual known_hosts files."""
    params = resolved("")
    assert (params.hostname, params.user, params.port, params.known_as) == ("gpu", "me", 22, "gpu")
    assert params.identity_files == ("/home/me/.ssh/id_ed25519", "/home/me/.ssh/id_ecdsa", "/home/me/.ssh/id_rsa")
    assert not params.identities_given
    assert params.known_hosts_files[:2] == ("/home/me/.ssh/known_hosts", "/home/me/.ssh/known_hosts2")
    assert (params.jumps, params.proxy_command, params.use_agent) == ((), None, True)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("HostName 10.0.0.4", "hostname", "10.0.0.4"),
        ("HostName %h.lab", "hostname", "gpu.lab"),
        ("Port 2222", "port", 2222),
        ("User root", "user", "root"),
        ("HostKeyAlias Vault", "known_as", "vault"),
        ("IdentityFile ~/.ssh/id_%n_%r", "identity_files", ("/home/me/.ssh/id_gpu_me",)),
        ("IdentityFile %d/k", "identity_files", ("/home/me/k",)),
        ("IdentityFile none", "identity_files", ()),
        ("IdentitiesOnly yes", "identities_only", True),
        ("IdentityAgent none", "use_agent", False),
        ("IdentityAgent ~/agent.sock", "agent_socket", "/home/me/agent.sock"),
        ("IdentityAgent SSH_AUTH_SOCK", "agent_socket", None),
        ("ProxyCommand nc %h %p", "proxy_command", "nc gpu 22"),
        ("ProxyCommand none", "proxy_command", None),
    ],
)
def test_each_keyword_has_its_effect(line: str, field: str, expected: object) -> None:
    """One keyword of the configuration, one field."""
    assert getattr(resolved(f"Host gpu\n  {line}\n"), field) == expected


def test_user_known_hosts_file_takes_several() -> None:
    """UserKnownHostsFile replaces the user's files; the machine's stay."""
    params = resolved("UserKnownHostsFile ~/.ssh/a %d/b\n")
    assert params.known_hosts_files[:2] == ("/home/me/.ssh/a", "/home/me/b")
    assert "/etc/ssh/ssh_known_hosts" in params.known_hosts_files


def test_callers_words_win() -> None:
    """User, port and identity of the address go before those of the configuration."""
    params = resolved("User a\nPort 1\nIdentityFile /conf\n", user="b", port=2, identity_file="/mine")
    assert (params.user, params.port, params.identity_files) == ("b", 2, ("/mine", "/conf"))
    assert params.identity_required == "/mine"


def test_proxy_jump_goes_over_hops_that_are_resolved_themselves() -> None:
    """Every hop has its own user, name and port by the configuration."""
    text = """
Host gpu
  ProxyJump root@inner:2022,mid
Host inner
  HostName 10.9.9.9
Host mid
  User midway
  Port 77
"""
    params = resolved(text)
    assert [hop.where for hop in params.jumps] == ["root@10.9.9.9:2022", "midway@mid:77"]
    assert all(hop.jumps == () for hop in params.jumps)


def test_first_hop_may_have_a_jump_of_its_own() -> None:
    """The way to the first hop is as the configuration says for that hop; hops come out nearest first."""
    params = resolved("Host gpu\n  ProxyJump near\nHost near\n  ProxyJump far\n")
    assert [hop.hostname for hop in params.jumps] == ["far", "near"]


def test_later_hops_are_reached_through_the_one_before() -> None:
    """A wildcard ProxyJump does not apply to hops after the first, else every chain would go in a circle."""
    params = resolved("Host a\n  ProxyJump none\nHost *\n  ProxyJump a,b\n")
    assert [hop.hostname for hop in params.jumps] == ["a", "b"]


@pytest.mark.parametrize("said", ["none", "None"])
def test_none_disables_the_jump_of_the_configuration(said: str) -> None:
    """The caller's proxy_jump "none" wins over the configuration's."""
    assert resolved("ProxyJump a\n", proxy_jump=said).jumps == ()


def test_callers_jump_wins() -> None:
    """proxy_jump of the address wins over the configuration's ProxyJump and ProxyCommand."""
    params = resolved("Host gpu\n  ProxyCommand nc\n", proxy_jump="ssh://u@[fe80::1]:99/")
    assert [(hop.user, hop.hostname, hop.port) for hop in params.jumps] == [("u", "fe80::1", 99)]
    assert params.proxy_command is None


@pytest.mark.parametrize(
    ("text", "jumps", "command"),
    [
        ("ProxyJump a\nProxyCommand nc\n", 1, None),
        ("ProxyCommand nc\nProxyJump a\n", 0, "nc"),
        ("ProxyCommand none\nProxyJump a\n", 0, None),
    ],
)
def test_of_jump_and_command_the_first_counts(text: str, jumps: int, command: str | None) -> None:
    """As in OpenSSH, whichever was said first."""
    params = resolved(f"Host gpu\n{text}")
    assert (len(params.jumps), params.proxy_command) == (jumps, command)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ProxyJump gpu\n", "circle"),
        ("Host gpu\n ProxyJump a\nHost a\n ProxyJump gpu\n", "circle"),
        ("ProxyJump a:b\n", "port"),
        ("ProxyJump ,\n", "names no host"),
        ("Port 0\n", "port"),
        ("Port ssh\n", "port"),
        ("IdentityFile ~/%q\n", "%q"),
    ],
)
def test_what_cannot_be_is_a_config_error(text: str, says: str) -> None:
    """Circles, ports that are none and unknown tokens are named."""
    with pytest.raises(ConfigError, match=says):
        resolved(text)


def test_params_are_values() -> None:
    """The same words give equal parameters."""
    assert resolved("Host gpu\nProxyJump a\n") == resolved("Host gpu\nProxyJump a\n")
    assert attrs.evolve(resolved(""), port=1) != resolved("")
