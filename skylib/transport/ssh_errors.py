"""One table from what paramiko and sockets raise to what skylib raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from skylib.errors import AuthError, ConfigError, ConnectError, HostKeyError, SkyError

__all__ = ["TABLE", "mapped", "translate"]

_NO_ANSWER = "is the address right, and is the machine up and reachable from here?"
_PROTOCOL = "is it an OpenSSH server on that port? Its own log says why it ended the connection"
_KEYS = "say which key with identity_file (or IdentityFile in ~/.ssh/config), or load it into the agent: ssh-add"
_ALGORITHMS = "the server's OpenSSH is too old or too restricted; see its sshd_config for KexAlgorithms and Ciphers"

_Row = tuple[type[SkyError], str, str | None]

TABLE: Mapping[str, _Row] = MappingProxyType(
    {
        # paramiko, by the name of the class; the nearest base class with an entry counts.
        "SSHException": (ConnectError, "the SSH connection failed", _PROTOCOL),
        "AuthenticationException": (AuthError, "the host refused every key that we have", _KEYS),
        "AuthFailure": (AuthError, "the host refused every key that we have", _KEYS),
        "PasswordRequiredException": (AuthError, "a key is encrypted", "load it into the agent: ssh-add"),
        "BadAuthenticationType": (AuthError, "the host takes no keys from this account", _KEYS),
        "PartialAuthentication": (AuthError, "the host wants more than a key", _KEYS),
        "UnableToAuthenticate": (AuthError, "the host refused every key that we have", _KEYS),
        "UnknownKeyType": (AuthError, "a key is of a kind that is not supported", _KEYS),
        "ChannelException": (ConnectError, "the host refused to open a channel", "see MaxSessions in its sshd_config"),
        "BadHostKeyException": (HostKeyError, "the host's key is not the one on record", None),
        "InvalidHostKey": (HostKeyError, "a line of a known_hosts file cannot be read", None),
        "IncompatiblePeer": (ConnectError, "we and the host share no algorithm", _ALGORITHMS),
        "MessageOrderError": (ConnectError, "the host broke the SSH protocol", _PROTOCOL),
        "ProxyCommandFailure": (ConnectError, "the ProxyCommand failed", "run it by hand to see what it says"),
        "NoValidConnectionsError": (ConnectError, "no connection could be made", _NO_ANSWER),
        "CouldNotCanonicalize": (ConfigError, "the host name could not be made canonical", None),
        "ConfigParseError": (ConfigError, "~/.ssh/config cannot be parsed", None),
        "PipeTimeout": (ConnectError, "the host did not answer in time", _NO_ANSWER),
        "NeedRekeyException": (ConnectError, "the SSH connection failed while keys were renewed", None),
        "BERException": (AuthError, "a key file cannot be read", _KEYS),
        "SFTPError": (ConnectError, "the SSH connection failed", _PROTOCOL),
        # sockets
        "gaierror": (ConnectError, "the host name does not resolve", "is it right? See HostName in ~/.ssh/config"),
        "ConnectionRefusedError": (ConnectError, "the host refused the connection", "is sshd running on that port?"),
        "TimeoutError": (ConnectError, "the host did not answer in time", _NO_ANSWER),
        "timeout": (ConnectError, "the host did not answer in time", _NO_ANSWER),
        "ConnectionError": (ConnectError, "the connection was lost", _PROTOCOL),
        "EOFError": (ConnectError, "the host closed the connection", _PROTOCOL),
        "OSError": (ConnectError, "no connection could be made or kept", _NO_ANSWER),
    }
)


def translate(error: BaseException, *, host: str, step: str) -> SkyError | None:
    """What `error` is to our callers; None when it is none of the lower layers' errors."""
    if isinstance(error, SkyError):
        return None
    for kind in type(error).__mro__:
        row = TABLE.get(kind.__name__)
        if row is not None and (kind.__module__ in ("builtins", "socket") or kind.__module__.startswith("paramiko")):
            raised, message, hint = row
            return raised(message, host=host, step=step, evidence=_said(error), hint=hint)
    return None


@contextmanager
def mapped(host: str, step: str) -> Iterator[None]:
    """Whatever paramiko or a socket raises inside becomes ours, `from` the original."""
    try:
        yield
    except Exception as error:
        ours = translate(error, host=host, step=step)
        if ours is None:
            raise
        raise ours from error


def _said(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
