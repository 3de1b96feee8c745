"""The client's end of the agent's channel: one SSH channel per cluster, many requests and streams on it at once.

One handshake when the channel opens; typed errors; reopened after a break or a fork. A request that was under way when
the channel broke is repeated only if it cannot do harm twice.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from skylib.agent.protocol import PROTOCOL, TOKEN_VARIABLE
from skylib.errors import AgentError, AgentReplyError, AgentVersionError, ConnectError, TransportError
from skylib.runtime.layout import NodeLayout
from skylib.transport.base import Process, Transport
from skylib.transport.command import Command

__all__ = ["AgentClient", "bridge_command", "daemon_command", "payload_bytes"]

HANDSHAKE_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 60.0

# May be asked twice without harm: they read, or they lead to the same state.
_REPEATABLE = frozenset(
    {"ready", "info", "queue", "job", "wait", "logs", "log_files", "autostop", "setup_state"}
)

Message = dict[str, Any]


def bridge_command(python: str, layout: NodeLayout) -> Command:
    """What joins an SSH channel to the agent's socket on the node."""
    return Command.of(python, "-S", "-E", layout.agent_bundle, "bridge", "--socket", layout.agent_socket)


def daemon_command(python: str, layout: NodeLayout, cluster_id: str, *, asleep: bool = False) -> Command:
    """What starts the agent of a node, or finds it running; returns when its socket accepts.

    asleep: only to be read, as it is; it begins nothing and asks no Ray.
    """
    words = [python, layout.agent_bundle, "daemon", "--config", layout.agent_json]
    if asleep:
        words.append("--asleep")
    return Command.of(*words, env={TOKEN_VARIABLE: cluster_id}, cwd=layout.root)


class AgentClient:
    """Asks one cluster's agent. Safe from many threads and after fork; opens its channel on first use."""

    def __init__(self, transport: Transport, bridge: Command, *, cluster: str, cluster_id: str, version: str) -> None:
        self._transport = transport
        self._bridge = bridge
        self._cluster = cluster
        self._cluster_id = cluster_id
        self._version = version
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._channel: _Channel | None = None

    def call(
        self,
        verb: str,
        *,
        answer_within_s: float | None = CALL_TIMEOUT_S,
        repeatable: bool | None = None,
        **args: object,
    ) -> Message:
        """The agent's answer to one request. answer_within_s: None waits for ever.

        repeatable: ask again when the channel breaks after the request went out; by default what only reads is.

        Raises AgentError when the channel broke or no answer came in time, AgentReplyError (with `kind`) when the
        agent refused, TransportError.
        """
        for attempt in (1, 2):
            channel = self._open_channel()
            try:
                replies = channel.request(verb, args)
                return self._final(replies, verb, answer_within_s)
            except _ChannelBroken as broken:
                self._drop(channel)
                if attempt == 2 or (broken.sent and not (verb in _REPEATABLE if repeatable is None else repeatable)):
                    raise self._lost(verb, broken) from broken
        raise AssertionError("unreachable")  # pragma: no cover

    def stream(self, verb: str, **args: object) -> Iterator[Message]:
        """Items of a streaming verb, then its answer as the last message under the key "ok".

        Closing the iterator ends the stream at the agent. Raises AgentError when the channel breaks: a broken stream
        never looks like its end.
        """
        channel = self._open_channel()
        try:
            replies = channel.request(verb, args)
        except _ChannelBroken:
            self._drop(channel)
            channel = self._open_channel()
            try:
                replies = channel.request(verb, args)
            except _ChannelBroken as again:
                raise self._lost(verb, again) from again
        return self._items(channel, replies, verb)

    def _items(self, channel: _Channel, replies: _Replies, verb: str) -> Iterator[Message]:
        done = False
        try:
            while True:
                try:
                    message = replies.next(None)
                except _ChannelBroken as broken:
                    done = True
                    self._drop(channel)
                    raise self._lost(verb, broken) from broken
                if "item" in message:
                    yield message["item"]
                    continue
                done = True
                self._raise_refusal(message, verb)
                yield {"ok": message.get("ok", {})}
                return
        finally:
            if not done:
                channel.cancel(replies.number)

    def close(self) -> None:
        """Close the channel: requests under way fail, a later one opens a new channel."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.closed = True
            channel.close()

    def _open_channel(self) -> _Channel:
        if self._pid != os.getpid():  # forked: the parent's channel and thread are not ours
            self._lock = threading.Lock()
            self._channel = None
            self._pid = os.getpid()
        with self._lock:
            if self._channel is not None and not self._channel.broken:
                return self._channel
            process = self._transport.open(self._bridge)
            channel = _Channel(process)
            try:
                self._shake_hands(channel, process)
            except BaseException:
                channel.close()
                raise
            self._channel = channel
            return channel

    def _shake_hands(self, channel: _Channel, process: Process) -> None:
        try:
            channel.write({"hello": {"protocol": PROTOCOL, "client": self._version}})
            greeting = channel.greeting(HANDSHAKE_TIMEOUT_S)
        except _ChannelBroken as broken:
            raise AgentError(
                f"the agent of cluster {self._cluster!r} does not answer",
                host=self._transport.host,
                step="agent.connect",
                evidence=_last_words(process),
                hint=f"client.start({self._cluster!r}) brings it back",
                cluster=self._cluster,
            ) from broken
        if "error" in greeting:
            raise AgentVersionError(
                f"the agent of cluster {self._cluster!r} refused this client: {greeting['error'].get('message', '')}",
                host=self._transport.host,
                ours=PROTOCOL,
                theirs=greeting["error"].get("protocol"),
                hint=f"client.start({self._cluster!r}) puts the matching agent there",
            )
        hello = greeting.get("hello", {})
        if hello.get("protocol") != PROTOCOL:
            raise AgentVersionError(
                f"the agent of {self._cluster!r} speaks protocol {hello.get('protocol')}, this client {PROTOCOL}",
                host=self._transport.host,
                ours=PROTOCOL,
                theirs=hello.get("protocol"),
                hint=f"client.start({self._cluster!r}) puts the matching agent there",
            )
        if hello.get("cluster_id") != self._cluster_id:
            raise AgentError(
                f"host {self._transport.host} now serves cluster {hello.get('cluster')!r}, not {self._cluster!r}",
                host=self._transport.host,
                cluster=self._cluster,
                retryable=False,
                hint=f"client.down({self._cluster!r}, purge=True) forgets the old one",
            )

    def _drop(self, channel: _Channel) -> None:
        with self._lock:
            if self._channel is channel:
                self._channel = None
        channel.close()

    def _final(self, replies: _Replies, verb: str, timeout_s: float | None) -> Message:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message = replies.next(left)
            except queue.Empty as empty:
                raise AgentError(
                    f"the agent of cluster {self._cluster!r} did not answer {verb!r} within {timeout_s:g} s",
                    host=self._transport.host,
                    cluster=self._cluster,
                    verb=verb,
                ) from empty
            if "item" in message:
                continue
            self._raise_refusal(message, verb)
            ok = message.get("ok", {})
            return ok if isinstance(ok, dict) else {}

    def _raise_refusal(self, message: Mapping[str, Any], verb: str) -> None:
        error = message.get("error")
        if error is None:
            return
        facts = {key: value for key, value in error.items() if key != "message"}
        facts.setdefault("kind", "internal")
        raise AgentReplyError(
            f"{error.get('message', 'the agent refused the request')}",
            host=self._transport.host,
            cluster=self._cluster,
            verb=verb,
            **facts,
        )

    def _lost(self, verb: str, broken: _ChannelBroken) -> AgentError:
        return AgentError(
            f"the channel to the agent of cluster {self._cluster!r} broke during {verb!r}",
            host=self._transport.host,
            cluster=self._cluster,
            verb=verb,
            evidence=str(broken),
        )


class _ChannelBroken(Exception):
    """The channel ended. sent: the request may have reached the agent."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class _Replies:
    """Messages for one request, in order."""

    __slots__ = ("_messages", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._messages: queue.SimpleQueue[Message | _ChannelBroken] = queue.SimpleQueue()

    def put(self, message: Message | _ChannelBroken) -> None:
        self._messages.put(message)

    def next(self, timeout_s: float | None) -> Message:
        """Raises queue.Empty at the timeout, _ChannelBroken when no more can come."""
        message = self._messages.get(timeout=timeout_s)
        if isinstance(message, _ChannelBroken):
            raise message
        return message


class _Channel:
    """One open channel: a thread reads lines and hands each to the request that waits for it.

    closed: the client's owner closed it, so nothing on it is to be asked again.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Replies] = {}
        self._greetings: queue.SimpleQueue[Message | _ChannelBroken] = queue.SimpleQueue()
        self._broken: str | None = None
        self.closed = False
        self._reader = threading.Thread(target=self._read, name="skylib-agent-channel", daemon=True)
        self._reader.start()

    @property
    def broken(self) -> bool:
        return self._broken is not None

    def write(self, message: Mapping[str, object]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            with self._write_lock:
                self._process.send(line)
        except (TransportError, OSError) as error:
            raise _ChannelBroken(str(error), sent=False) from error

    def greeting(self, timeout_s: float) -> Message:
        try:
            message = self._greetings.get(timeout=timeout_s)
        except queue.Empty as empty:
            raise _ChannelBroken(f"no greeting within {timeout_s:g} s", sent=False) from empty
        if isinstance(message, _ChannelBroken):
            raise message
        return message

    def request(self, verb: str, args: Mapping[str, object]) -> _Replies:
        with self._lock:
            if self._broken is not None:
                raise _ChannelBroken(self._broken, sent=False)
            replies = _Replies(next(self._numbers))
            self._pending[replies.number] = replies
        try:
            self.write({"id": replies.number, "verb": verb, "args": dict(args)})
        except _ChannelBroken:
            with self._lock:
                self._pending.pop(replies.number, None)
            raise
        return replies

    def cancel(self, number: int) -> None:
        """End a stream; what still comes of it is dropped."""
        with self._lock:
            self._pending.pop(number, None)
        with contextlib.suppress(_ChannelBroken):
            self.write({"id": number, "cancel": True})

    def close(self) -> None:
        self._process.close()

    def _read(self) -> None:
        pieces: list[bytes] = []
        why = "the agent closed the channel"
        try:
            while data := self._process.receive():
                *whole, rest = data.split(b"\n")
                for part in whole:
                    pieces.append(part)
                    self._dispatch(b"".join(pieces))
                    pieces = []
                if rest:
                    pieces.append(rest)
        except (TransportError, OSError, ValueError) as error:
            why = str(error)
        with self._lock:
            self._broken = why
            waiting, self._pending = list(self._pending.values()), {}
        self._greetings.put(_ChannelBroken(why, sent=False))
        for replies in waiting:
            replies.put(_ChannelBroken(why, sent=True))

    def _dispatch(self, line: bytes) -> None:
        message: Message = json.loads(line)
        number = message.get("id")
        if number is None:
            self._greetings.put(message)
            return
        with self._lock:
            replies = self._pending.get(number)
            if replies is not None and "item" not in message:
                del self._pending[number]
        if replies is not None:
            replies.put(message)


def _last_words(process: Process) -> str:
    try:
        return process.wait(timeout_s=2.0).stderr.decode(errors="replace").strip()
    except (ConnectError, TransportError):
        return ""


def payload_bytes(item: Mapping[str, Any]) -> bytes:
    """The bytes of one item of `logs`."""
    if "b64" in item:
        return base64.b64decode(item["b64"])
    return str(item.get("text", "")).encode()
