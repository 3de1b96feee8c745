"""What a machine has: one probe, sent as data, and the pure reading of its answer.

The answer is lines of "key<TAB>value" between "skylib-probe <version>" and "end"; what a login shell prints around it
is skipped. Keys may repeat (one python, gpu, ip, listen or limit a line). Golden cases are in tests/data/facts/.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence

from skylib.errors import FactError
from skylib.facts.probe_script import PROBE_SCRIPT, PROBE_VERSION
from skylib.models.node import Gpu, NodeFacts, PortHolder, PythonFound
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["PROBE", "PROBE_INPUT", "parse_probe", "probe"]

PROBE = Command.of("/bin/sh", "-s")
PROBE_INPUT = PROBE_SCRIPT.encode()

_ONCE = "os hostname arch user uid home libc cpus memory_kib disk_free_kib home_file_system gpu_status boot clock"
_MANY = "conda uv cpu_quota memory_limit gpu python ssh_ip ip listen runtime_digest cluster temp_dir_owner temp_cluster"
_KEYS = frozenset(f"{_ONCE} {_MANY}".split(" "))
_PYTHON = re.compile(r"Python (\d+)\.(\d+)\.(\d+)")
_VIRTUAL = ("docker", "br-", "virbr", "veth", "cni", "flannel", "cali", "lxc", "podman", "tun", "tap")
_GIB = 1024.0**3
_TIMED_OUT = 124  # coreutils' timeout

Values = Mapping[str, Sequence[str]]


def probe(
    transport: Transport,
    *,
    root: str = "",
    temp_dir: str = "",
    timeout_s: float = 45.0,
    clock: Callable[[], float] = time.time,
) -> NodeFacts:
    """Ask one node. root: where our files are there, when not in the account's home; temp_dir: Ray's, when elsewhere.

    Raises FactError when the answer is not a probe's, and what Transport.run raises.
    """
    command = Command.of(*PROBE.argv, "--", root, temp_dir) if root or temp_dir else PROBE
    done = transport.run(command, stdin=PROBE_INPUT, timeout_s=timeout_s)
    try:
        return parse_probe(done.stdout, clock=clock())
    except FactError as error:
        done.check()
        error.host = transport.host
        raise


def parse_probe(output: bytes, *, clock: float) -> NodeFacts:
    """Facts from a probe's answer. clock: our unix time when it came. Raises FactError unless it is a whole answer."""
    values = _values(output.decode(errors="replace"))
    notes: list[str] = []
    holders = _port_holders(values)
    return NodeFacts(
        os=_one(values, "os"),
        arch=_one(values, "arch"),
        libc=_one(values, "libc", ""),
        home=_one(values, "home"),
        user=_one(values, "user"),
        uid=_whole(_one(values, "uid"), "uid"),
        hostname=_one(values, "hostname"),
        cpus=_cpus(values),
        memory_gib=_memory_gib(values),
        disk_free_gib=_whole(_one(values, "disk_free_kib"), "disk_free_kib") * 1024 / _GIB,
        home_file_system=_one(values, "home_file_system", ""),
        gpus=_gpus(values, notes),
        pythons=_pythons(values, notes),
        uv=_one(values, "uv", ""),
        conda=_one(values, "conda", ""),
        internal_ips=_internal_ips(values),
        clock_offset_s=_clock(values) - clock,
        runtime_digest=_one(values, "runtime_digest", "").strip(),
        temp_dir_owner=_whole(values["temp_dir_owner"][0], "temp_dir_owner") if "temp_dir_owner" in values else None,
        cluster=_cluster(values, notes),
        listening=tuple(holder.port for holder in holders),
        port_holders=holders,
        boot=_one(values, "boot", ""),
        notes=tuple(notes),
    )


def _values(text: str) -> dict[str, list[str]]:
    lines = [line.rstrip("\r") for line in text.split("\n")]
    starts = [index for index, line in enumerate(lines) if line.startswith("skylib-probe ")]
    if not starts:
        raise _wrong("the node did not answer the probe", text)
    start = starts[-1]
    if lines[start] != f"skylib-probe {PROBE_VERSION}":
        raise _wrong(f"the node answered {lines[start]!r}, expected version {PROBE_VERSION}", text)
    if "end" not in lines[start:]:
        raise _wrong("the answer to the probe is cut off", text)
    values: dict[str, list[str]] = {}
    for line in lines[start + 1 : lines.index("end", start)]:
        key, tab, value = line.partition("\t")
        if not tab or key not in _KEYS:
            raise _wrong(f"the probe's answer has a line of unknown form: {line!r}", text)
        values.setdefault(key, []).append(value)
    return values


def _wrong(message: str, evidence: str) -> FactError:
    return FactError(message, fact="probe", evidence=evidence[-2000:])


def _one(values: Values, key: str, default: str | None = None) -> str:
    found = values.get(key, ())
    if found and (found[0] or default is not None):
        return found[0]
    if default is None:
        raise FactError(f"the node did not say its {key}", fact=key, evidence="\n".join(values))
    return default


def _whole(text: str, key: str) -> int:
    if not text.strip().isdecimal():
        raise FactError(f"the node's {key} is {text!r}, expected a whole number", fact=key, evidence=text)
    return int(text)


def _cpus(values: Values) -> int:
    """What nproc says, or less where a control group allows less; at least 1."""
    cpus = _whole(_one(values, "cpus"), "cpus")
    for text in values.get("cpu_quota", ()):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            cpus = min(cpus, int(quota) // int(period))
    return max(1, cpus)


def _memory_gib(values: Values) -> float:
    memory_bytes = _whole(_one(values, "memory_kib"), "memory_kib") * 1024
    limits = [int(text) for text in values.get("memory_limit", ()) if text.isdecimal()]
    return min([memory_bytes, *limits]) / _GIB


def _gpus(values: Values, notes: list[str]) -> tuple[Gpu, ...]:
    """Devices in index order. What nvidia-smi says instead of a device becomes a note."""
    rows = [row.strip() for row in values.get("gpu", ()) if row.strip()]
    status = _whole(_one(values, "gpu_status", "0") or "0", "gpu_status")
    if status == _TIMED_OUT:
        notes.append("nvidia-smi did not answer in time")
        return ()
    if status != 0:
        notes.append(f"nvidia-smi failed (exit status {status}): {rows[0] if rows else 'it said nothing'}")
        return ()
    found = []
    for row in rows:
        device = _gpu(row)
        if device is None:
            notes.append(f"nvidia-smi: {row}")
        else:
            found.append(device)
    return tuple(sorted(found, key=lambda device: device.index))


def _gpu(row: str) -> Gpu | None:
    """One "index, uuid, name, MiB" row; memory is 0 where the driver does not tell it. None for other text."""
    head, _, memory = row.rpartition(",")
    index, _, rest = head.partition(",")
    uuid, comma, name = rest.partition(",")
    if not comma or not index.strip().isdecimal() or not name.strip():
        return None
    mib = memory.strip()
    return Gpu(
        index=int(index), uuid=uuid.strip(), name=name.strip(), memory_gib=float(mib) / 1024 if mib.isdecimal() else 0.0
    )


def _pythons(values: Values, notes: list[str]) -> tuple[PythonFound, ...]:
    """Interpreters in the order of PATH, then of the usual places; each real path once."""
    found: dict[str, PythonFound] = {}
    for row in values.get("python", ()):
        origin, _, rest = row.partition("\t")
        said, tab, path = rest.partition("\t")
        if not tab or not path.startswith("/"):
            raise FactError(f"the probe's answer has a python of unknown form: {row!r}", fact="python", evidence=row)
        match = _PYTHON.match(said)
        if match is None:
            notes.append(f"{path} does not run: {said or 'it said nothing'}")
            continue
        major, minor, micro = (int(part) for part in match.groups())
        found.setdefault(path, PythonFound(path=path, version=(major, minor, micro), origin=origin))
    return tuple(found.values())


def _internal_ips(values: Values) -> tuple[str, ...]:
    """IPv4 addresses: where our SSH connection arrived, then real interfaces, then those of containers and tunnels."""
    real: list[str] = []
    virtual: list[str] = []
    for row in values.get("ip", ()):
        interface, _, address = row.partition(" ")
        (virtual if interface.startswith(_VIRTUAL) else real).append(address)
    found = dict.fromkeys([*values.get("ssh_ip", ()), *real, *virtual])
    return tuple(address for address in found if _is_reachable_ipv4(address))


def _is_reachable_ipv4(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def _clock(values: Values) -> float:
    """date's seconds; a date without %N leaves it as it is, or prints only N."""
    match = re.match(r"\d+(\.\d+)?", _one(values, "clock"))
    if match is None:
        raise FactError("the node's clock is no number", fact="clock", evidence=values["clock"][0])
    return float(match[0])


def _cluster(values: Values, notes: list[str]) -> Mapping[str, object] | None:
    """cluster.json of the account; else that of a `local` cluster of the account, which lies in its temp dir."""
    for key in ("cluster", "temp_cluster"):
        if key not in values:
            continue
        text = "\n".join(values[key])
        try:
            mark = json.loads(text)
        except ValueError:
            mark = None
        if isinstance(mark, dict):
            return mark
        notes.append(f"cluster.json cannot be read: {text[:200]!r}")
        return {"cluster": None, "unreadable": text[:200]}
    return None


def _port_holders(values: Values) -> tuple[PortHolder, ...]:
    """Who listens, by port; one holder a port, the first that the kernel lists."""
    holders: dict[int, PortHolder] = {}
    for row in values.get("listen", ()):
        port, _, uid = row.partition(" ")
        try:
            holder = PortHolder(port=int(port, 16), uid=int(uid))
        except ValueError:
            raise FactError(f"the probe's answer has a port of unknown form: {row!r}", fact="listen") from None
        holders.setdefault(holder.port, holder)
    return tuple(holders[port] for port in sorted(holders))
