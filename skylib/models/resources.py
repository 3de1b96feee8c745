"""Resources: what each node of a task needs, in SkyPilot's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from skylib.models.accelerators import Accelerator, Accelerators, parse_accelerators
from skylib.models.autostop import Autostop, JobRecovery, parse_autostop, parse_job_recovery
from skylib.models.converters import (
    any_text,
    boolean,
    choice,
    frozen_records,
    frozen_tree,
    optional_text,
    text,
    text_map,
)
from skylib.models.frozen_map import FrozenMap, thaw
from skylib.models.infra import Infra
from skylib.models.spec_errors import check_keys, kind_of, place_errors, shown, spec_error, within
from skylib.models.units import (
    Amount,
    PortRange,
    parse_amount,
    parse_disk_gb,
    parse_memory,
    parse_ports,
    positive_number,
    whole_number,
)

__all__ = ["Resources"]

_CHOICES = ("any_of", "ordered")
_PLACES = ("cloud", "region", "zone")
_ACCELERATOR_ARGS = dict.fromkeys(("runtime_version", "tpu_name", "tpu_vm", "gcp_queued_resource"))
_VOLUME = dict.fromkeys(("disk_size", "disk_tier", "path", "auto_delete", "storage_type", "name", "attach_mode"))

AmountLike = Amount | float | int | str
PortLike = PortRange | int | str


def _infra(value: Infra | str | None) -> Infra | None:
    infra = Infra() if value is None else Infra.parse(str(value) if isinstance(value, Infra) else value)
    return None if infra.is_any else infra


def _cpus(value: AmountLike | None) -> Amount | None:
    return None if value is None else parse_amount(value)


def _memory(value: AmountLike | None) -> Amount | None:
    return None if value is None else parse_memory(value)


def _accelerators(
    value: Accelerators | Accelerator | str | Mapping[str, float | None] | Iterable[str | Accelerator] | None,
) -> Accelerators | None:
    return parse_accelerators(value)


def _accelerator_args(value: Mapping[str, object] | None) -> FrozenMap[str, object]:
    return FrozenMap() if value is None else frozen_tree(value, _ACCELERATOR_ARGS)


def _use_spot(value: bool | None) -> bool:
    return False if value is None else boolean(value)


def _disk_size(value: int | str | None) -> int | None:
    return None if value is None else parse_disk_gb(value)


def _disk_tier(value: str | None) -> str | None:
    return None if value is None else choice(value, ("low", "medium", "high", "ultra", "best"))


def _network_tier(value: str | None) -> str | None:
    return None if value is None else choice(value, ("standard", "best"))


def _cost(value: float | None) -> float | None:
    return None if value is None else positive_number(value)


def _image_id(value: str | Mapping[str, str] | None) -> str | FrozenMap[str, str] | None:
    if value is None or isinstance(value, str):
        return optional_text(value)
    return text_map(value, text, kind="an image's name or a map of region to image")


def _ports(value: PortLike | Iterable[PortLike] | None) -> tuple[PortRange, ...]:
    return parse_ports(value)


def _labels(value: Mapping[str, str] | None) -> FrozenMap[str, str]:
    return text_map(value, any_text, kind="a map of text to text")


def _job_recovery(value: JobRecovery | str | Mapping[str, object] | None) -> JobRecovery | None:
    return parse_job_recovery(value)


def _autostop(value: Autostop | bool | int | str | Mapping[str, object] | None) -> Autostop | None:
    return parse_autostop(value)


def _priority(value: int | None) -> int | None:
    return None if value is None else whole_number(value, least=-1000, most=1000)


def _volumes(value: Iterable[Mapping[str, object]] | None) -> tuple[FrozenMap[str, object], ...]:
    return frozen_records(value, _VOLUME)


class _Merged(tuple["Resources", ...]):
    """Alternatives that already hold what the base says; attrs.evolve hands them back to __init__ as they are."""

    __slots__ = ()


def _alternatives(value: Iterable[Resources | Mapping[str, object]] | None) -> tuple[Resources, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise spec_error(f"expected a list of resources, got {kind_of(value)}")
    return value if isinstance(value, _Merged) else tuple(value)  # merged in __attrs_post_init__


@attrs.frozen(kw_only=True, repr=False, field_transformer=place_errors)
class Resources:
    """What one node must have. None, an empty map or an empty tuple: whatever there is.

    Every argument takes the forms that the YAML takes ("4+", "16GB", "A100:8", ...); a wrong one raises
    InvalidSpecError with `field`. memory counts GiB, disk_size whole GiB, max_hourly_cost dollars a node.

    any_of and ordered (one of them at most) hold alternatives, each merged with the other fields: labels are added up,
    other fields replace. A map gives exactly the fields it names; a Resources gives those that differ from the default.
    attrs.evolve changes the base alone, `override` the alternatives as well.
    """

    infra: Infra | None = attrs.field(default=None, converter=_infra)
    cpus: Amount | None = attrs.field(default=None, converter=_cpus)
    memory: Amount | None = attrs.field(default=None, converter=_memory)
    accelerators: Accelerators | None = attrs.field(default=None, converter=_accelerators)
    accelerator_args: FrozenMap[str, object] = attrs.field(factory=FrozenMap, converter=_accelerator_args)
    instance_type: str | None = attrs.field(default=None, converter=optional_text)
    use_spot: bool = attrs.field(default=False, converter=_use_spot)
    disk_size: int | None = attrs.field(default=None, converter=_disk_size)
    disk_tier: str | None = attrs.field(default=None, converter=_disk_tier)
    network_tier: str | None = attrs.field(default=None, converter=_network_tier)
    local_disk: str | None = attrs.field(default=None, converter=optional_text)
    max_hourly_cost: float | None = attrs.field(default=None, converter=_cost)
    image_id: str | FrozenMap[str, str] | None = attrs.field(default=None, converter=_image_id)
    ports: tuple[PortRange, ...] = attrs.field(default=(), converter=_ports)
    labels: FrozenMap[str, str] = attrs.field(factory=FrozenMap, converter=_labels)
    job_recovery: JobRecovery | None = attrs.field(default=None, converter=_job_recovery)
    autostop: Autostop | None = attrs.field(default=None, converter=_autostop)
    priority: int | None = attrs.field(default=None, converter=_priority)
    priority_class: str | None = attrs.field(default=None, converter=optional_text)
    volumes: tuple[FrozenMap[str, object], ...] = attrs.field(default=(), converter=_volumes)
    any_of: tuple[Resources, ...] = attrs.field(default=(), converter=_alternatives)
    ordered: tuple[Resources, ...] = attrs.field(default=(), converter=_alternatives)

    def __attrs_post_init__(self) -> None:
        if self.any_of and self.ordered:
            raise spec_error("any_of and ordered exclude each other", "ordered")
        for name in _CHOICES:
            entries = getattr(self, name)
            if entries:
                base = attrs.evolve(self, any_of=(), ordered=())
                join = _relabelled if isinstance(entries, _Merged) else _merged
                found = []
                for index, entry in enumerate(entries):
                    with within(name, index):
                        found.append(join(base, entry))
                object.__setattr__(self, name, _Merged(found))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> Resources:
        """From the `resources:` map of a task YAML: the fields by name, `gpus`, and `cloud`, `region`, `zone`."""
        return cls(**_fields_of(mapping))

    @property
    def accelerator(self) -> Accelerator | None:
        """The one accelerator of a candidate; None when it needs none. InvalidSpecError when there is a choice."""
        if self.accelerators is None:
            return None
        if len(self.accelerators.options) > 1:
            raise spec_error("there is a choice of accelerators: ask each of candidates()", "accelerators")
        return self.accelerators.options[0]

    @property
    def is_ordered(self) -> bool:
        """Whether the order of candidates() is the user's preference; otherwise the cheapest comes first."""
        own = not self.any_of and self.accelerators is not None and self.accelerators.ordered
        return bool(self.ordered) or own

    def candidates(self) -> tuple[Resources, ...]:
        """Each way to satisfy this, in order: one infra and one accelerator at most in each, without alternatives."""
        if self.any_of or self.ordered:
            return tuple(each for entry in self.any_of or self.ordered for each in entry.candidates())
        if self.accelerators is None or len(self.accelerators.options) == 1:
            return (self,)
        return tuple(attrs.evolve(self, accelerators=option) for option in self.accelerators.options)

    def override(self, **changes: Any) -> Resources:
        """A copy with these fields changed here and in every alternative."""
        base = attrs.evolve(self, any_of=(), ordered=(), **changes)
        for name in _CHOICES:
            entries = _Merged(attrs.evolve(entry, **changes) for entry in getattr(self, name))
            base = attrs.evolve(base, **{name: entries}) if entries else base  # type: ignore[arg-type]
        return base

    def to_plain(self) -> dict[str, object]:
        """The YAML form, defaults left out; from_mapping reads it back as an equal value."""
        plain = _difference(self, _DEFAULTS)
        for name in _CHOICES:
            entries = getattr(self, name)
            if entries:
                plain[name] = [_difference(entry, self) for entry in entries]
        return plain

    def __repr__(self) -> str:
        return f"Resources({', '.join(f'{name}={value!r}' for name, value in self.to_plain().items())})"


_DEFAULTS = Resources()
_FIELDS = tuple(field.name for field in attrs.fields(Resources) if field.name not in _CHOICES)
_KEYS = (*_FIELDS, *_CHOICES, "gpus", *_PLACES)


def _relabelled(base: Resources, entry: Resources) -> Resources:
    return attrs.evolve(entry, labels={**base.labels, **entry.labels})


def _merged(base: Resources, entry: object) -> Resources:
    """`base` with one alternative laid over it."""
    if isinstance(entry, Resources):
        if entry.any_of or entry.ordered:
            raise spec_error("alternatives inside an alternative")
        changes = {name: getattr(entry, name) for name in _FIELDS if getattr(entry, name) != getattr(_DEFAULTS, name)}
    elif isinstance(entry, Mapping):
        for key in _CHOICES:
            if entry.get(key) is not None:
                raise spec_error("alternatives inside an alternative", key)
        changes = _fields_of(entry, base=base.infra)
    else:
        raise spec_error(f"expected a map of resources, got {shown(entry)}")
    with within("labels"):
        changes["labels"] = {**base.labels, **_labels(changes.get("labels"))}
    return attrs.evolve(base, **changes)


def _fields_of(mapping: object, base: Infra | None = None) -> dict[str, Any]:
    """Arguments for Resources from a YAML map: keys checked, older keys and aliases turned into today's."""
    if not isinstance(mapping, Mapping):
        raise spec_error(f"expected a map, got {kind_of(mapping)}")
    for key in mapping:
        if isinstance(key, str) and key.startswith("_"):
            raise spec_error("written by SkyPilot for its own use", key, hint="remove it")
    check_keys(mapping, _KEYS)
    fields = dict(mapping)
    if "gpus" in fields:
        if fields.get("accelerators") is not None:
            raise spec_error("gpus is another name for accelerators: give one of them", "gpus")
        with within("gpus"):
            fields["accelerators"] = _accelerators(fields.pop("gpus"))
    places = {name: fields.pop(name) for name in _PLACES if fields.get(name) is not None}
    for name in _PLACES:
        fields.pop(name, None)
    if places:
        if fields.get("infra") is not None:
            raise spec_error(f"infra and {next(iter(places))} exclude each other", "infra")
        fields["infra"] = _infra_of(places, base or Infra())
    return fields


def _infra_of(places: Mapping[str, object], base: Infra) -> Infra:
    """The infra that the older keys cloud, region and zone mean, laid over the base's."""
    parts = attrs.asdict(base)
    for name, value in places.items():
        with within(name):
            part = text(value).strip()
            if name == "cloud":
                parts[name] = Infra.parse(part).cloud
            else:
                parts[name] = None if part == "*" else part
            if name != "region" and "/" in part:
                raise spec_error(f"expected a {name}'s name, got {shown(value)}")
    infra = Infra(**parts)
    with within(next(reversed(list(places)))):
        if Infra.parse(str(infra)) != infra:
            raise spec_error(f"{infra} names no place")
    return infra


def _difference(resources: Resources, base: Resources) -> dict[str, object]:
    """The fields in which `resources` is not like `base`, in the YAML form."""
    values = ((name, getattr(resources, name), getattr(base, name)) for name in _FIELDS)
    return {name: _plain(name, value) for name, value, other in values if value != other}


def _plain(name: str, value: Any) -> object:
    if name == "infra":
        return str(value or Infra())
    if isinstance(value, Amount):
        exact = not value.at_least and not value.ratio
        return (int(value.value) if value.value.is_integer() else value.value) if exact else str(value)
    if isinstance(value, Accelerators):
        texts = [str(option) for option in value.options]
        return texts[0] if len(texts) == 1 else texts if value.ordered else dict.fromkeys(texts)
    if isinstance(value, (Autostop, JobRecovery)):
        return value.to_plain()
    if name == "ports":
        return [int(str(each)) if each.first == each.last else str(each) for each in value]
    return thaw(value)
