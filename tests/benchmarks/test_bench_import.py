"""What `import skylib` costs, over a bare Python and beside the packages that it leaves for later."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

CHECKOUT = Path(__file__).resolve().parents[2]
ROUNDS = 15
LIMIT_S = 0.100
WORK = {
    "bare": "pass",
    "skylib": "import skylib",
    "client": "import skylib; skylib.Client()",
    "task": "import skylib; skylib.Task(run='true', resources=skylib.Resources(infra='local'))",
    "with paramiko": "import skylib, paramiko",
    "with all": "import skylib, paramiko, sqlite_utils, portalocker, yaml",
}


def cpu_seconds(code: str) -> float:
    """User and system seconds of one interpreter that runs the code and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_is_cheap() -> None:
    """`import skylib` costs at most 100 ms of process time over bare Python: medians of rounds that take turns."""
    for code in WORK.values():
        cpu_seconds(code)  # byte code and page cache
    seconds: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(ROUNDS):
        for name, code in WORK.items():
            seconds[name].append(cpu_seconds(code))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    print()
    for name, value in median.items():
        over = value - median["bare"]
        ratio = value / median["bare"]
        print(f"import, {name:14} {value * 1000:6.1f} ms, {over * 1000:6.1f} ms over bare, {ratio:.2f} x bare")
    assert median["skylib"] - median["bare"] <= LIMIT_S
