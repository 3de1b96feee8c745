"""Accelerators: what a driver calls a device, and what a task may call it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.catalog.accelerators import accelerator_matches, accelerator_name, device_memory_gb, manufacturer
from skylib.models.accelerators import Accelerator
from skylib.models.node import Gpu

NAMES = [
    ("NVIDIA A100-SXM4-80GB", 80.0, "A100-80GB"),
    ("NVIDIA A100 80GB PCIe", 80.0, "A100-80GB"),
    ("NVIDIA A100-SXM4-40GB", 40.0, "A100"),
    ("A100-PCIE-40GB", 39.4, "A100"),
    ("NVIDIA A100-SXM-64GB", 64.0, "A100"),
    ("NVIDIA H100 80GB HBM3", 79.6, "H100"),
    ("NVIDIA H100 NVL", 93.6, "H100"),
    ("NVIDIA H200", 140.4, "H200"),
    ("NVIDIA GH200 480GB", 95.6, "GH200"),
    ("NVIDIA B200", 179.1, "B200"),
    ("NVIDIA L4", 22.5, "L4"),
    ("NVIDIA L40", 44.9, "L40"),
    ("NVIDIA L40S", 44.9, "L40S"),
    ("NVIDIA A10", 22.5, "A10"),
    ("NVIDIA A10G", 22.5, "A10G"),
    ("NVIDIA A40", 44.9, "A40"),
    ("Tesla V100-SXM2-16GB", 16.0, "V100"),
    ("Tesla V100-SXM2-32GB", 32.0, "V100-32GB"),
    ("Tesla V100S-PCIE-32GB", 32.0, "V100-32GB"),
    ("Tesla V100-DGXS", 31.7, "V100-32GB"),
    ("Tesla T4", 14.8, "T4"),
    ("NVIDIA T4G", 14.8, "T4g"),
    ("Tesla P100-PCIE-16GB", 16.0, "P100"),
    ("Tesla K80", 11.2, "K80"),
    ("Tesla M60", 7.9, "M60"),
    ("NVIDIA GeForce RTX 3090", 24.0, "RTX3090"),
    ("NVIDIA GeForce RTX 3090 Ti", 24.0, "RTX3090-Ti"),
    ("NVIDIA GeForce RTX 4080 SUPER", 16.0, "RTX4080-SUPER"),
    ("GeForce GTX 1080 Ti", 10.9, "GTX1080-Ti"),
    ("NVIDIA RTX A6000", 48.0, "RTXA6000"),
    ("NVIDIA RTX 6000 Ada Generation", 48.0, "RTX6000-Ada"),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 95.6, "RTXPRO6000"),
    ("Some Unheard-of (R) Chip", 1.0, "Some-Unheard-of-Chip"),
]


@pytest.mark.parametrize(("reported", "memory_gib", "name"), NAMES)
def test_reported_names_become_catalog_names(reported: str, memory_gib: float, name: str) -> None:
    """A driver's product name is told in the catalogs' words; an unknown one keeps its own."""
    assert accelerator_name(reported, memory_gib) == name


@given(st.text(min_size=1), st.floats(0, 2000))
def test_any_name_has_an_answer(reported: str, memory_gib: float) -> None:
    """No device name is refused or loses its name."""
    assert accelerator_name(reported, memory_gib)


@pytest.mark.parametrize(
    ("memory_gib", "gigabytes"),
    [(81559 / 1024, 80), (40536 / 1024, 40), (23034 / 1024, 24), (15360 / 1024, 16), (46068 / 1024, 48), (1000.0, 1000)],
)
def test_memory_is_the_size_that_was_sold(memory_gib: float, gigabytes: int) -> None:
    """What a driver reports is a little off the size on the box."""
    assert device_memory_gb(memory_gib) == gigabytes


def gpu(name: str, memory_gib: float) -> Gpu:
    return Gpu(index=0, name=name, memory_gib=memory_gib)


@pytest.mark.parametrize(
    ("asked", "device", "matches"),
    [
        ("A100-80GB", gpu("NVIDIA A100-SXM4-80GB", 80.0), True),
        ("a100-80gb", gpu("NVIDIA A100-SXM4-80GB", 80.0), True),
        ("A100", gpu("NVIDIA A100-SXM4-80GB", 80.0), False),
        ("A100", gpu("NVIDIA A100-SXM4-40GB", 40.0), True),
        ("A10", gpu("NVIDIA A100-SXM4-40GB", 40.0), False),
        ("H100-80GB", gpu("NVIDIA H100 80GB HBM3", 79.6), True),
        ("A6000", gpu("NVIDIA RTX A6000", 48.0), True),
        ("NVIDIA-RTX-A6000", gpu("NVIDIA RTX A6000", 48.0), True),
        ("80GB", gpu("NVIDIA H100 80GB HBM3", 79.6), True),
        ("80GB+", gpu("NVIDIA H200", 140.4), True),
        ("80GB", gpu("NVIDIA H200", 140.4), False),
        ("80GB+", gpu("NVIDIA A100-SXM4-40GB", 40.0), False),
        ("nvidia:24GB+", gpu("NVIDIA L4", 22.5), True),
        ("amd:24GB+", gpu("NVIDIA L4", 22.5), False),
    ],
)
def test_devices_are_matched_by_name_or_memory(asked: str, device: Gpu, matches: bool) -> None:
    """A request matches the device it names, of the size it names, whatever its case."""
    assert accelerator_matches(Accelerator.parse(asked), device) is matches


def test_makers_are_known_by_name() -> None:
    """A device is NVIDIA's unless its name says otherwise."""
    assert [manufacturer(name) for name in ("Tesla T4", "AMD Instinct MI300X")] == ["nvidia", "amd"]
