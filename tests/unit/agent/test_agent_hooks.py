"""A hook whose supervisor does not answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from skylib.agent.hooks import run_hook
from skylib.agent.identity import stat_fields
from tests.ray.agent_harness import NodeFolders


def _zombies() -> set[int]:
    """Children of this process that ended and were not reaped."""
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        fields = stat_fields(pid)
        if fields and int(fields[1]) == os.getpid() and fields[0] == b"Z":
            found.add(pid)
    return found


def test_a_supervisor_that_does_not_answer_is_ended_and_reaped(tmp_path: Path) -> None:
    """The end of the cluster goes on with what went wrong, and no zombie stays for as long as the agent lives."""
    (config,) = NodeFolders(tmp_path, count=1).write()
    bundle = Path(config.bundle_of(config.me))
    bundle.unlink()
    (bundle / "skylib_agent").mkdir(parents=True)
    (bundle / "skylib_agent" / "__init__.py").touch()
    (bundle / "skylib_agent" / "supervisor.py").write_text("import time\n\n\ndef main():\n    time.sleep(600)\n")
    before = _zombies()
    said = asyncio.run(run_hook(config, "stop", "true", 60.0, answer_s=1.0))
    assert (said["code"], said["error"]) == (None, "its supervisor did not answer within 1 s")
    assert _zombies() <= before
