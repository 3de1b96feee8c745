"""How one host is to be reached: the caller's words first, then `~/.ssh/config`, then OpenSSH's defaults."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from pathlib import Path

import attrs

from skylib.errors import ConfigError
from skylib.models.node import HostAddress
from skylib.transport.ssh_config import ConfigSources, HostConfig, Local, expand_tokens, read_config

__all__ = ["SshParams", "SshSettings", "config_files", "resolve", "this_side"]

_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_MAX_HOPS = 16


@attrs.frozen(kw_only=True)
class SshSettings:
    """Bounds of a connection, in seconds. passphrase: asked with the path of an encrypted key; None for "unknown".

    keepalive_s: after so long without a byte from the host it is asked for a sign of life; after keepalive_missed
    further such times without any the connection counts as lost. signals: whether the host's sshd passes signals on
    to a command (RFC 4254, 6.9); None: by its version.
    """

    connect_timeout_s: float = 15.0
    auth_timeout_s: float = 30.0
    channel_timeout_s: float = 15.0
    channel_wait_s: float = 60.0
    keepalive_s: float = 10.0
    keepalive_missed: int = 2
    max_channels: int = 8
    connect_attempts: int = 4
    signals: bool | None = None
    passphrase: Callable[[str], str | None] | None = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen(kw_only=True)
class SshParams:
    """One hop, resolved. jumps: the hops before it, nearest to us first, each reached through the one before.

    known_as: the name that known_hosts files use (HostKeyAlias, else the host name), lower case, without the port.
    identity_files: absolute; identities_given is False when they are OpenSSH's defaults, which may be missing.
    """

    alias: str
    hostname: str
    port: int = 22
    user: str
    known_as: str
    identity_files: tuple[str, ...] = ()
    identities_given: bool = False
    identity_required: str | None = None
    identities_only: bool = False
    use_agent: bool = True
    agent_socket: str | None = None
    known_hosts_files: tuple[str, ...] = ()
    jumps: tuple[SshParams, ...] = ()
    proxy_command: str | None = None

    @property
    def where(self) -> str:
        """For people: user@host:port."""
        return f"{self.user}@{self.hostname}:{self.port}"


def this_side() -> Local:
    """Who and where we are. Raises ConfigError when the account has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError) as exc:
        raise ConfigError("this account has no name; say user: for the host") from exc
    return Local(user=user, home=os.path.expanduser("~"), hostname=socket.gethostname(), uid=os.getuid())


def config_files(user_config_path: Path | None) -> tuple[str, ...]:
    """As `ssh` and `ssh -F`: the user's and the machine's file, or only the one that is named."""
    if user_config_path is not None:
        return (str(user_config_path),)
    return (os.path.expanduser("~/.ssh/config"), "/etc/ssh/ssh_config")


def resolve(
    address: HostAddress,
    *,
    files: tuple[str, ...] = (),
    local: Local | None = None,
    sources: ConfigSources | None = None,
) -> SshParams:
    """Raises ConfigError, with file and line where a file is at fault.

    files: configuration files, the user's first. Pure but for `sources`, which reads them.
    """
    return _Resolver(files=files, local=local or this_side(), sources=sources or ConfigSources()).hop(address, ())


@attrs.frozen(kw_only=True)
class _Resolver:
    files: tuple[str, ...]
    local: Local
    sources: ConfigSources

    def hop(self, address: HostAddress, before: tuple[str, ...]) -> SshParams:
        config = read_config(self.files, address.host, local=self.local, user=address.user, sources=self.sources)
        user = address.user or config.first("user") or self.local.user
        port = address.port or _port(config.first("port"))
        hostname = expand_tokens(config.first("hostname") or address.host, {"h": address.host, "n": address.host})
        tokens = self._tokens(address.host, hostname, user, port)
        identities = tuple(self._path(name, tokens) for name in config.identity_files if name.lower() != "none")
        required = self._path(address.identity_file, tokens) if address.identity_file else None
        if required is not None:
            identities = (required, *[name for name in identities if name != required])
        defaults = tuple(os.path.join(self.local.home, ".ssh", name) for name in _DEFAULT_IDENTITIES)
        agent, socket_path = self._agent(config, tokens)
        jumps, command = self._way(address, config, tokens, required, before)
        return SshParams(
            alias=address.host,
            hostname=hostname,
            port=port,
            user=user,
            known_as=(config.first("hostkeyalias") or hostname).lower(),
            identity_files=identities if identities or config.identity_files else defaults,
            identities_given=bool(identities),
            identity_required=required,
            identities_only=(config.first("identitiesonly") or "no").lower() == "yes",
            use_agent=agent,
            agent_socket=socket_path,
            known_hosts_files=self._known_hosts(config, tokens),
            jumps=jumps,
            proxy_command=command,
        )

    def _way(
        self,
        address: HostAddress,
        config: HostConfig,
        tokens: dict[str, str],
        required: str | None,
        before: tuple[str, ...],
    ) -> tuple[tuple[SshParams, ...], str | None]:
        """Whichever of ProxyJump and ProxyCommand was said first in the files wins, as in OpenSSH.

        Hops that the caller named are offered the target's key too, unless the configuration names theirs.
        """
        jump = address.proxy_jump
        if jump is None:
            keywords = [word for word in config.values if word in ("proxyjump", "proxycommand")]
            if keywords[:1] == ["proxycommand"]:
                command = config.line("proxycommand") or "none"
                return (), None if command.lower() == "none" else expand_tokens(command, tokens)
            jump = config.first("proxyjump")
        if jump is None or jump.strip().lower() in ("", "none"):
            return (), None
        if address.host in before:
            raise ConfigError(f"ProxyJump goes in a circle: {' -> '.join((*before, address.host))}", key="ProxyJump")
        if len(before) >= _MAX_HOPS:
            raise ConfigError(f"ProxyJump goes over more than {_MAX_HOPS} hosts", key="ProxyJump")
        names = [_jump_address(word, jump) for word in expand_tokens(jump, tokens).split(",")]
        hops: list[SshParams] = []
        for index, name in enumerate(names):
            # The first hop is reached as the files say; each later one through the hop before it.
            asked = name if index == 0 else attrs.evolve(name, proxy_jump="none")
            hop = self.hop(asked, (*before, address.host))
            if required is not None and address.proxy_jump is not None and not hop.identities_given:
                hop = attrs.evolve(hop, identity_files=(required, *hop.identity_files))
            hops += [*hop.jumps, attrs.evolve(hop, jumps=())]
        return tuple(hops), None

    def _known_hosts(self, config: HostConfig, tokens: dict[str, str]) -> tuple[str, ...]:
        user = config.all("userknownhostsfile") or _USER_KNOWN_HOSTS
        machine = config.all("globalknownhostsfile") or _GLOBAL_KNOWN_HOSTS
        return tuple(self._path(name, tokens) for name in (*user, *machine) if name.lower() != "none")

    def _agent(self, config: HostConfig, tokens: dict[str, str]) -> tuple[bool, str | None]:
        """(whether to ask an agent, its socket when it is not the one of SSH_AUTH_SOCK)."""
        said = config.first("identityagent")
        if said is None or said == "SSH_AUTH_SOCK":
            return True, None
        if said.lower() == "none":
            return False, None
        if said.startswith("$"):
            return True, os.environ.get(said.strip("${}"))
        return True, self._path(said, tokens)

    def _path(self, name: str, tokens: dict[str, str]) -> str:
        expanded = expand_tokens(name, tokens)
        if expanded == "~" or expanded.startswith("~/"):
            expanded = self.local.home + expanded[1:]
        return os.path.abspath(expanded)

    def _tokens(self, alias: str, hostname: str, user: str, port: int) -> dict[str, str]:
        return {
            "h": hostname,
            "n": alias,
            "p": str(port),
            "r": user,
            "u": self.local.user,
            "d": self.local.home,
            "i": str(self.local.uid),
            "L": self.local.hostname.split(".")[0],
            "l": self.local.hostname,
        }


def _port(text: str | None) -> int:
    if text is None:
        return 22
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigError(f"not a port: {text!r}", key="Port")
    return int(text)


def _jump_address(word: str, whole: str) -> HostAddress:
    """`[user@]host[:port]` or `ssh://[user@]host[:port]`, IPv6 addresses in brackets."""
    text = word.strip().removeprefix("ssh://").rstrip("/")
    user, _, rest = text.rpartition("@")
    host, port = rest, ""
    if rest.startswith("["):
        host, _, tail = rest[1:].partition("]")
        port = tail.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not host or (text.startswith("@")):
        raise ConfigError(f"ProxyJump {whole!r} names no host", key="ProxyJump")
    return HostAddress(kind="ssh", host=host, user=user or None, port=_port(port) if port else None)
