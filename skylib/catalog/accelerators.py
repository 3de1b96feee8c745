"""Names of accelerators: what drivers report, in the names that SkyPilot's catalogs and tasks use.

Source: product names of `nvidia-smi` (drivers 470 to 570) and the AcceleratorName column of the catalogs.
"""

from __future__ import annotations

import re

from skylib.models.accelerators import Accelerator
from skylib.models.node import Gpu

__all__ = ["accelerator_matches", "accelerator_name", "device_memory_gb", "manufacturer"]

_NOISE = re.compile(r"\b(NVIDIA|GeForce|Tesla|Quadro|Graphics|Device)\b", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)\s*(?:GB|G)\b", re.IGNORECASE)
# The first that is found in the cleaned name counts, so longer names stand before those that they contain.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"\bGB300\b", "GB300"),
        (r"\bGB200\b", "GB200"),
        (r"\bB300\b", "B300"),
        (r"\bB200\b", "B200"),
        (r"\bB100\b", "B100"),
        (r"\bGH200\b", "GH200"),
        (r"\bH200\b", "H200"),
        (r"\bH100\b", "H100"),
        (r"\bH20\b", "H20"),
        (r"\bH800\b", "H800"),
        (r"\bA800\b", "A800"),
        (r"\bA100\b", "A100"),
        (r"\bA10G\b", "A10G"),
        (r"\bA(2|10|16|30|40)\b", r"A\1"),
        (r"\bL(4|20|40S|40)\b", r"L\1"),
        (r"\bV100S?\b", "V100"),
        (r"\bP(4|40|100)\b", r"P\1"),
        (r"\bT4G\b", "T4g"),
        (r"\bT4\b", "T4"),
        (r"\bM60\b", "M60"),
        (r"\bK80\b", "K80"),
        (r"\bRTX PRO (\d{4})\b.*\bBlackwell\b.*", r"RTXPRO\1"),
        (r"\bRTX (\d{4}) Ada\b.*", r"RTX\1-Ada"),
        (r"\bRTX A(\d{4})\b", r"RTXA\1"),
        (r"\b(RTX|GTX) (\d{3,4}) ?Ti\b", r"\1\2-Ti"),
        (r"\b(RTX|GTX) (\d{3,4}) SUPER\b", r"\1\2-SUPER"),
        (r"\b(RTX|GTX) (\d{3,4})\b", r"\1\2"),
    )
)
_SOLD_GB = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64),
    *(80, 94, 96, 120, 128, 141, 144, 180, 192, 256, 268, 288),
)
_WITH_MEMORY = {("A100", 80): "A100-80GB", ("A800", 80): "A800-80GB", ("V100", 32): "V100-32GB"}


def accelerator_name(reported: str, memory_gib: float = 0.0) -> str:
    """SkyPilot's name of a device as its driver reports it: "NVIDIA A100-SXM4-80GB" is "A100-80GB".

    memory_gib decides between sizes that the name does not tell (V100, 16 or 32 GB); 0 when unknown. A name that is in
    no table keeps its words, joined by "-".
    """
    cleaned = " ".join(_NOISE.sub(" ", reported.replace("(R)", " ")).replace("-", " ").split())
    for pattern, name in _NAMES:
        match = pattern.search(cleaned)
        if match is None:
            continue
        found = match.expand(name)
        size = _DIGITS.search(cleaned)
        memory_gb = int(size[1]) if size else device_memory_gb(memory_gib)
        return _WITH_MEMORY.get((found, memory_gb), found)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", cleaned).strip("-") or reported


def device_memory_gb(memory_gib: float) -> int:
    """The size that a device is sold with: drivers keep some of it for themselves (81559 MiB of an 80 GB H100)."""
    nearest = min(_SOLD_GB, key=lambda size: (abs(size - memory_gib), size))
    return nearest if abs(nearest - memory_gib) <= 0.07 * nearest else round(memory_gib)


def manufacturer(reported: str) -> str:
    """Who made it, in lower case. Devices are found by nvidia-smi alone, so far."""
    return "amd" if re.search(r"\b(AMD|Instinct|Radeon|MI\d{2,3}X?)\b", reported, re.IGNORECASE) else "nvidia"


def accelerator_matches(wanted: Accelerator, device: Gpu) -> bool:
    """Whether a device is of the model, or has the memory, that is asked for; the count is not looked at.

    Names compare without case. A name with a size is met by a device of that size ("H100-80GB" by an H100), one without
    a size by the edition that the catalogs call so: "A100" has 40 GB, "A100-80GB" is another model.
    """
    if wanted.name is not None:
        return wanted.name.lower() in _names(device)
    if wanted.manufacturer is not None and wanted.manufacturer != manufacturer(device.name):
        return False
    return wanted.memory is not None and wanted.memory.admits(device_memory_gb(device.memory_gib))


def _names(device: Gpu) -> set[str]:
    """What a device may be asked for as, in lower case."""
    name = accelerator_name(device.name, device.memory_gib)
    reported = re.sub(r"\s+", "-", device.name.strip())
    names = {name, reported, f"{name}-{device_memory_gb(device.memory_gib)}GB"}
    if name.startswith("RTXA"):
        names.add(name.removeprefix("RTX"))
    return {each.lower() for each in names}
