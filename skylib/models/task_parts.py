"""The structured values inside a task: git workdir, storage mount, managed secret; and its sections' keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from skylib.models.converters import boolean, choice, frozen_tree, optional_text, path_text, text
from skylib.models.frozen_map import FrozenMap, thaw
from skylib.models.spec_errors import check_keys, kind_of, place_errors, shown, spec_error, within

__all__ = [
    "SERVICE_KEYS",
    "GitWorkdir",
    "ManagedSecret",
    "StorageMount",
    "is_bucket_url",
    "is_url",
    "mask_login",
    "parse_managed_secrets",
    "parse_mount",
    "parse_volume",
    "parse_workdir",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLAIN_URL = re.compile(r"(?:https?|file)://", re.IGNORECASE)
_AZURE_URL = re.compile(r"https?://[^/]+\.blob\.core\.windows\.net(?:[/:]|$)", re.IGNORECASE)
_LOGIN = re.compile(r"(https?://)[^/?#\s]+@", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)?[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_REFERENCE = "secrets:"
_MOUNT_CACHED_KEYS = dict.fromkeys(
    (
        "transfers",
        "buffer_size",
        "vfs_cache_max_size",
        "vfs_cache_max_age",
        "vfs_read_ahead",
        "vfs_read_chunk_size",
        "vfs_read_chunk_streams",
        "vfs_write_back",
        "read_only",
    )
)
_STORAGE_CONFIG: Mapping[str, object] = {
    **dict.fromkeys(("disk_size", "disk_tier", "storage_type", "attach_mode")),
    "mount_cached": _MOUNT_CACHED_KEYS,
    "mount": dict.fromkeys(("read_only", "hf_mount_args")),
}
_PROBE_KEYS = dict.fromkeys(
    (
        "path",
        "initial_delay_seconds",
        "timeout_seconds",
        "endpoint_probe_interval_seconds",
        "consecutive_failure_threshold_timeout",
        "post_data",
        "headers",
    )
)
_POOL_KEYS = dict.fromkeys(
    (
        "workers",
        "min_workers",
        "max_workers",
        "queue_length_threshold",
        "upscale_delay_seconds",
        "downscale_delay_seconds",
    )
)
_REPLICA_KEYS = dict.fromkeys(
    (
        "min_replicas",
        "max_replicas",
        "num_overprovision",
        "target_qps_per_replica",
        "dynamic_ondemand_fallback",
        "base_ondemand_fallback_replicas",
        "spot_placer",
        "upscale_delay_seconds",
        "downscale_delay_seconds",
    )
)
SERVICE_KEYS: Mapping[str, object] = {
    "readiness_probe": _PROBE_KEYS,
    "load_balancer": dict.fromkeys(("stream_timeout_seconds",)),
    "pool": _POOL_KEYS,
    "replica_policy": _REPLICA_KEYS,
    "tls": dict.fromkeys(("keyfile", "certfile")),
    **dict.fromkeys(("ports", "replicas", "load_balancing_policy")),
    **_POOL_KEYS,
}


def is_url(source: str) -> bool:
    """Whether a mount's source is a bucket or other URL and no local path."""
    return _URL.match(source) is not None


def is_bucket_url(source: str) -> bool:
    """Whether it is in some store, and neither a file here nor a plain file of the web.

    Source: SkyPilot's stores: a scheme each, but for Azure's, whose URLs are those of the web.
    """
    return is_url(source) and (_PLAIN_URL.match(source) is None or _AZURE_URL.match(source) is not None)


def mask_login(shown: str) -> str:
    """`shown` with the user and password of each web URL in it replaced."""
    return _LOGIN.sub(r"\1<redacted>@", shown)


@attrs.frozen(kw_only=True, field_transformer=place_errors)
class GitWorkdir:
    """A repository to be cloned as the workdir. ref: branch, tag or commit; None is the default branch."""

    url: str = attrs.field(converter=text, repr=lambda url: repr(mask_login(url)))
    ref: str | None = attrs.field(default=None, converter=optional_text)

    def to_plain(self) -> dict[str, object]:
        return {"url": self.url} if self.ref is None else {"url": self.url, "ref": self.ref}


def _source(value: str | Iterable[str] | None) -> str | tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        return path_text(value)
    if not value:
        raise spec_error("expected at least one path or URL")
    found = []
    for index, item in enumerate(value):
        with within(index):
            found.append(path_text(item))
    return tuple(found)


def _mode(value: str | None) -> str | None:
    return None if value is None else choice(value, ("mount", "copy", "mount_cached")).upper()


def _storage_config(value: Mapping[str, object] | None) -> FrozenMap[str, object]:
    return FrozenMap() if value is None else frozen_tree(value, _STORAGE_CONFIG)


def _persistent(value: bool | None) -> bool:
    return True if value is None else boolean(value)


@attrs.frozen(kw_only=True, field_transformer=place_errors)
class StorageMount:
    """A bucket or volume to be mounted or copied, as the map under a destination says. mode: in capitals."""

    name: str | None = attrs.field(default=None, converter=optional_text)
    source: str | tuple[str, ...] | None = attrs.field(default=None, converter=_source)
    store: str | None = attrs.field(default=None, converter=optional_text)
    mode: str | None = attrs.field(default=None, converter=_mode)
    persistent: bool = attrs.field(default=True, converter=_persistent)
    type: str | None = attrs.field(default=None, converter=optional_text)
    mount_options: str | None = attrs.field(default=None, converter=optional_text)
    config: FrozenMap[str, object] = attrs.field(factory=FrozenMap, converter=_storage_config)

    def to_plain(self) -> dict[str, object]:
        plain = {field.name: thaw(getattr(self, field.name)) for field in attrs.fields(StorageMount)}
        return {name: value for name, value in plain.items() if value not in (None, {}) and (name, value) != _PERSISTENT}


_PERSISTENT = ("persistent", True)
_STORAGE_KEYS = tuple(field.name for field in attrs.fields(StorageMount))


@attrs.frozen(kw_only=True)
class ManagedSecret:
    """A secret that a server keeps. name: `[scope.]NAME`. mount_path: a file for it; None means a variable."""

    name: str
    mount_path: str | None = None

    def to_plain(self) -> object:
        return self.name if self.mount_path is None else {self.name: {"mount_path": self.mount_path}}


def parse_workdir(value: object) -> str | GitWorkdir | None:
    """None, a directory, or {url, ref}."""
    if value is None or isinstance(value, GitWorkdir):
        return value
    if isinstance(value, Mapping):
        check_keys(value, ("url", "ref"))
        if value.get("url") is None:
            raise spec_error("a git workdir needs a url")
        return GitWorkdir(**value)
    return path_text(value)


def parse_mount(value: object) -> str | StorageMount:
    """The source of one file mount: a local path, a URL, or a storage map."""
    if isinstance(value, StorageMount):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and key.startswith("_"):
                raise spec_error("written by SkyPilot for its own use", key, hint="remove it")
        check_keys(value, _STORAGE_KEYS)
        return StorageMount(**value)
    return path_text(value)


def parse_volume(value: object) -> str | FrozenMap[str, object]:
    """A volume's name, or a map that describes it."""
    if isinstance(value, Mapping):
        return frozen_tree(value, dict.fromkeys(value))
    if not isinstance(value, str):
        raise spec_error(f"expected a volume's name or a map, got {shown(value)}")
    return text(value)


def parse_managed_secrets(value: object) -> tuple[ManagedSecret, ...]:
    """A list of `[scope.]NAME`, `secrets:[scope.]NAME` or {NAME: {mount_path: ...}}; each name once, in order."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise spec_error(f"expected a list of names, got {kind_of(value)}")
    found: dict[str, ManagedSecret] = {}
    for index, item in enumerate(value):
        with within(index):
            secret = _managed_secret(item)
            if secret.name in found:
                raise spec_error(f"{secret.name} stands twice")
            found[secret.name] = secret
    return tuple(found.values())


def _managed_secret(item: object) -> ManagedSecret:
    if isinstance(item, ManagedSecret):
        item = item.to_plain()
    mount_path = None
    if isinstance(item, Mapping):
        if len(item) != 1:
            raise spec_error("expected one name in each map")
        item, settings = next(iter(item.items()))
        with within(str(item)):
            if not isinstance(settings, Mapping):
                raise spec_error(f"expected a map with mount_path, got {kind_of(settings)}")
            check_keys(settings, ("mount_path",))
            with within("mount_path"):
                mount_path = optional_text(settings.get("mount_path"))
    name = item.removeprefix(_REFERENCE) if isinstance(item, str) else item
    if not isinstance(name, str) or not _SECRET_NAME.fullmatch(name):
        raise spec_error("expected a secret's name, with or without `scope.`")
    return ManagedSecret(name=name, mount_path=mount_path)
