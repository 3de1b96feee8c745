"""Task: what to run, with which files and variables, on how many nodes of which kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from skylib.errors import InvalidSpecError
from skylib.models.converters import boolean, env_map, frozen_tree, open_map, optional_text, path_text, script, text_map
from skylib.models.frozen_map import FrozenMap, PlacedMap, map_strings, thaw
from skylib.models.resources import Resources
from skylib.models.secret import Secret, mask, secret_map
from skylib.models.spec_errors import place_errors, shown, spec_error
from skylib.models.task_parts import (
    SERVICE_KEYS,
    GitWorkdir,
    ManagedSecret,
    StorageMount,
    mask_login,
    parse_managed_secrets,
    parse_mount,
    parse_volume,
    parse_workdir,
)
from skylib.models.task_yaml import EnvValue, task_arguments, task_text
from skylib.models.units import positive_number, whole_number

__all__ = ["GitWorkdir", "ManagedSecret", "Secret", "StorageMount", "Task"]

_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-]{1,2}[A-Za-z0-9]+)*", re.ASCII)

PathText = str | os.PathLike[str]


def _name(value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or not _NAME.fullmatch(value)):
        raise spec_error(
            f"{shown(value)} is not a task's name", hint="letters and digits, with one or two of '.', '_', '-' between"
        )
    return value


def _workdir(value: PathText | Mapping[str, str | None] | GitWorkdir | None) -> str | GitWorkdir | None:
    return parse_workdir(value)


def _num_nodes(value: int | None) -> int:
    return 1 if value is None else whole_number(value, least=1)


def _resources(value: Resources | Mapping[str, object] | None) -> Resources:
    if isinstance(value, Resources):
        return value
    return Resources() if value is None else Resources.from_mapping(value)


def _envs(value: Mapping[str, EnvValue] | None) -> FrozenMap[str, str]:
    return env_map(value)


def _secrets(value: Mapping[str, EnvValue | Secret] | None) -> FrozenMap[str, Secret]:
    return secret_map(value)


def _managed_secrets(value: Iterable[str | Mapping[str, object] | ManagedSecret] | None) -> tuple[ManagedSecret, ...]:
    return parse_managed_secrets(value)


def _file_mounts(
    value: Mapping[str, PathText | Mapping[str, object] | StorageMount] | None,
) -> FrozenMap[str, str | StorageMount]:
    return text_map(value, parse_mount, kind="a map of destination to source")


def _volumes(value: Mapping[str, str | Mapping[str, object]] | None) -> FrozenMap[str, str | FrozenMap[str, object]]:
    return text_map(value, parse_volume, kind="a map of path to volume")


def _script(value: str | Iterable[str] | None) -> str | None:
    return script(value)


def _section(value: Mapping[str, object] | None) -> FrozenMap[str, object] | None:
    return None if value is None else frozen_tree(value, SERVICE_KEYS)


def _config(value: Mapping[str, object] | None) -> FrozenMap[str, object]:
    """What is in it is for whoever knows the settings to judge; a file and its lines stay known for that."""
    found = open_map(value)
    return PlacedMap(found, file=value.file, lines=value.lines) if isinstance(value, PlacedMap) else found


def _sizes(value: Mapping[str, float] | None) -> FrozenMap[str, float]:
    found = text_map(value, positive_number, kind="a map of one path to its size in GB")
    if len(found) > 1:
        raise spec_error("expected one path at most")
    return found


def _outputs(value: Mapping[str, float | PathText] | None) -> FrozenMap[str, float | str]:
    """A number is SkyPilot's size of a bucket, a path the directory here that matching files are fetched into."""
    found = text_map(value, _output, kind="a map of pattern to local directory, or of one path to its size in GB")
    if sum(not isinstance(each, str) for each in found.values()) > 1:
        raise spec_error("expected one path with a size at most")
    return found


def _output(value: object) -> float | str:
    return path_text(value) if isinstance(value, (str, os.PathLike)) else positive_number(value)


def _timeout_s(value: float | None) -> float | None:
    return None if value is None else positive_number(value)


def _api_server_access(value: bool | None) -> bool:
    return True if value is None else boolean(value)


@attrs.frozen(kw_only=True, repr=False, field_transformer=place_errors)
class Task:
    """One unit of work. Frozen and hashable; change it with attrs.evolve.

    Arguments take the forms of the YAML; a wrong one raises InvalidSpecError with `field`. setup and run are bash
    scripts (a list of lines is joined). Destinations of file_mounts are on the nodes, sources local paths, URLs or
    storage maps; relative local paths are relative to the caller's current directory when they are used.

    outputs: {pattern on the nodes: directory here}; what matches is fetched when the job has ended, seen by job.wait() or
    the next status(refresh), queue, stop or down. Patterns are as in Cluster.get; the files of the job's rank 0 go
    into the directory itself, those of rank n into `rank-<n>` in it. {path: size in GB} is SkyPilot's hint.
    timeout_s: seconds that the run of one attempt may take, setup and queue not counted; then the job is ended and FAILED.
    config: settings that hold for this task's launch or exec alone, {"provision": {"timeout_s": 1800}}; README's table
    says which; they are checked when the task is launched.
    `$NAME` in workdir, file_mounts, volumes and service is replaced when YAML is read, and only then: Task(...) takes
    its arguments as they are.
    """

    name: str | None = attrs.field(default=None, converter=_name)
    workdir: str | GitWorkdir | None = attrs.field(default=None, converter=_workdir)
    num_nodes: int = attrs.field(default=1, converter=_num_nodes)
    resources: Resources = attrs.field(factory=Resources, converter=_resources)
    envs: FrozenMap[str, str] = attrs.field(factory=FrozenMap, converter=_envs)
    secrets: FrozenMap[str, Secret] = attrs.field(factory=FrozenMap, converter=_secrets)
    managed_secrets: tuple[ManagedSecret, ...] = attrs.field(default=(), converter=_managed_secrets)
    file_mounts: FrozenMap[str, str | StorageMount] = attrs.field(factory=FrozenMap, converter=_file_mounts)
    volumes: FrozenMap[str, str | FrozenMap[str, object]] = attrs.field(factory=FrozenMap, converter=_volumes)
    setup: str | None = attrs.field(default=None, converter=_script)
    run: str | None = attrs.field(default=None, converter=_script)
    service: FrozenMap[str, object] | None = attrs.field(default=None, converter=_section)
    pool: FrozenMap[str, object] | None = attrs.field(default=None, converter=_section)
    config: FrozenMap[str, object] = attrs.field(factory=FrozenMap, converter=_config)
    event_callback: str | None = attrs.field(default=None, converter=optional_text)
    inputs: FrozenMap[str, float] = attrs.field(factory=FrozenMap, converter=_sizes)
    outputs: FrozenMap[str, float | str] = attrs.field(factory=FrozenMap, converter=_outputs)
    api_server_access: bool = attrs.field(default=True, converter=_api_server_access)
    timeout_s: float | None = attrs.field(default=None, converter=_timeout_s)

    def __attrs_post_init__(self) -> None:
        if self.service is not None and self.pool is not None:
            raise spec_error("service and pool exclude each other", "pool")

    @property
    def fetched_outputs(self) -> dict[str, str]:
        """Those outputs that are files to be fetched: pattern -> local directory, as they were given."""
        return {pattern: local for pattern, local in self.outputs.items() if isinstance(local, str)}

    @classmethod
    def from_yaml(
        cls,
        path: PathText,
        *,
        envs: Mapping[str, EnvValue] | None = None,
        secrets: Mapping[str, EnvValue | Secret] | None = None,
    ) -> Task:
        """The task of a YAML file; see from_yaml_str. A file that cannot be read is an InvalidSpecError with `file`."""
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise InvalidSpecError(f"{os.fspath(path)} cannot be read: {cause}", file=os.fspath(path)) from error
        return cls.from_yaml_str(text, envs=envs, secrets=secrets, file=os.fspath(path))

    @classmethod
    def from_yaml_str(
        cls,
        text: str,
        *,
        envs: Mapping[str, EnvValue] | None = None,
        secrets: Mapping[str, EnvValue | Secret] | None = None,
        file: str = "<string>",
    ) -> Task:
        """The one task of a YAML text; envs and secrets come on top of its own.

        Raises InvalidSpecError with file, line, field and, for an unknown key, the nearest valid one in hint.
        """
        with task_arguments(text, file=file, envs=envs, secrets=secrets) as arguments:
            return cls(**arguments)

    def to_yaml(self, *, show_secrets: bool = False) -> str:
        """YAML that reads back as an equal task: as it is with show_secrets, else with `secrets=` given anew.

        Without show_secrets every secret is written as null, and `${NAME}` where its value was put into a path; a path
        with both such a value and a `$NAME` that stood for itself is then not told apart. Otherwise text with a `$NAME`
        that is not to be replaced again is tagged `!verbatim`, which only skylib reads.
        """
        return task_text(self._plain(), self.secrets, show_secrets=show_secrets)

    def _plain(self) -> dict[str, object]:
        """The fields that are not at their default, without secrets, as YAML has them."""
        found: dict[str, object] = {}
        for field in attrs.fields(Task):
            value = getattr(self, field.name)
            if field.name != "secrets" and value != getattr(_DEFAULTS, field.name):
                found[field.name] = _plain_value(value)
        return found

    def __repr__(self) -> str:
        plain: Any = map_strings(self._plain(), lambda text: mask_login(mask(text, self.secrets)))
        if "config" in plain:
            plain["config"] = _without_urls(plain["config"])
        if self.secrets:
            plain["secrets"] = dict(self.secrets)
        return f"Task({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


_DEFAULTS = Task()


def _without_urls(config: Mapping[str, object]) -> Any:
    """No task may set `db`, but who tries has written a password there."""
    shown: Any = map_strings(config, lambda text: "<redacted>" if "://" in text else text)
    return {key: "<redacted>" if key == "db" else value for key, value in shown.items()}


def _plain_value(value: Any) -> object:
    if isinstance(value, (Resources, GitWorkdir, StorageMount, ManagedSecret)):
        return value.to_plain()
    if isinstance(value, Mapping):
        return {key: _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain_value(inner) for inner in value]
    return thaw(value)
