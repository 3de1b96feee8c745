"""Programs in a Python of their own, as an application that embeds skylib would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

__all__ = ["CHECKOUT", "run_python"]

CHECKOUT = Path(__file__).resolve().parents[2]


def run_python(program: str, *, home: Path, options: tuple[str, ...] = (), timeout_s: float = 60.0) -> Any:
    """Run a program in a new interpreter with that $HOME and no $SKY_HOME; the JSON that it leaves in `answer`.

    What the program or skylib prints fails it, as does an error, with what was seen.
    """
    reply_fd, write_fd = os.pipe()
    code = textwrap.dedent(program) + f"\nimport json, os\nos.write({write_fd}, json.dumps(answer).encode())\n"
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    with os.fdopen(reply_fd, "rb") as reply:
        try:
            done = subprocess.run(
                [sys.executable, *options, "-c", code],
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                pass_fds=(write_fd,),
                check=False,
            )
        finally:
            os.close(write_fd)
        if (done.returncode, done.stdout, done.stderr) != (0, "", ""):
            raise AssertionError(f"exit code {done.returncode}, printed {done.stdout!r}, said:\n{done.stderr}")
        return json.loads(reply.read())
