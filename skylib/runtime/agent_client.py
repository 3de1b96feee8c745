"""The client's end of the agent's channel: one SSH channel per cluster, many requests and streams on it at once.

One handshake when the channel opens; typed errors; reopened after a break or a fork. A request that was under way when
the channel broke is repeated only if it cannot do harm twice.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from skylib.agent.protocol import PROTOCOL, TOKEN_VARIABLE
from skylib.errors import AgentError, AgentReplyError, AgentVersionError, ConnectError, TransportError
from skylib.forks import watch
from skylib.runtime.agent_channel import Channel, ChannelBroken, Message, Replies
from skylib.runtime.agent_stream import WINDOW_BYTES, AgentStream
from skylib.runtime.layout import NodeLayout
from skylib.transport.base import Process, Transport
from skylib.transport.command import Command

__all__ = ["AgentClient", "bridge_command", "daemon_command"]

HANDSHAKE_TIMEOUT_S = 20.0
NOBODY = 3  # what the bridge exits with when no agent listens
CALL_TIMEOUT_S = 60.0

# May be asked twice without harm: they read, or they lead to the same state.
_REPEATABLE = frozenset(
    {"ready", "info", "queue", "job", "wait", "logs", "log_files", "autostop", "setup_state", "lease", "ping"}
)
# Whoever asks these wants to know how things are: no agent is started for it.
_LOOKING = frozenset({"ready", "info"})


class Within(Enum):
    """How long an answer may take, where no number is given."""

    USUAL = "usual"



def bridge_command(python: str, layout: NodeLayout) -> Command:
    """What joins an SSH channel to the agent's socket on the node."""
    return Command.of(python, "-S", "-E", layout.agent_bundle, "bridge", "--socket", layout.agent_socket)


def daemon_command(python: str, layout: NodeLayout, cluster_id: str, *, asleep: bool = False) -> Command:
    """What starts the agent of a node, or finds it running; returns when its socket accepts.

    asleep: only to be read, as it is; it begins nothing and asks no Ray. It bears no mark until it has waited for an end
    of the node that is under way: that one would end it.
    """
    words = [python, layout.agent_bundle, "daemon", "--config", layout.agent_json]
    if asleep:
        return Command.of(*words, "--asleep", cwd=layout.root)
    return Command.of(*words, env={TOKEN_VARIABLE: cluster_id}, cwd=layout.root)


class AgentClient:
    """Asks one cluster's agent. Safe from many threads and after fork; opens its channel on first use.

    on_nobody: what brings back an agent that died, for verbs that need one; False when it should not, or could not.
    """

    def __init__(
        self,
        transport: Transport,
        bridge: Command,
        *,
        cluster: str,
        cluster_id: str,
        version: str,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._transport = transport
        self._bridge = bridge
        self._cluster = cluster
        self._cluster_id = cluster_id
        self._version = version
        self.call_timeout_s = call_timeout_s
        self.on_nobody: Callable[[], bool] = lambda: False
        self._channel: Channel | None = None
        self._greeted: Channel | None = None
        self._renew()
        watch(self, in_child=AgentClient._renew)

    def _renew(self) -> None:
        """No channel, and locks that nobody holds: a forked child reads no channel of its parent's."""
        self._channel = self._greeted = None
        self._lock = threading.Lock()
        self._opening = threading.Lock()  # held through a handshake, which `close` must not wait for

    def call(
        self,
        verb: str,
        *,
        answer_within_s: float | Within | None = Within.USUAL,
        repeatable: bool | None = None,
        **args: object,
    ) -> Message:
        """The agent's answer to one request. answer_within_s: None waits for ever; as usual: call_timeout_s.

        repeatable: ask again when the channel breaks after the request went out; by default what only reads is.

        Raises AgentError when the channel broke or no answer came in time (the channel is dropped then), AgentReplyError
        (with `kind`) when the agent refused, TransportError.
        """
        limit_s = self.call_timeout_s if isinstance(answer_within_s, Within) else answer_within_s
        again = verb in _REPEATABLE if repeatable is None else repeatable
        for attempt in (1, 2):
            channel = self._open_channel(verb)
            try:
                replies = channel.request(verb, args)
                return self._final(channel, replies, verb, limit_s)
            except ChannelBroken as broken:
                self._drop(channel)
                if attempt == 2 or channel.closed or (broken.sent and not again):
                    raise self._lost(verb, broken) from broken
        raise AssertionError("unreachable")  # pragma: no cover

    def stream(self, verb: str, **args: object) -> Iterator[Message]:
        """Items of a streaming verb, then its answer as the last message under the key "ok".

        Closing the iterator ends the stream at the agent. Raises AgentError when the channel breaks: a broken stream
        never looks like its end.
        """
        stream = self.open_stream(verb, **args)
        try:
            while True:
                message = stream.next()
                yield message
                if "ok" in message:
                    return
        finally:
            if not sys.is_finalizing():  # an interpreter that ends closes the channel anyway
                stream.close()

    def open_stream(self, verb: str, **args: object) -> AgentStream:
        """A streaming verb under way. Raises AgentError, TransportError."""
        channel = self._open_channel(verb)
        try:
            replies = channel.request(verb, args, window=WINDOW_BYTES)
        except ChannelBroken:
            self._drop(channel)
            channel = self._open_channel(verb)
            try:
                replies = channel.request(verb, args, window=WINDOW_BYTES)
            except ChannelBroken as again:
                raise self._lost(verb, again) from again
        return AgentStream(
            channel,
            replies,
            refusal=lambda message: self._raise_refusal(message, verb),
            lost=lambda broken: self._end(channel, verb, broken),
        )

    def _end(self, channel: Channel, verb: str, broken: ChannelBroken) -> AgentError:
        if not channel.is_parents:
            self._drop(channel)
        return self._lost(verb, broken)

    def close(self) -> None:
        """Close the channel: requests under way fail, a later one opens a new channel."""
        with self._lock:
            channels, self._channel, self._greeted = (self._channel, self._greeted), None, None
        for channel in channels:
            if channel is not None:
                channel.closed = True
                channel.close()

    def _open_channel(self, verb: str) -> Channel:
        known = self._channel
        if known is not None and not known.broken:
            return known
        with self._opening:
            known = self._channel
            if known is not None and not known.broken:
                return known
            try:
                return self._connect()
            except AgentError as error:
                if not getattr(error, "nobody", False) or verb in _LOOKING or not self.on_nobody():
                    raise
            return self._connect()

    def _connect(self) -> Channel:
        process = self._transport.open(self._bridge)
        channel = self._greeted = Channel(process)
        try:
            self._shake_hands(channel, process)
        except BaseException:
            channel.close()
            raise
        with self._lock:
            self._greeted = None
            if not channel.closed:
                self._channel = channel
        return channel

    def _shake_hands(self, channel: Channel, process: Process) -> None:
        try:
            channel.write({"hello": {"protocol": PROTOCOL, "client": self._version}})
            greeting = channel.greeting(HANDSHAKE_TIMEOUT_S)
        except ChannelBroken as broken:
            code, words = _last_words(process)
            raise AgentError(
                f"the agent of cluster {self._cluster!r} does not answer",
                host=self._transport.host,
                step="agent.connect",
                evidence="\n".join(filter(None, (str(broken), words))),
                hint=f"client.start({self._cluster!r}) brings it back",
                cluster=self._cluster,
                nobody=code == NOBODY,
            ) from broken
        if "error" in greeting:
            raise AgentVersionError(
                f"the agent of cluster {self._cluster!r} refused this client: {greeting['error'].get('message', '')}",
                host=self._transport.host,
                ours=PROTOCOL,
                theirs=greeting["error"].get("ours"),
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

    def _drop(self, channel: Channel) -> None:
        with self._lock:
            if self._channel is channel:
                self._channel = None
        channel.close()

    def _final(self, channel: Channel, replies: Replies, verb: str, timeout_s: float | None) -> Message:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message = replies.next(left)
            except queue.Empty as empty:
                self._drop(channel)
                raise AgentError(
                    f"the agent of cluster {self._cluster!r} did not answer {verb!r} within {timeout_s:g} s",
                    host=self._transport.host,
                    cluster=self._cluster,
                    verb=verb,
                    hint=_hint(verb, sent=True),
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

    def _lost(self, verb: str, broken: ChannelBroken) -> AgentError:
        return AgentError(
            f"the channel to the agent of cluster {self._cluster!r} broke during {verb!r}",
            host=self._transport.host,
            cluster=self._cluster,
            verb=verb,
            evidence=str(broken),
            hint=_hint(verb, sent=broken.sent),
        )


def _hint(verb: str, *, sent: bool) -> str:
    """What to do about a request that has no answer. sent: the agent may have read it."""
    if sent and verb not in _REPEATABLE:
        return "the agent may carry it out all the same: look at the cluster before the same call is made again"
    return "the same call may be made again"


def _last_words(process: Process) -> tuple[int | None, str]:
    """Its exit code and stderr, as far as they can be had."""
    try:
        done = process.wait(timeout_s=2.0)
    except (ConnectError, TransportError):
        return None, ""
    return done.returncode, done.stderr.decode(errors="replace").strip()
