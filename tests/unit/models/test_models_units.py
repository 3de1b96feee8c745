"""Quantities, ports, infra and accelerators: what is read, what is refused, how it prints."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from skylib.errors import InvalidSpecError
from skylib.models.accelerators import Accelerator, Accelerators, parse_accelerators
from skylib.models.autostop import Autostop, JobRecovery, parse_autostop, parse_job_recovery
from skylib.models.infra import Infra
from skylib.models.units import (
    Amount,
    parse_amount,
    parse_disk_gb,
    parse_idle_minutes,
    parse_lease_s,
    parse_memory,
    parse_ports,
)

_NOT_AMOUNTS = [True, False, 0, -1, "", "+", "four", "4++", "-4", "4 4", float("nan"), float("inf"), "1e999", None, [4]]


@pytest.mark.parametrize(
    ("text", "value", "at_least"),
    [(4, 4, False), ("4", 4, False), ("4+", 4, True), (0.5, 0.5, False), (" 2.5 + ", 2.5, True), ("1e1+", 10, True)],
)
def test_counts(text, value, at_least):
    """A count is exact, or at least so much with a plus."""
    assert parse_amount(text) == Amount(value=value, at_least=at_least)


@pytest.mark.parametrize("wrong", [*_NOT_AMOUNTS, "4GB", "4x"])
def test_wrong_counts(wrong):
    """Anything else than a positive number, booleans included, is no count."""
    with pytest.raises(InvalidSpecError, match="expected"):
        parse_amount(wrong)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (16, Amount(value=16)),
        ("16+", Amount(value=16, at_least=True)),
        ("16GB", Amount(value=16)),
        ("16GiB+", Amount(value=16, at_least=True)),
        ("16 g", Amount(value=16)),
        ("512mb+", Amount(value=0.5, at_least=True)),
        ("1048576KB", Amount(value=1)),
        ("2TiB", Amount(value=2048)),
        ("1pb", Amount(value=1024 * 1024)),
        ("4x", Amount(value=4, ratio=True)),
        ("4X+", Amount(value=4, ratio=True, at_least=True)),
    ],
)
def test_memory(text, amount):
    """Memory counts GiB, under the names that SkyPilot takes for it, or so much per CPU."""
    assert parse_memory(text) == amount


@pytest.mark.parametrize("wrong", [*_NOT_AMOUNTS, "16XB", "16GBs", "GB", "16+GB"])
def test_wrong_memory(wrong):
    """Unknown units and misplaced signs are refused."""
    with pytest.raises(InvalidSpecError, match="expected"):
        parse_memory(wrong)


def test_amount_admits():
    """An exact amount admits itself, an open one also more."""
    assert [Amount(value=4).admits(n) for n in (3, 4, 5)] == [False, True, False]
    assert [Amount(value=4, at_least=True).admits(n) for n in (3, 4, 5)] == [False, True, True]


def test_ratio_is_resolved_per_cpu():
    """A ratio times the CPUs is an amount; other amounts stay."""
    assert Amount(value=4, ratio=True, at_least=True).resolved(8) == Amount(value=32, at_least=True)
    assert Amount(value=4).resolved(8) == Amount(value=4)


@pytest.mark.parametrize(("text", "size"), [(256, 256), ("256", 256), ("1TB", 1024), ("1500MB", 1), ("2.9GiB", 2)])
def test_disk_sizes(text, size):
    """Disk sizes are whole GiB, rounded down."""
    assert parse_disk_gb(text) == size


@pytest.mark.parametrize("wrong", [0, -5, "1+", "512MB", 2.5, True, "", "big"])
def test_wrong_disk_sizes(wrong):
    """A disk below 1 GiB or with a plus is refused."""
    with pytest.raises(InvalidSpecError, match="expected"):
        parse_disk_gb(wrong)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [(5, 5), ("5", 5), ("30m", 30), ("2h", 120), ("1D", 1440), ("1w", 10080), (0, 1), ("0", 1)],
)
def test_idle_minutes(text, minutes):
    """Durations are whole minutes; none at all means the shortest there is."""
    assert parse_idle_minutes(text) == minutes


@pytest.mark.parametrize("wrong", [-1, "1s", "1.5h", "h", "", True, 2.5, None, "9" * 5000])
def test_wrong_idle_minutes(wrong):
    """Other units and fractions are refused."""
    with pytest.raises(InvalidSpecError, match="expected"):
        parse_idle_minutes(wrong)


@pytest.mark.parametrize(
    ("ports", "merged"),
    [
        (None, []),
        (80, ["80"]),
        ("80,443", ["80", "443"]),
        (["8000-8010", 8005, "8011", "7999"], ["7999-8011"]),
        ([1, 65535, "3 - 4"], ["1", "3-4", "65535"]),
    ],
)
def test_ports(ports, merged):
    """Ports become sorted ranges that neither overlap nor touch."""
    assert [str(each) for each in parse_ports(ports)] == merged


@pytest.mark.parametrize("wrong", [0, 65536, "10-5", "a", "", True, 80.0, [None], "80,", "-80", {"80": None}])
def test_wrong_ports(wrong):
    """Ports out of range, turned around or of another type are refused."""
    with pytest.raises(InvalidSpecError, match="port"):
        parse_ports(wrong)


@pytest.mark.parametrize(
    ("text", "parts", "printed"),
    [
        ("local", ("local", None, None), "local"),
        ("ssh/lab", ("ssh", "lab", None), "ssh/lab"),
        ("ssh", ("ssh", None, None), "ssh"),
        ("AWS/us-east-1/us-east-1a", ("aws", "us-east-1", "us-east-1a"), "aws/us-east-1/us-east-1a"),
        ("aws/*/us-east-1a", ("aws", None, "us-east-1a"), "aws/*/us-east-1a"),
        ("*/us-east-1", (None, "us-east-1", None), "*/us-east-1"),
        ("k8s/arn:aws:eks:r:1:cluster/my-c", ("kubernetes", "arn:aws:eks:r:1:cluster/my-c", None), None),
        ("Kubernetes", ("kubernetes", None, None), "kubernetes"),
        ("*", (None, None, None), "*"),
        ("aws/*/*", ("aws", None, None), "aws"),
    ],
)
def test_infra(text, parts, printed):
    """A place is cloud, region and zone; pools and contexts are one name each, slashes included."""
    infra = Infra.parse(text)
    assert (infra.cloud, infra.region, infra.zone) == parts
    assert Infra.parse(str(infra)) == infra
    assert printed is None or str(infra) == printed


@pytest.mark.parametrize("wrong", ["", "/", "aws/", "a b", "aws/r/z/more", "aws//z", None, 3, "ssh/", "$cloud"])
def test_wrong_infra(wrong):
    """A place with empty or too many parts is refused."""
    with pytest.raises(InvalidSpecError, match="expected infra"):
        Infra.parse(wrong)


def test_pool_of_infra():
    """Only SSH infra has a pool."""
    assert Infra.parse("ssh/lab").pool == "lab"
    assert Infra.parse("aws/lab").pool is None


@pytest.mark.parametrize(
    ("text", "accelerator"),
    [
        ("A100", Accelerator(name="A100")),
        ("A100:8", Accelerator(name="A100", count=8)),
        ("A100-80GB:0.5", Accelerator(name="A100-80GB", count=0.5)),
        ("80GB+", Accelerator(memory=Amount(value=80, at_least=True))),
        ("80GB:2", Accelerator(memory=Amount(value=80), count=2)),
        ("NVIDIA:40GB", Accelerator(memory=Amount(value=40), manufacturer="nvidia")),
        ("nvidia:24GB+:2", Accelerator(memory=Amount(value=24, at_least=True), count=2, manufacturer="nvidia")),
        ("tpu-v4-8", Accelerator(name="tpu-v4-8")),
    ],
)
def test_one_accelerator(text, accelerator):
    """An accelerator is asked for by name or by device memory, with a count."""
    assert Accelerator.parse(text) == accelerator
    assert Accelerator.parse(str(accelerator)) == accelerator


@pytest.mark.parametrize(
    "wrong",
    ["", ":8", "A100:", "A100:x", "A100:0", "A100:-1", "A100:1:1", "A100:4+", 8, "8", True, [], {}, {"A100": True}]
    + [["A100", None], {"A100:1": 2}, "A100:nan", "two words", "nvidia:24GB:1:1"],
)
def test_wrong_accelerators(wrong):
    """Counts that are no positive numbers, and names that are none, are refused."""
    with pytest.raises(InvalidSpecError, match="expected"):
        parse_accelerators(wrong)


def test_one_accelerator_in_any_container_is_just_one():
    """A map, a list or a set of one means the same as the text."""
    forms = ["A100:8", {"A100": 8}, {"A100:8": None}, ["A100:8"], {"A100:8"}, "{A100: 8}", Accelerator.parse("A100:8")]
    assert {parse_accelerators(form) for form in forms} == {Accelerators(options=(Accelerator(name="A100", count=8),))}


def test_list_of_accelerators_is_a_preference():
    """The order of a list is kept, and counts for equality."""
    found = parse_accelerators(["V100", "A100:2"])
    assert found is not None
    assert (found.ordered, [str(each) for each in found.options]) == (True, ["V100", "A100:2"])
    assert found != parse_accelerators(["A100:2", "V100"])


def test_map_of_accelerators_is_any():
    """Several in a map or a set are one choice without order."""
    found = parse_accelerators({"V100": 1, "A100": 2})
    assert found is not None
    assert not found.ordered
    assert found == parse_accelerators({"A100:2", "V100:1"}) == parse_accelerators({"A100:2": None, "V100:1": None})


@pytest.mark.parametrize(
    ("value", "autostop"),
    [
        (None, None),
        (False, Autostop(enabled=False)),
        (-1, Autostop(enabled=False)),
        (True, Autostop(idle_minutes=1)),
        (10, Autostop(idle_minutes=10)),
        ("2h", Autostop(idle_minutes=120)),
        ({"idle_minutes": 5, "down": True}, Autostop(idle_minutes=5, down=True)),
        ({"down": True, "wait_for": "JOBS"}, Autostop(down=True, wait_for="jobs")),
        (
            {"idle_minutes": 5, "hook": "git push", "hook_timeout": 9},
            Autostop(idle_minutes=5, hook="git push", hook_timeout=9),
        ),
        (Autostop(idle_minutes=3), Autostop(idle_minutes=3)),
    ],
)
def test_autostop(value, autostop):
    """Each form of autostop is read, and what is printed reads back."""
    found = parse_autostop(value)
    assert found == autostop
    assert found is None or parse_autostop(found.to_plain()) == found


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"idle_minuts": 5}, "idle_minuts"),
        ({"idle_minutes": -5}, "idle_minutes"),
        ({"down": "yes"}, "down"),
        ({"wait_for": "ssh"}, "wait_for"),
        ({"hook_timeout": 0}, "hook_timeout"),
        ({"hook": "x" * (16 * 1024 + 1)}, "hook"),
        ({"hook": "a\0b"}, "hook"),
        ([5], None),
        ("soon", None),
    ],
)
def test_wrong_autostop(wrong, field):
    """A wrong autostop names the wrong key."""
    with pytest.raises(InvalidSpecError) as caught:
        parse_autostop(wrong)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "recovery"),
    [
        ("none", JobRecovery(strategy="NONE")),
        ("failover", JobRecovery(strategy="FAILOVER")),
        ({"max_restarts_on_errors": 3}, JobRecovery(max_restarts_on_errors=3)),
        ({"strategy": None, "recover_on_exit_codes": 33}, JobRecovery(recover_on_exit_codes=(33,))),
        ({"recover_on_exit_codes": [255, 0, 255]}, JobRecovery(recover_on_exit_codes=(0, 255))),
    ],
)
def test_job_recovery(value, recovery):
    """Each form of job_recovery is read, and what is printed reads back."""
    assert parse_job_recovery(value) == recovery
    assert parse_job_recovery(recovery.to_plain()) == recovery


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"max_restarts": 1}, "max_restarts"),
        ({"max_restarts_on_errors": -1}, "max_restarts_on_errors"),
        ({"recover_on_exit_codes": [1, 256]}, "recover_on_exit_codes[1]"),
        (3, None),
    ],
)
def test_wrong_job_recovery(wrong, field):
    """A wrong job_recovery names the wrong key."""
    with pytest.raises(InvalidSpecError) as caught:
        parse_job_recovery(wrong)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2h", 7200.0),
        ("90m", 5400.0),
        ("45s", 45.0),
        (" 1.5 H ", 5400.0),
        ("1d", 86400.0),
        ("1w", 604800.0),
        (7200, 7200.0),
        (10.5, 10.5),
        (timedelta(hours=2), 7200.0),
    ],
)
def test_leases(value, seconds):
    """Text says its unit, a number counts seconds."""
    assert parse_lease_s(value) == seconds


@pytest.mark.parametrize(
    "value", ["2", "", "h", "2 hours", "-2h", "1h30m", 9.9, 0, -1, math.inf, math.nan, True, [1], timedelta(0)]
)
def test_what_is_no_lease(value):
    """Nothing that could be meant in two ways, and none that contact could not renew in time."""
    with pytest.raises(InvalidSpecError):
        parse_lease_s(value)
