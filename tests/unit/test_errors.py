"""The tree of errors: its shape, its facts, its text, and its trips through pickle and copy."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib import errors
from skylib.errors import (
    AgentReplyError,
    AuthError,
    BringUpError,
    CommandError,
    ConnectError,
    InvalidSpecError,
    JobFailed,
    LockTimeout,
    NoCapacityError,
    NoOfferError,
    SkyError,
    StagingError,
    TransportTimeout,
)

RAISED = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, BaseException)]
ALL: list[type[SkyError]] = [kind for kind in RAISED if issubclass(kind, SkyError)]
COMMON = ("host", "step", "command", "evidence", "hint")
FACTS = {
    "host": "10.0.0.4",
    "step": "ray_head",
    "command": "ray start --head",
    "evidence": "line 1\nline 2",
    "hint": "look there",
    "retryable": True,
    "exit_codes": (0, None, 137),
    "cluster": "train",
}
TREE = {
    "SkyError": ("Exception",),
    "InvalidSpecError": ("SkyError", "ValueError"),
    "ConfigError": ("SkyError", "ValueError"),
    "NotFoundError": ("SkyError", "LookupError"),
    "ClusterNotFound": ("NotFoundError",),
    "JobNotFound": ("NotFoundError",),
    "PoolNotFound": ("NotFoundError",),
    "ClusterNotUp": ("SkyError",),
    "ClusterBusy": ("SkyError",),
    "ProvisionError": ("SkyError",),
    "NoOfferError": ("ProvisionError",),
    "NoCapacityError": ("ProvisionError",),
    "BringUpError": ("ProvisionError",),
    "PreflightError": ("ProvisionError",),
    "TransportError": ("SkyError",),
    "ConnectError": ("TransportError",),
    "AuthError": ("TransportError",),
    "HostKeyError": ("TransportError",),
    "TransportTimeout": ("TransportError", "TimeoutError"),
    "CommandError": ("TransportError",),
    "AgentError": ("SkyError",),
    "AgentVersionError": ("AgentError",),
    "AgentReplyError": ("AgentError",),
    "FactError": ("SkyError",),
    "JobFailed": ("SkyError",),
    "StateError": ("SkyError",),
    "LockTimeout": ("StateError", "TimeoutError"),
    "MigrationError": ("StateError",),
    "StoreDamaged": ("StateError",),
    "LockLost": ("StateError",),
    "DatabaseUnreachable": ("StateError",),
    "StagingError": ("SkyError", "OSError"),
}


def facts_of(error: BaseException) -> dict[str, object]:
    return {**error.__dict__, "args": error.args, "text": str(error), "type": type(error)}


def test_the_tree_is_the_published_one() -> None:
    """Every error class is where callers look for it, and none is unlisted."""
    assert {kind.__name__: tuple(base.__name__ for base in kind.__bases__) for kind in ALL} == TREE
    assert set(errors.__all__) == TREE.keys()
    assert ALL == RAISED


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_takes_its_facts_as_keywords(kind: type[SkyError]) -> None:
    """Facts become attributes; the common ones are there as None when they do not apply."""
    error = kind("it failed", cluster="train", host="10.0.0.4")
    assert (error.message, error.args, error.host) == ("it failed", ("it failed",), "10.0.0.4")
    assert error.__dict__["cluster"] == "train"
    assert [getattr(kind("it failed"), name) for name in COMMON] == [None] * len(COMMON)
    assert kind("it failed").retryable in (True, False)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_every_fact(kind: type[SkyError], protocol: int) -> None:
    """A pickled error comes back as the same class with the same text and facts, whatever the protocol."""
    error = kind("it failed on 10.0.0.4", **FACTS)
    assert facts_of(pickle.loads(pickle.dumps(error, protocol))) == facts_of(error)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_copying_keeps_every_fact(kind: type[SkyError]) -> None:
    """copy and deepcopy give equal errors that share no dictionary."""
    error = kind("it failed", **FACTS)
    for made in (copy.copy(error), copy.deepcopy(error)):
        assert facts_of(made) == facts_of(error)
        assert made.__dict__ is not error.__dict__


@given(
    message=st.text(),
    facts=st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True).filter(
            lambda name: name not in ("message", "self", "args", "with_traceback", "add_note", "strerror", "errno")
        ),
        st.one_of(st.none(), st.text(), st.integers(), st.tuples(st.integers(), st.text())),
    ),
    kind=st.sampled_from(ALL),
)
def test_any_facts_survive(message: str, facts: dict[str, object], kind: type[SkyError]) -> None:
    """Pickling keeps facts of any name, and the text."""
    error = kind(message, **facts)
    assert facts_of(pickle.loads(pickle.dumps(error))) == facts_of(error)


def _fail(kind: type[SkyError]) -> None:
    raise kind("it failed in another process", **FACTS)


def test_errors_cross_processes() -> None:
    """An error raised in a worker process reaches the parent whole, whichever class it is."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for kind, future in [(kind, pool.submit(_fail, kind)) for kind in ALL]:
            error = future.exception(timeout=60)
            assert type(error) is kind
            assert error.__dict__.items() >= FACTS.items()


def test_the_text_has_message_and_facts() -> None:
    """str() is what a person needs: what failed, then where, what was seen, what to do; nothing that is not known."""
    error = BringUpError("Ray did not answer", host="10.0.0.4", evidence="one\ntwo\n", hint="look there")
    assert str(error) == "Ray did not answer\n  host: 10.0.0.4\n  evidence: one\n    two\n  hint: look there"
    assert str(BringUpError("Ray did not answer")) == "Ray did not answer"


def test_the_builtin_families_hold() -> None:
    """Code that knows only Python's own classes catches ours, and the text is still ours."""
    for kind, family in (
        (InvalidSpecError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.NotFoundError, LookupError),
        (TransportTimeout, TimeoutError),
        (LockTimeout, TimeoutError),
        (StagingError, OSError),
    ):
        with pytest.raises(family) as caught:
            raise kind("ours", hint="so")
        assert str(caught.value) == "ours\n  hint: so"


def test_retryable_says_what_may_succeed_later() -> None:
    """What only time can change is retryable; what the caller must change is not. One error may say otherwise."""
    again = {kind.__name__ for kind in ALL if kind.retryable}
    assert again >= {"ConnectError", "ClusterBusy", "DatabaseUnreachable", "NoCapacityError", "LockTimeout"}
    assert again.isdisjoint({"InvalidSpecError", "ConfigError", "NoOfferError", "AuthError", "HostKeyError", "JobFailed"})
    assert NoOfferError("none", retryable=True).retryable
    assert not AgentReplyError("no").retryable


def test_chained_causes_are_kept_apart() -> None:
    """Raising from another error sets the cause as usual; a fact cannot overwrite it."""
    refused = OSError(111, "refused")

    def connect() -> None:
        try:
            raise refused
        except OSError as exc:
            raise ConnectError("no connection", host="a") from exc

    with pytest.raises(ConnectError) as caught:
        connect()
    assert caught.value.__cause__ is refused


@pytest.mark.parametrize("kind", [AuthError, CommandError, JobFailed, NoCapacityError], ids=lambda kind: kind.__name__)
def test_classes_say_which_facts_they_carry(kind: type[SkyError]) -> None:
    """A class with facts of its own names them in its docstring."""
    assert "Facts: " in (kind.__doc__ or "")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_is_explained(kind: type[SkyError]) -> None:
    """Each class has a docstring of its own."""
    assert kind.__dict__.get("__doc__")
