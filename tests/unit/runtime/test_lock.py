"""The shipped lists, and what each Python takes of them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker

from skylib.errors import ConfigError
from skylib.runtime.lock import NEWER_LOCK, RAY_LOCK, UV_LOCK, holds, load_lock, marker_values, parse_lock

PYTHONS = [(3, 8, 18), (3, 9, 2), (3, 10, 12), (3, 11, 7)]
ARCHES = ["x86_64", "aarch64"]
HASH = "--hash=sha256:" + "a" * 64


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("arch", ARCHES)
def test_every_python_gets_one_version_of_each_package(python: tuple[int, int, int], arch: str) -> None:
    """Ray 2.9.3 with a setuptools that still has pkg_resources, and no package twice."""
    lock = load_lock(RAY_LOCK).select(marker_values(python, os="Linux", arch=arch))
    names = [pin.name for pin in lock.pins]
    assert len(names) == len(set(names)) > 40
    assert lock.version("ray") == "2.9.3"
    assert int(lock.version("setuptools").split(".")[0]) < 81
    assert "colorama" not in names


@pytest.mark.parametrize("python", [(3, 12, 3), (3, 13, 0)])
def test_newer_pythons_have_a_newer_ray(python: tuple[int, int, int]) -> None:
    """The second list serves what Ray 2.9.3 cannot."""
    lock = load_lock(NEWER_LOCK).select(marker_values(python, os="Linux", arch="x86_64"))
    assert tuple(int(part) for part in lock.version("ray").split(".")) > (2, 9, 3)


@pytest.mark.parametrize("name", [RAY_LOCK, NEWER_LOCK, UV_LOCK])
def test_the_lists_name_no_host(name: str) -> None:
    """No index and no address: the installer's configuration decides where packages come from."""
    text = (resources.files("skylib.runtime") / "data" / name).read_text()
    assert "://" not in text
    assert not re.search(r"--(extra-)?index|--find-links|@ ", text)
    assert "uv pip compile" in text[:400]


def test_a_rendered_list_reads_back() -> None:
    """Rendering a selection and parsing it gives the same list and digest."""
    lock = load_lock(RAY_LOCK).select(marker_values((3, 11, 7), os="Linux", arch="x86_64"))
    again = parse_lock(lock.render())
    assert [(pin.name, pin.version, pin.hashes) for pin in again.pins] == [
        (pin.name, pin.version, pin.hashes) for pin in lock.pins
    ]
    assert again.digest == lock.digest


@pytest.mark.parametrize(
    "line", ["ray", "ray>=2", "ray==1", f"-e . {HASH}", f"ray @ file:///x {HASH}", "ray==1 --hash=md5:00"]
)
def test_a_line_without_version_or_hash_is_refused(line: str) -> None:
    """Nothing is installed that the list does not pin and hash."""
    with pytest.raises(ConfigError, match="unknown form"):
        parse_lock(f"# comment\n\n{line}\n")


def test_a_package_that_is_not_there_is_told() -> None:
    """Asking for the version of a stranger names it."""
    with pytest.raises(ConfigError, match="has no numpy"):
        load_lock(UV_LOCK).version("numpy")


versions = st.tuples(st.integers(2, 3), st.integers(0, 15), st.integers(0, 20))
numbers = st.builds(lambda v, n: ".".join(str(part) for part in v[:n]), versions, st.integers(2, 3))
comparisons = st.one_of(
    st.builds(
        "{} {} '{}'".format,
        st.sampled_from(["python_full_version", "python_version"]),
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        numbers,
    ),
    st.builds("python_full_version {} '{}.*'".format, st.sampled_from(["==", "!="]), numbers),
    st.builds(
        "{} {} '{}'".format,
        st.sampled_from(["sys_platform", "platform_machine", "implementation_name", "platform_python_implementation"]),
        st.sampled_from(["==", "!="]),
        st.sampled_from(["linux", "win32", "x86_64", "cpython", "CPython", "PyPy"]),
    ),
    st.builds("'{}' {} platform_machine".format, st.sampled_from(["x86", "arm", "64"]), st.sampled_from(["in", "not in"])),
)
markers = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("({})".format, inner),
    ),
    max_leaves=6,
)


@given(markers, versions, st.sampled_from(ARCHES))
def test_markers_mean_what_packaging_says(marker: str, python: tuple[int, int, int], arch: str) -> None:
    """Our reading of a marker is the packaging library's, for any Python."""
    values = marker_values(python, os="Linux", arch=arch)
    assert holds(marker, values) == Marker(marker).evaluate(dict(values))


@given(st.text(max_size=30))
def test_an_unreadable_marker_is_a_config_error(marker: str) -> None:
    """Any text is either a marker or ConfigError, never another exception."""
    try:
        holds(marker, marker_values((3, 11, 7), os="Linux", arch="x86_64"))
    except ConfigError:
        pass


@pytest.mark.parametrize(
    "marker", ["", "python_version", "(sys_platform == 'linux'", "sys_platform < 'z'", "os == 'x'", "a b c d"]
)
def test_broken_markers_are_refused(marker: str) -> None:
    """A marker that is cut, unknown or ordered where there is no order does not count as false."""
    with pytest.raises(ConfigError, match="cannot be read"):
        holds(marker, marker_values((3, 11, 7), os="Linux", arch="x86_64"))


def test_many_threads_read_the_list_at_once() -> None:
    """One thread for each host selects from the list: all get the same, and none fails."""
    values = marker_values((3, 11, 7), os="Linux", arch="x86_64")
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: load_lock(RAY_LOCK).select(values).digest, range(200)))
    assert len(set(found)) == 1
