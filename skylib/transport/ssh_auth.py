"""Logging in with keys: those that were named first, then the agent's others, then OpenSSH's default files.

A server takes only a few tries (MaxAuthTries, 6), hence the order. Passwords are never asked for nor sent.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from skylib.errors import AuthError
from skylib.transport.ssh_params import SshParams, SshSettings

if TYPE_CHECKING:
    import paramiko

__all__ = ["log_in", "public_blob"]

_OPENSSH_MAGIC = b"openssh-key-v1\0"


@attrs.define(kw_only=True)
class _Tried:
    """For the error, should it come to that: what was offered, and what could not be."""

    offered: list[str] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    hints: list[str] = attrs.field(factory=list)


def log_in(transport: paramiko.Transport, params: SshParams, settings: SshSettings, *, host: str) -> str:
    """The name of the key that was taken. host: for people. Raises AuthError; other errors of paramiko pass through."""
    import paramiko

    required = params.identity_required
    if required is not None and not os.path.isfile(required):
        raise AuthError(f"the identity file {required} does not exist", host=host, hint="see identity_file of the host")
    tried = _Tried()
    refusal: Exception | None = None
    agent = _Agent(params)
    try:
        for name, load in _candidates(params, settings, agent.keys(), tried):
            key = load()
            if key is None:
                continue
            tried.offered.append(name)
            try:
                if not transport.auth_publickey(params.user, key):
                    return name
                tried.problems.append("the host wants more than a key")
            except paramiko.BadAuthenticationType as exc:
                refusal = exc
            except paramiko.AuthenticationException as exc:
                refusal = exc
                if not transport.is_active():
                    tried.problems.append("the host takes no further tries (MaxAuthTries)")
            except paramiko.SSHException as exc:
                if transport.is_active():
                    tried.problems.append(f"{name}: {exc}")
                    continue
                if not tried.offered:
                    raise
                refusal = exc
            if not transport.is_active():
                break
    finally:
        agent.close()
    raise _refused(params, tried, host) from refusal


def _refused(params: SshParams, tried: _Tried, host: str) -> AuthError:
    if not tried.offered:
        message = f"there is no key to offer to {params.where}"
    else:
        message = f"{params.where} refused every key that we have"
    evidence = [f"offered: {', '.join(tried.offered)}"] if tried.offered else []
    hint = "; ".join(dict.fromkeys(tried.hints)) or (
        f"is one of these keys in ~{params.user}/.ssh/authorized_keys there? Say which to use with identity_file"
    )
    return AuthError(
        message,
        host=host,
        step="log in",
        evidence="; ".join([*evidence, *tried.problems]),
        hint=hint,
        tried=tuple(tried.offered),
    )


_Load = Callable[[], "paramiko.PKey | None"]


def _candidates(
    params: SshParams, settings: SshSettings, agent_keys: list[paramiko.PKey], tried: _Tried
) -> Iterator[tuple[str, _Load]]:
    """(name for people, how to load) in the order in which they are to be offered."""
    left = {key.asbytes(): key for key in agent_keys}
    for path in params.identity_files:
        if not os.path.isfile(path):
            if params.identities_given:
                tried.problems.append(f"{path} does not exist")
            continue
        blob = public_blob(path)
        held = left.pop(blob, None) if blob is not None else None
        if held is not None:
            yield f"{path} (agent)", lambda held=held: held  # type: ignore[misc]
        elif params.identities_given:
            yield path, lambda path=path: _load(path, settings, tried)  # type: ignore[misc]
    if not params.identities_only:
        for key in left.values():
            yield f"agent key {getattr(key, 'comment', '') or key.get_name()}", lambda key=key: key  # type: ignore[misc]
    if not params.identities_given:
        for path in params.identity_files:
            if os.path.isfile(path):
                yield path, lambda path=path: _load(path, settings, tried)  # type: ignore[misc]


def _load(path: str, settings: SshSettings, tried: _Tried) -> paramiko.PKey | None:
    """A key of a file; None, with the reason noted, when it cannot be had."""
    import paramiko

    advice = f"load the key into the agent (ssh-add {path}), or give its passphrase"
    try:
        return _parse(path, None)
    except paramiko.PasswordRequiredException:
        passphrase = settings.passphrase(path) if settings.passphrase is not None else None
    except (paramiko.SSHException, ValueError, OSError) as exc:
        tried.problems.append(f"{path} cannot be used as a key: {exc}")
        return None
    if passphrase is None:
        tried.problems.append(f"{path} is encrypted and no passphrase is known")
        tried.hints.append(advice)
        return None
    try:
        return _parse(path, passphrase)
    except (paramiko.SSHException, ValueError, OSError):
        tried.problems.append(f"{path}: the passphrase is wrong")
        tried.hints.append(advice)
        return None


def _parse(path: str, passphrase: str | None) -> paramiko.PKey:
    """Whichever kind of key it is, with its certificate when there is one beside it."""
    import paramiko

    problem: Exception = paramiko.SSHException("not a key of a known kind")
    kinds: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    for kind in kinds:
        try:
            key = kind.from_private_key_file(path, passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError) as exc:
            problem = exc
        else:
            if os.path.isfile(f"{path}-cert.pub"):
                key.load_certificate(f"{path}-cert.pub")
            return key
    raise problem


def public_blob(path: str) -> bytes | None:
    """The public half of a key file: from `<path>.pub`, else from the unencrypted head of an OpenSSH key file."""
    try:
        words = Path(f"{path}.pub").read_text(errors="replace").split()
        return base64.b64decode(words[1], validate=True)
    except (OSError, IndexError, binascii.Error, ValueError):
        pass
    try:
        lines = Path(path).read_text(errors="replace").strip().splitlines()
        if not lines or "BEGIN OPENSSH PRIVATE KEY" not in lines[0]:
            return None
        return _head_blob(base64.b64decode("".join(lines[1:-1])))
    except (OSError, binascii.Error, ValueError, struct.error):
        return None


def _head_blob(data: bytes) -> bytes | None:
    """openssh-key-v1: cipher, kdf and kdf options as strings, a count, then the public keys."""
    if not data.startswith(_OPENSSH_MAGIC):
        return None
    offset = len(_OPENSSH_MAGIC)
    for _ in range(3):
        offset += 4 + struct.unpack_from(">I", data, offset)[0]
    offset += 4
    (length,) = struct.unpack_from(">I", data, offset)
    return data[offset + 4 : offset + 4 + length]


class _Agent:
    """The user's SSH agent, for as long as one login takes. No agent has no keys."""

    def __init__(self, params: SshParams) -> None:
        self._params = params
        self._agent: paramiko.Agent | None = None

    def keys(self) -> list[paramiko.PKey]:
        import paramiko

        params = self._params
        if not params.use_agent:
            return []
        try:
            if params.agent_socket is None:
                self._agent = paramiko.Agent()
            else:
                self._agent = _agent_at(params.agent_socket)
            return list(self._agent.get_keys())
        except (paramiko.SSHException, OSError):
            return []

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


def _agent_at(path: str) -> paramiko.Agent:
    """An agent that is not the one of SSH_AUTH_SOCK (IdentityAgent), without touching the environment."""
    import socket

    import paramiko

    agent = paramiko.Agent.__new__(paramiko.Agent)
    paramiko.agent.AgentSSH.__init__(agent)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    agent._connect(connection)  # type: ignore[attr-defined]
    return agent
