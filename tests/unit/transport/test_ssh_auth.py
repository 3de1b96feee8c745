"""Key files, as far as they can be looked at without a server."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from skylib.transport.ssh_auth import public_blob


def make_key(path: Path, *options: str) -> bytes:
    subprocess.run(["ssh-keygen", "-q", "-N", "secret", "-f", str(path), *options], check=True)
    return base64.b64decode(path.with_name(f"{path.name}.pub").read_text().split()[1])


@pytest.mark.parametrize("kind", [("ed25519",), ("ecdsa",), ("rsa", "-b", "2048")], ids=lambda kind: kind[0])
def test_public_half_is_read_without_the_passphrase(tmp_path: Path, kind: tuple[str, ...]) -> None:
    """The head of an encrypted OpenSSH key file tells which key of the agent it is."""
    path = tmp_path / "key"
    blob = make_key(path, "-a", "1", "-t", *kind)
    assert public_blob(str(path)) == blob
    path.with_name("key.pub").unlink()
    assert public_blob(str(path)) == blob


@pytest.mark.parametrize("content", ["", "rubbish", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END\n"])
def test_other_files_have_no_public_half(tmp_path: Path, content: str) -> None:
    """What is no key, or one of the old format, tells nothing."""
    path = tmp_path / "key"
    path.write_text(content)
    assert public_blob(str(path)) is None


def test_missing_file_has_no_public_half(tmp_path: Path) -> None:
    """A file that does not exist is no error here."""
    assert public_blob(str(tmp_path / "none")) is None
