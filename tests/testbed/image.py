"""What a host's file system is: the machine's `/` with this layer on top, which hides what is not a plain Debian's."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import attrs

from tests.testbed.machine import PythonMissing, find_python

__all__ = ["ACCOUNTS", "Account", "HostSpec", "binds", "write_home", "write_image"]

_HERE = Path(__file__).resolve().parent
_STANDARD = frozenset(
    "bin boot dev etc home lib lib32 lib64 libx32 media mnt opt proc root run sbin srv sys tmp usr var".split()
)
# Directories of the machine that a host does not see; they begin empty there.
_EMPTY = {
    "boot": 0o755,
    "etc/profile.d": 0o755,
    "etc/ssh": 0o755,
    "etc/update-motd.d": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "root": 0o700,
    "srv": 0o755,
    "usr/local": 0o755,
    "var/cache": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
_HIDDEN_FILES = ("etc/pip.conf", "etc/environment", "etc/ld.so.preload", "etc/motd")
_SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@attrs.frozen(kw_only=True)
class Account:
    name: str
    uid: int
    home: str


ACCOUNTS = {
    "root": Account(name="root", uid=0, home="/root"),
    "sky": Account(name="sky", uid=1000, home="/home/sky"),
    "other": Account(name="other", uid=1001, home="/home/other"),
}


@attrs.frozen(kw_only=True)
class HostSpec:
    """What one host is to be.

    home_size_mib: size of the tmpfs that is sky's home, in MiB.
    pythons: None for the machine's own /usr/bin/python3, () for none, ("3.13",) for that one from pyenv instead
    (in /opt/python3.13; the first named is `python3`).
    dead_dns: name a nameserver that never answers (12 s a lookup) instead of none (a lookup fails at once).
    """

    name: str
    home_size_mib: int = 4096
    pythons: tuple[str, ...] | None = None
    dead_dns: bool = False


def binds(spec: HostSpec) -> list[tuple[Path, str]]:
    """Directories of the machine to bind read-only, and where in the host; PythonMissing when one is lacking."""
    if spec.pythons is None:
        if not Path("/usr/bin/python3").exists():
            raise PythonMissing("this machine has no /usr/bin/python3 for its hosts to use")
        return []
    return [(find_python(version), f"/opt/python{version}") for version in spec.pythons]


def write_image(upper: Path, spec: HostSpec, *, dead_address: str) -> None:
    """Fills an overlay's upper directory with the host's own files; dead_address: on the host's network, nobody's."""
    upper.chmod(0o755)
    for name in os.listdir("/"):
        if name not in _STANDARD:
            _whiteout(upper / name)
    for name, mode in _EMPTY.items():
        if Path("/", name).is_dir():
            _make_dir(upper / name, mode)
            os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
    for name in _HIDDEN_FILES:
        if Path("/", name).exists():
            _whiteout(upper / name)
    for name in ("bin", "sbin", "lib", "share", "etc"):
        _make_dir(upper / "usr/local" / name)
    _write_accounts(upper)
    _write_system(upper, spec)
    _write(upper / "etc/resolv.conf", f"nameserver {dead_address}\n" if spec.dead_dns else "")
    _write_pythons(upper, spec)


def _write_accounts(upper: Path) -> None:
    ordinary = [account for account in ACCOUNTS.values() if account.uid != 0]
    people = [f"{a.name}:x:{a.uid}:{a.uid}:{a.name}:{a.home}:/bin/bash" for a in ordinary]
    system = [line for line in Path("/etc/passwd").read_text().splitlines() if _is_system(line)]
    groups = [line for line in Path("/etc/group").read_text().splitlines() if _is_system(line)]
    _write(upper / "etc/passwd", "\n".join([*system, *people]) + "\n")
    _write(upper / "etc/group", "\n".join([*groups, *(f"{a.name}:x:{a.uid}:" for a in ordinary)]) + "\n")
    names = [line.partition(":")[0] for line in [*system, *people]]
    _write(upper / "etc/shadow", "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names), mode=0o640)
    for account in ordinary:
        _make_dir(upper / account.home.lstrip("/"), 0o755, owner=account.uid)


def _is_system(line: str) -> bool:
    number = line.split(":")[2]
    return number.isdigit() and (int(number) < 1000 or int(number) == 65534)


def write_home(home: Path, account: Account, authorized_keys: str) -> None:
    """Fills the home of a new account: the machine's /etc/skel and the keys that may log in."""
    for source in Path("/etc/skel").iterdir():
        if source.is_file():
            shutil.copy(source, home / source.name)
            os.chown(home / source.name, account.uid, account.uid)
    _make_dir(home / ".ssh", 0o700, owner=account.uid)
    _write(home / ".ssh/authorized_keys", authorized_keys, mode=0o600, owner=account.uid)
    home.chmod(0o755)
    os.chown(home, account.uid, account.uid)


def _write_system(upper: Path, spec: HostSpec) -> None:
    _write(upper / "etc/hostname", f"{spec.name}\n")
    _write(upper / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {spec.name}\n")
    _write(upper / "etc/ssh/sshd_config", _SSHD_CONFIG)
    for name in ("moduli", "ssh_config"):
        if Path("/etc/ssh", name).exists():
            shutil.copy(Path("/etc/ssh", name), upper / "etc/ssh" / name)
    _write(upper / "usr/sbin/init", (_HERE / "init.sh").read_text(), mode=0o755)


def _write_pythons(upper: Path, spec: HostSpec) -> None:
    if spec.pythons is None:
        return
    for pattern in ("python*", "pypy*"):
        for program in Path("/usr/bin").glob(pattern):
            _whiteout(upper / "usr/bin" / program.name)
    for version in reversed(spec.pythons):
        prefix = f"/opt/python{version}"
        _make_dir(upper / prefix.lstrip("/"))
        for name in ("python3", f"python{version}"):
            link = upper / "usr/local/bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"{prefix}/bin/{name}")
        for library in (find_python(version) / "lib").glob(f"libpython{version}*.so.*"):
            _make_dir(upper / "usr/lib")
            (upper / "usr/lib" / library.name).symlink_to(f"{prefix}/lib/{library.name}")


def _make_dir(path: Path, mode: int = 0o755, *, owner: int = 0) -> None:
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    os.chown(path, owner, owner)


def _write(path: Path, text: str, *, mode: int = 0o644, owner: int = 0) -> None:
    if not path.parent.exists():
        _make_dir(path.parent)
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, owner, owner)


def _whiteout(path: Path) -> None:
    """Makes the overlay show nothing where the machine has this path."""
    if not path.parent.exists():
        _make_dir(path.parent)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
