"""A real network file system for tests: sshfs that speaks with a server which is a child of the test; no network."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

__all__ = ["sftp_folder"]

SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")


def sftp_folder(folder: Path, *, options: str = "") -> contextlib.ExitStack:
    """`folder`/mounted: `folder`/served through SFTP, a real network file system whose server is a child of this test."""
    if os.geteuid() != 0 or not shutil.which("sshfs") or not SFTP_SERVER.exists() or not Path("/dev/fuse").exists():
        pytest.skip("needs root, sshfs, sftp-server and /dev/fuse")
    mounted, served = folder / "mounted", folder / "served"
    for each in (mounted, served):
        each.mkdir(mode=0o700)
    stack = contextlib.ExitStack()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = subprocess.Popen([SFTP_SERVER], stdin=theirs, stdout=theirs)
        stack.callback(server.wait, 30)
        command = ["sshfs", "-f", "-o", f"passive{options}", f"testhost:{served}", mounted]
        client = subprocess.Popen(command, stdin=ours, stdout=ours)
    stack.callback(client.wait, 30)
    stack.callback(subprocess.run, ["umount", mounted], check=False)
    deadline = time.monotonic() + 30
    while not os.path.ismount(mounted):
        if client.poll() is not None or time.monotonic() > deadline:
            stack.close()
            pytest.skip("sshfs cannot mount here")
        time.sleep(0.02)
    return stack
