"""Which providers there are: our own, plug-ins (entry point group `skylib.providers`), and those given by hand."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, entry_points

from skylib.errors import ConfigError, SkyError
from skylib.models.infra import Infra
from skylib.models.offer import Refusal, Survey
from skylib.models.receipts import InfraStatus
from skylib.models.resources import Resources
from skylib.providers.base import Provider, ProviderContext
from skylib.providers.local import LocalProvider
from skylib.providers.ssh_pool import SshPoolProvider

__all__ = ["GROUP", "Registry"]

GROUP = "skylib.providers"
_log = logging.getLogger("skylib.providers")
_OWN: tuple[type[LocalProvider] | type[SshPoolProvider], ...] = (SshPoolProvider, LocalProvider)


class Registry:
    """Our own providers, then plug-ins, then `extra`, which may replace any. Plug-ins are loaded here, so make one late.

    providers: by name. broken: plug-ins that could not be loaded, by name, each with the error that says why.
    plug_ins: the entry points to load; by default those of every installed package.
    """

    def __init__(
        self, extra: Mapping[str, Provider] | None = None, *, plug_ins: Iterable[EntryPoint] | None = None
    ) -> None:
        providers: dict[str, Provider] = {kind.name: kind() for kind in _OWN}
        broken: dict[str, ConfigError] = {}
        own = {f"{kind.__module__}:{kind.__qualname__}" for kind in _OWN}
        for point in entry_points(group=GROUP) if plug_ins is None else plug_ins:
            if point.value in own:
                continue
            try:
                providers[point.name] = _load(point, taken=providers)
            except ConfigError as error:
                if point.name not in providers:
                    broken[point.name] = error
                else:
                    _log.warning("%s", error)
        providers.update(extra or {})
        self.providers: Mapping[str, Provider] = providers
        self.broken: Mapping[str, ConfigError] = {name: error for name, error in broken.items() if name not in providers}

    def all(self) -> tuple[Provider, ...]:
        """In order of preference, then of name."""
        return tuple(sorted(self.providers.values(), key=lambda provider: (provider.preference, provider.name)))

    def of(self, infra: Infra | str | None) -> tuple[Provider, ...]:
        """Those that an infra means: one when it names a cloud, else all. "ssh/lab", Infra and None are understood.

        Without a place, own SSH hosts come before this machine, which is taken only when they do not do.
        Raises ConfigError for a cloud that nobody serves (with the nearest name), or whose plug-in is broken.
        """
        place = Infra.parse(infra) if isinstance(infra, str) else infra
        cloud = place.cloud if place is not None else None
        if cloud is None:
            return self.all()
        if cloud in self.providers:
            return (self.providers[cloud],)
        if cloud in self.broken:
            raise self.broken[cloud]
        known = sorted(self.providers)
        near = difflib.get_close_matches(cloud, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"no provider serves infra {str(place)!r}", key=cloud, known=tuple(known), hint=hint)

    def survey(self, want: Resources, num_nodes: int, context: ProviderContext) -> Survey:
        """What all providers that the candidates mean have found, asked at once, in order of preference.

        Raises what Provider.survey and `of` raise. Broken plug-ins that were not asked for by name become refusals.
        """
        candidates = want.candidates()
        asked = {each.name: each for candidate in candidates for each in self.of(candidate.infra)}
        providers = [each for each in self.all() if each.name in asked]
        with ThreadPoolExecutor(max_workers=max(1, len(providers)), thread_name_prefix="skylib-survey") as pool:
            found = list(pool.map(lambda provider: provider.survey(want, num_nodes, context), providers))
        anywhere = any(candidate.infra is None or candidate.infra.cloud is None for candidate in candidates)
        broken = self.broken.items() if anywhere else ()
        return Survey(
            offers=tuple(offer for survey in found for offer in survey.offers),
            refusals=(
                *(refusal for survey in found for refusal in survey.refusals),
                *(Refusal(infra=name, host="", reason=error.message, cause=error) for name, error in broken),
            ),
        )

    def check(self, context: ProviderContext) -> tuple[InfraStatus, ...]:
        """Each infra there is, usable or not and why; a provider's own error makes one line of it."""
        found: list[InfraStatus] = []
        for provider in self.all():
            try:
                found += provider.check(context)
            except SkyError as error:
                found.append(InfraStatus(infra=provider.name, usable=False, reason=error.message))
        found += [InfraStatus(infra=name, usable=False, reason=error.message) for name, error in self.broken.items()]
        return tuple(found)


def _load(point: EntryPoint, *, taken: Mapping[str, Provider]) -> Provider:
    origin = f"{point.value}, of {point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    if point.name in taken:
        raise ConfigError(f"provider plug-in {point.name!r} ({origin}) has a name that is taken", key=point.name)
    try:
        made = point.load()()
    except Exception as error:  # whatever a plug-in's own code raises: the boundary to code that is not ours
        raise ConfigError(
            f"provider plug-in {point.name!r} ({origin}) cannot be loaded: {type(error).__name__}: {error}",
            key=point.name,
            hint="repair or remove that package",
        ) from error
    lacking = [part for part in ("name", "preference", "survey", "check") if not hasattr(made, part)]
    if lacking:
        raise ConfigError(f"provider plug-in {point.name!r} ({origin}) is none: it lacks {', '.join(lacking)}")
    if made.name != point.name:
        raise ConfigError(f"provider plug-in {point.name!r} ({origin}) calls itself {made.name!r}", key=point.name)
    provider: Provider = made
    return provider
