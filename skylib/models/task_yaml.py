"""A task's YAML: from text to the arguments of Task, with the place of what is wrong; and from fields to text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from skylib.errors import InvalidSpecError
from skylib.models.converters import env_map, env_name
from skylib.models.frozen_map import FrozenMap, PlacedMap, map_strings
from skylib.models.secret import Secret, mask, secret_map
from skylib.models.spec_errors import Path, check_keys, kind_of, spec_error, within
from skylib.models.substitution import keep, substitute_in
from skylib.models.yaml_source import Document, place_error, read_documents, write_document

__all__ = ["SUBSTITUTED", "TASK_KEYS", "EnvValue", "task_arguments", "task_text"]

EnvValue = str | int | float | bool
TASK_KEYS = (
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "managed_secrets",
    "file_mounts",
    "volumes",
    "setup",
    "run",
    "service",
    "pool",
    "config",
    "event_callback",
    "inputs",
    "outputs",
    "api_server_access",
    "timeout_s",
)
SUBSTITUTED = ("workdir", "file_mounts", "volumes", "service")
_INTERNAL = ("file_mounts_mapping", "volume_mounts")
_REFERENCE = "secrets:"


@contextmanager
def task_arguments(
    text: str, *, file: str, envs: Mapping[str, EnvValue] | None, secrets: Mapping[str, EnvValue | Secret] | None
) -> Iterator[dict[str, Any]]:
    """The arguments of Task that `text` gives, variables put in; for use around the call of Task.

    envs and secrets come on top of the document's own. An InvalidSpecError of this function or of the block gets file
    and line, and no secret's value is left in its message.
    """
    document = _only_task(read_documents(text, file=file), file)
    known: dict[str, Secret] = {}
    try:
        yield _placed_config(_arguments(document.value, envs or {}, secrets or {}, known), document)
    except InvalidSpecError as error:
        if getattr(error, "line", None) is not None:
            raise
        path: Path = getattr(error, "path", ())
        raise place_error(_without_secrets(error, path, known), file=file, line=document.line_of(path)) from None


def task_text(plain: Mapping[str, object], secrets: Mapping[str, Secret], *, show_secrets: bool) -> str:
    """YAML of a task's plain fields, which task_arguments reads back to equal ones.

    `secrets` are written when `show_secrets`; else each is null and its value, where it stands in a field in which
    variables are put in, is written as `${NAME}` again: reading such a text asks for the secrets.
    """
    revealed = {name: secret.reveal() for name, secret in secrets.items()}
    envs: Any = plain.get("envs", {})
    values = {**envs, **revealed}

    def kept(text: str) -> str:
        masked = text if show_secrets else mask(text, secrets, as_name=True)
        return masked if masked != text else keep(text, values)

    found = {key: map_strings(value, kept) if key in SUBSTITUTED else value for key, value in plain.items()}
    if secrets:
        found["secrets"] = revealed if show_secrets else dict.fromkeys(secrets)
    return write_document({key: found[key] for key in TASK_KEYS if key in found})


def _placed_config(arguments: dict[str, Any], document: Document) -> dict[str, Any]:
    """The arguments with a config that knows its lines: what is wrong in it is only found at launch."""
    config = arguments.get("config")
    if not isinstance(config, Mapping):
        return arguments
    lines = {path[1:]: line for path, line in document.lines.items() if path[:1] == ("config",)}
    return {**arguments, "config": PlacedMap(config, file=document.file, lines=lines)}


def _without_secrets(error: InvalidSpecError, path: Path, secrets: Mapping[str, Secret]) -> InvalidSpecError:
    """The error without any secret's value: where variables were put in, the wrong value is left out altogether."""
    tail = ", got " if secrets and path[:1] and path[0] in SUBSTITUTED else None

    def clean(text: str) -> str:
        return mask(text.partition(tail)[0] if tail else text, secrets)

    facts: Any = map_strings(vars(error), clean)
    return InvalidSpecError(facts.pop("message"), **facts)


def _only_task(documents: list[Document], file: str) -> Document:
    """The one task of a stream; a first document with nothing but a name is a header, as in SkyPilot's pipelines."""
    if not documents:
        return Document(value={}, lines={(): 1}, file=file)
    first, *rest = documents
    if rest and isinstance(first.value, dict) and set(first.value) == {"name"}:
        header, (first, *rest) = first.value, rest
        if isinstance(first.value, dict) and "name" not in first.value:
            first = Document(value={**header, **first.value}, lines=first.lines, file=file)
    if rest:
        count = 1 + len(rest)
        raise place_error(
            spec_error(f"{count} tasks in one file: pipelines are not supported", hint="one file for each task"),
            file=file,
            line=rest[0].line_of(()),
        )
    return first


def _arguments(
    value: object, envs: Mapping[str, EnvValue], secrets: Mapping[str, EnvValue | Secret], known: dict[str, Secret]
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise spec_error(f"a task is a map, this is {kind_of(value)}")
    for key in value:
        if key.startswith("_") or key in _INTERNAL:
            raise spec_error("written by SkyPilot for its own use", key, hint="remove it")
    check_keys(value, TASK_KEYS)
    fields = {key: inner for key, inner in value.items() if inner is not None}
    with within("envs"):
        fields["envs"] = _variables(fields.get("envs"), envs, "envs")
    with within("secrets"):
        own, managed = _split_secrets(fields.get("secrets"))
        fields["secrets"] = secret_map(_with_values({**own, **secrets}, "secrets"))
        known.update(fields["secrets"])
    if managed:
        with within("managed_secrets"):
            fields["managed_secrets"] = [*managed, *_listed(fields.get("managed_secrets"))]
    values = {**fields["envs"], **{name: secret.reveal() for name, secret in known.items()}}
    for key in SUBSTITUTED:
        if key in fields:
            with within(key):
                fields[key] = substitute_in(fields[key], values)
    return fields


def _variables(own: object, more: Mapping[str, EnvValue], source: str) -> FrozenMap[str, str]:
    if own is not None and not isinstance(own, Mapping):
        raise spec_error(f"expected a map of variables, got {kind_of(own)}")
    return env_map(_with_values({**(own or {}), **more}, source))


def _with_values(found: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    for name, value in found.items():
        if value is None:
            with within(name):
                env_name(name)
            hint = f'give one in the file or with {source}={{"{name}": ...}}; "" is an empty one'
            raise spec_error(f"{name} has no value", name, hint=hint)
    return found


def _split_secrets(own: object) -> tuple[dict[str, Any], list[str]]:
    """Secrets with a value of their own, and references to ones that a server keeps ("secrets:[scope.]NAME")."""
    if own is None:
        return {}, []
    if isinstance(own, list):
        for index, item in enumerate(own):
            if not isinstance(item, str) or not item.startswith(_REFERENCE):
                raise spec_error("expected a reference such as secrets:NAME", index)
        return {}, own
    if not isinstance(own, Mapping):
        raise spec_error(f"expected a map of variables, got {kind_of(own)}")
    managed = [name for name, value in own.items() if value is None and name.startswith(_REFERENCE)]
    return {name: value for name, value in own.items() if name not in managed}, managed


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise spec_error(f"expected a list of names, got {kind_of(value)}")
    return list(value)
