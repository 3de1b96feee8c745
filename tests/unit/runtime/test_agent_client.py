"""The client's end of the agent's channel, against agents that misbehave."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable

import pytest

from skylib.agent.protocol import PROTOCOL
from skylib.errors import AgentError, AgentVersionError
from skylib.runtime.agent_client import AgentClient
from skylib.transport.base import ByteChannel
from skylib.transport.command import Command
from skylib.transport.scripted import Rule, ScriptedTransport, Talk

HELLO = {"hello": {"protocol": PROTOCOL, "cluster": "train", "cluster_id": "id-1"}}


def client(*talks: Talk, call_timeout_s: float = 20.0) -> tuple[AgentClient, ScriptedTransport]:
    """Each opening of the channel meets the next talk."""
    node = ScriptedTransport("host0", [Rule("bridge", talk=talk, times=1) for talk in talks])
    bridge = Command.of("bridge")
    made = AgentClient(
        node, bridge, cluster="train", cluster_id="id-1", version="0", call_timeout_s=call_timeout_s
    )
    return made, node


def lines(channel: ByteChannel) -> Callable[[], dict[str, object]]:
    rest = bytearray()

    def next_line() -> dict[str, object]:
        while b"\n" not in rest:
            data = channel.receive()
            if not data:
                return {}
            rest.extend(data)
        line, _, left = bytes(rest).partition(b"\n")
        rest[:] = left
        return dict(json.loads(line))

    return next_line


def say(channel: ByteChannel, message: object) -> None:
    channel.send(json.dumps(message).encode() + b"\n")


def answering(channel: ByteChannel) -> None:
    """An agent as it should be: answers each request with its verb."""
    following = lines(channel)
    following()
    say(channel, HELLO)
    while request := following():
        if "verb" in request:
            say(channel, {"id": request["id"], "ok": {"verb": request["verb"]}})


def saying(*messages: bytes) -> Talk:
    """Greets, waits for one request, says this, and stays open."""

    def talk(channel: ByteChannel) -> None:
        following = lines(channel)
        following()
        say(channel, HELLO)
        following()
        for message in messages:
            channel.send(message + b"\n")
        while following():
            pass

    return talk


@pytest.mark.parametrize("message", [b"[1]", b"7", b"null", b"{", b'{"id": [1]'])
def test_what_is_no_message_breaks_the_channel_and_tells_who_waits(message: bytes):
    """A stream ends with AgentError when the agent says what is no message; it never waits for ever."""
    agent, _ = client(saying(message))
    with pytest.raises(AgentError) as caught:
        list(agent.stream("logs"))
    assert message.decode() in str(caught.value.evidence)


def test_a_call_without_answer_drops_its_channel():
    """After a timeout the next call opens a new channel, and does not meet the one that hangs."""
    agent, node = client(saying(), answering)
    with pytest.raises(AgentError, match="did not answer 'queue'"):
        agent.call("queue", answer_within_s=0.01)
    assert agent.call("queue") == {"verb": "queue"}
    assert len(node.calls) == 2


@pytest.mark.parametrize(
    ("verb", "hint"), [("queue", "the same call may be made again"), ("submit", "look at the cluster before the same call")]
)
def test_a_request_without_answer_says_what_may_have_become_of_it(verb: str, hint: str):
    """What only reads may be asked again; anything else may have been carried out."""
    agent, _ = client(saying(), saying(b"[1]"), saying(b"[1]"))
    with pytest.raises(AgentError) as silent:
        agent.call(verb, answer_within_s=0.01)
    with pytest.raises(AgentError) as broken:
        agent.call(verb)
    assert hint in str(silent.value.hint)
    assert hint in str(broken.value.hint)


def test_the_usual_time_for_an_answer_is_a_setting():
    """call_timeout_s holds where the call says nothing."""
    agent, _ = client(saying(), call_timeout_s=0.01)
    with pytest.raises(AgentError, match="within 0.01 s"):
        agent.call("queue")


def test_closing_does_not_wait_for_a_handshake():
    """close() ends a handshake under way, and the call that waited for it fails at once."""
    met = threading.Event()

    def silent(channel: ByteChannel) -> None:
        channel.receive()
        met.set()
        while channel.receive():
            pass

    agent, _ = client(silent)
    failed: list[BaseException] = []

    def call() -> None:
        try:
            agent.call("queue")
        except AgentError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert met.wait(20)
    started = time.monotonic()
    agent.close()
    thread.join(15)
    assert time.monotonic() - started < 15
    assert len(failed) == 1


def test_a_request_is_not_repeated_after_close():
    """A request under way when the client closes fails; it does not open a channel again."""
    asked = threading.Event()

    def talk(channel: ByteChannel) -> None:
        following = lines(channel)
        following()
        say(channel, HELLO)
        following()
        asked.set()
        while following():
            pass

    agent, node = client(talk, answering)
    failed: list[BaseException] = []

    def call() -> None:
        try:
            agent.call("ready")
        except AgentError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert asked.wait(20)
    agent.close()
    thread.join(20)
    assert len(failed) == 1
    assert len(node.calls) == 1


def test_both_protocols_are_told_when_the_agent_refuses():
    """theirs is what the agent said of itself."""

    def other(channel: ByteChannel) -> None:
        lines(channel)()
        say(channel, {"error": {"kind": "version", "message": "no", "ours": 99, "theirs": PROTOCOL}})

    agent, _ = client(other)
    with pytest.raises(AgentVersionError) as caught:
        agent.call("queue")
    assert (caught.value.ours, caught.value.theirs) == (PROTOCOL, 99)


def test_what_a_login_shell_prints_is_evidence():
    """A greeting of the account's shell on stdout is shown as what was read."""

    def chatty(channel: ByteChannel) -> None:
        channel.send(b"Welcome to the lab!\n")

    agent, _ = client(chatty)
    with pytest.raises(AgentError) as caught:
        agent.call("queue")
    assert "Welcome to the lab!" in str(caught.value.evidence)


def test_a_child_forked_amid_an_opening_opens_its_own_channel():
    """A child forked while another thread holds the client's locks asks on a channel of its own."""
    agent, _ = client(answering)
    agent._opening.acquire()
    agent._lock.acquire()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if agent.call("queue") == {"verb": "queue"} else 1)
    deadline = time.monotonic() + 20
    ended = 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        threading.Event().wait(0.01)
    if not ended:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 0
