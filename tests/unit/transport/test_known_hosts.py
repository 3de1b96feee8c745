"""Lines of known_hosts files, and what they say of a key."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from skylib.transport.known_hosts import Verdict, fingerprint, judge, known_name, parse, render

ONE, TWO = b"\0\0\0\x0bssh-ed25519one", b"\0\0\0\x0bssh-ed25519two"
B1, B2 = base64.b64encode(ONE).decode(), base64.b64encode(TWO).decode()


def verdict(text: str, name: str = "gpu", blob: bytes = ONE, kind: str = "ssh-ed25519") -> str:
    judged = judge(parse(text, "f"), name, kind, blob)
    if judged == Verdict():
        return "new"
    return "known" if judged.known else f"against line {judged.against.line}"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "new"),
        (f"gpu ssh-ed25519 {B1}\n", "known"),
        (f"# note\n\nGPU ssh-ed25519 {B1} a comment\n", "known"),
        (f"other,gpu,10.0.0.4 ssh-ed25519 {B1}\n", "known"),
        (f"other ssh-ed25519 {B1}\n", "new"),
        (f"gp* ssh-ed25519 {B1}\n", "known"),
        (f"*,!gpu ssh-ed25519 {B1}\n", "new"),
        (f"gpu ssh-ed25519 {B2}\n", "against line 1"),
        (f"gpu ssh-ed25519 {B2}\ngpu ssh-ed25519 {B1}\n", "known"),
        (f"gpu ssh-rsa {B2}\n", "against line 1"),
        (f"gpu ssh-rsa {B2}\ngpu ssh-ed25519 {B2}\n", "against line 2"),
        (f"gpu ssh-ed25519 {B1}\n@revoked * ssh-ed25519 {B1}\n", "against line 2"),
        (f"@revoked gpu ssh-ed25519 {B2}\n", "new"),
        (f"@cert-authority * ssh-ed25519 {B2}\n", "new"),
        (f"@cert-authority * ssh-ed25519 {B1}\n", "new"),
        (f"@other gpu ssh-ed25519 {B1}\n", "new"),
        ("gpu ssh-ed25519 not-base64!\n", "new"),
        ("gpu ssh-ed25519\n", "new"),
        (f"[gpu]:22 ssh-ed25519 {B1}\n", "new"),
    ],
)
def test_the_record_judges_a_key(text: str, expected: str) -> None:
    """Known, new, or contradicted by a line; markers and patterns as in sshd(8)."""
    assert verdict(text) == expected


def test_other_ports_have_their_own_names() -> None:
    """A host on another port than 22 is another host to known_hosts."""
    assert (known_name("GPU", 22), known_name("GPU", 2222)) == ("gpu", "[gpu]:2222")
    assert verdict(f"[gpu]:2222 ssh-ed25519 {B1}\n", known_name("gpu", 2222)) == "known"


def test_names_hashed_by_ssh_keygen_are_found(tmp_path: Path) -> None:
    """HashKnownHosts: a name is found by its hash."""
    path, key = tmp_path / "known_hosts", tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    blob = base64.b64decode(key.with_suffix(".pub").read_text().split()[1])
    path.write_text(render("gpu", "ssh-ed25519", blob) + render("[gpu]:2222", "ssh-ed25519", blob))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "gpu" not in path.read_text()
    assert verdict(path.read_text(), "gpu", blob) == "known"
    assert verdict(path.read_text(), "[gpu]:2222", blob) == "known"
    assert verdict(path.read_text(), "gpu2", blob) == "new"


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    """SHA256, as ssh-keygen -l shows it."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(key)], check=True, capture_output=True, text=True).stdout
    assert fingerprint(base64.b64decode(key.with_suffix(".pub").read_text().split()[1])) == shown.split()[1]
