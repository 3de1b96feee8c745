"""`ssh_node_pools.yaml`: which machines the user has, in SkyPilot's format and a little more.

    lab:
      user: ubuntu                  # these are defaults for every host of the pool
      identity_file: ~/.ssh/lab
      port: 22                      # ours, as are proxy_jump, price_per_hour and resources
      hosts:
        - 10.0.0.1                  # an IP, a DNS name, or an alias of ~/.ssh/config
        - {ip: 10.0.0.2, user: root, price_per_hour: 1.5}
        - {ip: 10.0.0.3, resources: {license: 2}}      # whatever can be counted; a task asks by `accelerators: license`

`password` is what SkyPilot gives to sudo on the host. skylib never becomes root, so it is accepted and forgotten: it is
not kept, sent or shown. It is no SSH password.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from skylib.errors import ConfigError, InvalidSpecError, PoolNotFound
from skylib.models.frozen_map import FrozenMap
from skylib.models.infra import Infra
from skylib.models.node import HostAddress
from skylib.models.spec_errors import check_keys, kind_of, shown, spec_error, within
from skylib.models.units import whole_number
from skylib.models.yaml_source import Document, place_error, read_documents
from skylib.paths import read_small

__all__ = ["Pool", "PoolHost", "parse_pools", "pick_pools", "read_pool_bodies", "read_pools"]

_DEFAULTS = ("user", "identity_file", "password", "port", "proxy_jump", "price_per_hour", "resources")
_RESOURCE = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_TAKEN = frozenset({"cpu", "gpu", "memory", "object_store_memory"})
_POOL_KEYS = (*_DEFAULTS, "hosts")
_HOST_KEYS = ("ip", *_DEFAULTS)
_SSH_PORT = 22


@attrs.frozen(kw_only=True)
class PoolHost:
    """One machine of a pool. name: unique there; the IP or alias, with ":port" when that is not 22."""

    name: str
    address: HostAddress
    price_per_hour: float | None = None
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)


@attrs.frozen(kw_only=True)
class Pool:
    """A pool as its owner wrote it, hosts in that order. line: of its name in the file."""

    name: str
    hosts: tuple[PoolHost, ...]
    line: int = 1

    @property
    def infra(self) -> str:
        return f"ssh/{self.name}"


def read_pools(file: Path) -> dict[str, Pool]:
    """The pools of a file by name, in its order; none when there is no such file.

    Raises ConfigError with file and line for what cannot be meant so.
    """
    text = _file_text(file)
    return {} if text is None else parse_pools(text, file=str(file))


def read_pool_bodies(file: Path) -> dict[str, dict[str, object]] | None:
    """The pools of a file as they were written, by name, but for passwords; None when there is no such file.

    Raises ConfigError as `read_pools`, for what that would refuse.
    """
    text = _file_text(file)
    if text is None:
        return None
    parse_pools(text, file=str(file))
    documents = read_documents(text, file=str(file))
    bodies = documents[0].value if documents else {}
    return {name: _without_passwords(body) for name, body in bodies.items()}  # type: ignore[attr-defined]


def _without_passwords(body: Mapping[str, object]) -> dict[str, object]:
    hosts = [
        {key: value for key, value in host.items() if key != "password"} if isinstance(host, Mapping) else host
        for host in body["hosts"]  # type: ignore[attr-defined]
    ]
    return {**{key: value for key, value in body.items() if key != "password"}, "hosts": hosts}


def _file_text(file: Path) -> str | None:
    content = read_small(file)
    try:
        return None if content is None else content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text", file=str(file)) from None


def parse_pools(text: str, *, file: str) -> dict[str, Pool]:
    """The same from text. `file` is for messages."""
    try:
        documents = read_documents(text, file=file)
        if len(documents) > 1:
            line = documents[1].line_of(())
            raise place_error(spec_error("a pool file is one YAML document, here begins another"), file=file, line=line)
        return _pools(documents[0]) if documents else {}
    except InvalidSpecError as error:
        facts = {name: getattr(error, name, None) for name in ("file", "line", "hint")}
        raise ConfigError(error.message, key=getattr(error, "field", None), **facts) from None


def pick_pools(pools: Mapping[str, Pool], infra: Infra | None, *, file: Path) -> tuple[Pool, ...]:
    """The pools that an infra means: one for `ssh/lab`, all for `ssh` or None.

    Raises PoolNotFound with `known`, `file` and the nearest name; for `ssh` when there is no pool at all.
    """
    wanted = infra.pool if infra is not None else None
    if wanted is not None and wanted in pools:
        return (pools[wanted],)
    if wanted is None and (pools or infra is None):
        return tuple(pools.values())
    facts = {"pool": wanted, "known": tuple(pools), "file": str(file)}
    what = f"no SSH node pool {wanted!r}" if wanted is not None else "no SSH node pool"
    if not pools:
        state = "has no pools" if file.exists() else "does not exist"
        raise PoolNotFound(f"{what}: {file} {state}", hint=f"name your hosts in {file}", **facts)
    near = difflib.get_close_matches(str(wanted), pools, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "pools there: " + ", ".join(pools)
    raise PoolNotFound(f"{what} in {file}", hint=hint, **facts)


def _pools(document: Document) -> dict[str, Pool]:
    try:
        if not isinstance(document.value, Mapping):
            raise spec_error(f"expected a map of pools, got {kind_of(document.value)}")
        found = {}
        for name, body in document.value.items():
            with within(name):
                found[name] = _pool(name, body, line=document.line_of((name,)))
        return found
    except InvalidSpecError as error:
        line = document.line_of(getattr(error, "path", ()))
        raise place_error(error, file=document.file, line=line) from None


def _pool(name: str, body: object, *, line: int) -> Pool:
    if not name or name != name.strip() or name == "*" or not name.isprintable():
        raise spec_error("a pool's name is text without blanks around it")
    if not isinstance(body, Mapping):
        raise spec_error(f"expected a map with hosts, got {kind_of(body)}")
    check_keys(body, _POOL_KEYS)
    defaults = _settings(body)
    listed = body.get("hosts")
    if not isinstance(listed, list) or not listed:
        found = "an empty one" if listed == [] else kind_of(listed)
        raise spec_error(f"expected a list of hosts, got {found}", "hosts")
    hosts: dict[str, PoolHost] = {}
    for index, entry in enumerate(listed):
        with within("hosts", index):
            host = _host(entry, defaults)
            if host.name in hosts:
                raise spec_error(
                    f"{host.name} is in this pool already",
                    hint="a host serves one cluster at a time; a second account of it can go into a pool of its own",
                )
            hosts[host.name] = host
    return Pool(name=name, hosts=tuple(hosts.values()), line=line)


def _host(entry: object, defaults: Mapping[str, object]) -> PoolHost:
    settings = dict(defaults)
    if isinstance(entry, Mapping):
        check_keys(entry, _HOST_KEYS)
        settings.update(_settings(entry))
        entry = entry.get("ip")
        if entry is None:
            raise spec_error("expected ip: the host's IP, name or alias")
    if not isinstance(entry, str) or not entry or any(letter.isspace() for letter in entry):
        raise spec_error(f"expected a host's IP, name or alias, got {shown(entry)}", hint="put it in quotes")
    if entry.startswith("-") or "@" in entry or "/" in entry:
        raise spec_error(f"expected a host's IP, name or alias, got {shown(entry)}", hint="user and port have own keys")
    price = settings.pop("price_per_hour", None)
    custom = settings.pop("resources", FrozenMap())
    address = HostAddress(kind="ssh", host=entry, **settings)  # type: ignore[arg-type]
    port = address.port if address.port not in (None, _SSH_PORT) else None
    bracketed = f"[{entry}]" if ":" in entry else entry
    return PoolHost(
        name=entry if port is None else f"{bracketed}:{port}",
        address=address,
        price_per_hour=price,  # type: ignore[arg-type]
        custom=custom,  # type: ignore[arg-type]
    )


def _settings(body: Mapping[str, object]) -> dict[str, object]:
    """The keys that a pool and a host share, checked, as HostAddress and PoolHost name them; null is not there."""
    found: dict[str, object] = {}
    for key in _DEFAULTS:
        value = body.get(key)
        if value is None:
            continue
        with within(key):
            if key == "port":
                found[key] = whole_number(value, least=1, most=65535)
            elif key == "price_per_hour":
                found[key] = _price(value)
            elif key == "resources":
                found[key] = _resources(value)
            elif key == "password":
                if isinstance(value, (Mapping, list)):
                    raise spec_error(f"expected text, got {kind_of(value)}")
            else:
                found[key] = _text(value)
                if key == "identity_file":
                    found[key] = _identity_file(_text(value))
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise spec_error(f"expected text, got {shown(value)}")
    return value


def _identity_file(text: str) -> str:
    """As it was written: `~` is whoever connects, which may be another account's client that shares the state."""
    if not os.path.isabs(os.path.expanduser(text)):
        raise spec_error(f"expected an absolute path or one that begins with ~, got {shown(text)}")
    return text


def _resources(value: object) -> FrozenMap[str, float]:
    """Names that `accelerators` can ask for, each with a whole number."""
    if not isinstance(value, Mapping):
        raise spec_error(f"expected a map of names to counts, got {kind_of(value)}")
    found: dict[str, float] = {}
    for name, count in value.items():
        with within(str(name)):
            if not isinstance(name, str) or not _RESOURCE.fullmatch(name) or name.startswith("skylib_rank_"):
                raise spec_error(f"expected a resource's name, got {shown(name)}", hint="letters, digits, '.', '_', '-'")
            if name.lower() in _TAKEN:
                raise spec_error(f"{name} is counted by itself")
            if name.lower() in map(str.lower, found):
                raise spec_error(f"{name} stands twice: capitals make no difference")
            found[name] = float(whole_number(count, least=1))
    return FrozenMap(found)


def _price(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise spec_error(f"expected dollars an hour, got {shown(value)}")
    return float(value)
