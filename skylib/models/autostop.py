"""What happens to a cluster that has nothing to do, and to a job that failed."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from skylib.models.converters import any_text, boolean
from skylib.models.spec_errors import check_keys, place_errors, shown, spec_error, within
from skylib.models.units import parse_idle_minutes, whole_number

__all__ = [
    "MAX_HOOK",
    "WAIT_FOR",
    "Autostop",
    "JobRecovery",
    "parse_autostop",
    "parse_hook",
    "parse_job_recovery",
    "parse_wait_for",
]

WAIT_FOR = ("jobs_and_ssh", "jobs", "none")
MAX_HOOK = 16 * 1024
_AUTOSTOP_KEYS = ("idle_minutes", "down", "wait_for", "hook", "hook_timeout")
_RECOVERY_KEYS = ("strategy", "max_restarts_on_errors", "recover_on_exit_codes")


def parse_wait_for(value: object) -> str:
    """What keeps a cluster awake; None is the first of WAIT_FOR. Raises InvalidSpecError."""
    chosen = WAIT_FOR[0] if value is None else value.lower() if isinstance(value, str) else value
    if not isinstance(chosen, str) or chosen not in WAIT_FOR:
        raise spec_error(f"expected one of {', '.join(WAIT_FOR)}, got {shown(value)}")
    return chosen


def parse_hook(value: object) -> str | None:
    """A script, None for none. Raises InvalidSpecError when it is longer than MAX_HOOK, as SkyPilot does."""
    text = None if value is None else any_text(value)
    if text is not None and len(text.encode("utf-8", "surrogateescape")) > MAX_HOOK:
        raise spec_error(f"a hook has at most {MAX_HOOK} bytes, not {len(text)}")
    return text if text and text.strip() else None


def _optional_text(value: str | None) -> str | None:
    return None if value is None else any_text(value)


def _optional_timeout(value: int | None) -> int | None:
    return None if value is None else whole_number(value, least=1)


@attrs.frozen(kw_only=True, field_transformer=place_errors)
class Autostop:
    """Stop (or with `down`, take down) the cluster after `idle_minutes` (1 or more) without what `wait_for` names.

    enabled is False for an explicit `autostop: false`, which is not the same as saying nothing: it also overrules
    `launch(down=True)`. wait_for: "jobs_and_ssh", "jobs" or "none". hook: a script that runs on the head before, for
    hook_timeout seconds at most (by default an hour).
    """

    idle_minutes: int = attrs.field(default=1, converter=parse_idle_minutes)
    down: bool = attrs.field(default=False, converter=boolean)
    wait_for: str = attrs.field(default="jobs_and_ssh", converter=parse_wait_for)
    enabled: bool = attrs.field(default=True, converter=boolean)
    hook: str | None = attrs.field(default=None, converter=parse_hook)
    hook_timeout: int | None = attrs.field(default=None, converter=_optional_timeout)

    def to_plain(self) -> object:
        """The YAML form; parse_autostop reads it back."""
        if not self.enabled:
            return False
        plain: dict[str, object] = {"idle_minutes": self.idle_minutes}
        for field in attrs.fields(Autostop):
            value = getattr(self, field.name)
            if field.name not in ("idle_minutes", "enabled") and value != field.default:
                plain[field.name] = value
        return plain


def parse_autostop(value: object) -> Autostop | None:
    """None, a boolean, minutes (a negative number disables), "30m", "2h", "1d", "1w", or a map."""
    if value is None or (isinstance(value, Autostop) and value.enabled):
        return value
    if value is False or isinstance(value, Autostop):
        return Autostop(enabled=False)
    if value is True:
        return Autostop()
    if isinstance(value, Mapping):
        check_keys(value, _AUTOSTOP_KEYS)
        return Autostop(**{key: inner for key, inner in value.items() if inner is not None})
    if isinstance(value, int) and value < 0:
        return Autostop(enabled=False)
    return Autostop(idle_minutes=parse_idle_minutes(value))


def _strategy(value: str | None) -> str | None:
    text = _optional_text(value)
    return None if text is None else text.upper()


def _restarts(value: int) -> int:
    return whole_number(value, least=0)


def _exit_codes(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    codes = list(value) if isinstance(value, (list, tuple)) else [value]
    found = []
    for index, code in enumerate(codes):
        with within(index):
            found.append(whole_number(code, least=0, most=255))
    return tuple(sorted(set(found)))


@attrs.frozen(kw_only=True, field_transformer=place_errors)
class JobRecovery:
    """What a managed job does after a failure. strategy: in capitals, "NONE" for none, None for the default."""

    strategy: str | None = attrs.field(default=None, converter=_strategy)
    max_restarts_on_errors: int = attrs.field(default=0, converter=_restarts)
    recover_on_exit_codes: tuple[int, ...] = attrs.field(default=(), converter=_exit_codes)

    def to_plain(self) -> object:
        """The YAML form; parse_job_recovery reads it back."""
        plain: dict[str, object] = {}
        if self.strategy is not None:
            plain["strategy"] = self.strategy
        if self.max_restarts_on_errors:
            plain["max_restarts_on_errors"] = self.max_restarts_on_errors
        if self.recover_on_exit_codes:
            plain["recover_on_exit_codes"] = list(self.recover_on_exit_codes)
        return plain


def parse_job_recovery(value: object) -> JobRecovery | None:
    """None, a strategy's name, or a map; InvalidSpecError else."""
    if value is None or isinstance(value, JobRecovery):
        return value
    if isinstance(value, str):
        return JobRecovery(strategy=value)
    if isinstance(value, Mapping):
        check_keys(value, _RECOVERY_KEYS)
        return JobRecovery(**{key: inner for key, inner in value.items() if inner is not None})
    raise spec_error(f"expected a strategy's name or a map, got {shown(value)}")
