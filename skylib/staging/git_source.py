"""A workdir that is a git repository: its commit, cloned once on this machine and kept for the next launch.

Tokens go to git by its environment alone: never on a command line, into the clone's configuration, an error or an event.
Source: git-config(1) (GIT_CONFIG_COUNT, credential.<url>.helper), gitcredentials(7); SkyPilot's GIT_TOKEN and
GIT_SSH_KEY_PATH. SSH host keys are checked, as known_hosts has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import attrs

from skylib.errors import InvalidSpecError, StagingError
from skylib.events import EventSink, span
from skylib.models.task_parts import GitWorkdir
from skylib.staging.shelf import NAME_LENGTH, Hold, Shelf, Use, boot_id, bytes_below

__all__ = ["GitAccess", "GitRemote", "checked_out", "parse_remote"]

_TIMEOUT_S = 900.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PART_OF_COMMIT = re.compile(r"[0-9a-f]{7,63}")
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+):(?P<path>[^/:].*|/.+)", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HELPER = '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$SKYLIB_GIT_USER" "$SKYLIB_GIT_TOKEN"; }; f'
_FORMS = "https://host/path, ssh://user@host/path, user@host:path or file:///path"


@attrs.frozen(kw_only=True)
class GitAccess:
    """What opens a private repository. token: for http(s) URLs. ssh_key: path of a private key. "" is none."""

    token: str = attrs.field(default="", repr=False)
    ssh_key: str = ""


@attrs.frozen(kw_only=True)
class GitRemote:
    """A repository's URL without what is secret in it; user and password are those that the URL had."""

    url: str
    scheme: str
    host: str = ""
    user: str = ""
    password: str = attrs.field(default="", repr=False)


def parse_remote(url: str) -> GitRemote:
    """Raises InvalidSpecError for what is no URL of a repository; its text is not shown, as it may hold a token."""
    refused = InvalidSpecError("workdir.url: not the URL of a git repository", field="workdir.url", hint=f"write {_FORMS}")
    if not url or url.startswith("-") or any(ord(char) < 33 for char in url):
        raise refused
    if "://" not in url:
        scp = _SCP.fullmatch(url)
        if scp is None or "::" in url:
            raise refused
        return GitRemote(url=url, scheme="ssh", host=scp["host"])
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise refused from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https", "ssh", "file") or (scheme != "file" and not host) or host.startswith("-"):
        raise refused
    if scheme == "file":
        return GitRemote(url=url, scheme=scheme)
    shown = f"[{host}]" if ":" in host else host
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    login = f"{quote(user)}@" if scheme == "ssh" and user else ""
    return GitRemote(
        url=f"{scheme}://{login}{shown}{port}{parts.path}", scheme=scheme, host=host, user=user, password=password
    )


@contextlib.contextmanager
def checked_out(workdir: GitWorkdir, access: GitAccess, shelf: Shelf, *, hold: Hold, events: EventSink) -> Iterator[Path]:
    """The repository's tree at its ref, which nothing changes or removes for the length of the `with` block.

    hold: takes a lock by its scope. Emits `files.git` (url, ref, commit, cached). Raises InvalidSpecError for a URL or ref
    that cannot be, StagingError (path: the URL, without secrets; host; hint) when it cannot be fetched.
    """
    remote = parse_remote(workdir.url)
    ref = workdir.ref or "HEAD"
    if not ref.strip() or ref.startswith("-") or any(ord(char) < 33 or char in "~^:?*[\\" for char in ref):
        raise InvalidSpecError(f"workdir.ref: {ref!r} is no branch, tag or commit", field="workdir.ref")
    git = _Git(remote, access)
    with span(events, "files.git", url=remote.url, ref=ref) as step:
        commit = git.commit_of(ref)
        use = shelf.use(_name(remote, commit)) if commit else None
        step.note(cached=use is not None)
        if use is None:
            with hold(f"staging-source:{_name(remote, ref)[:2]}"):
                use = shelf.use(_name(remote, commit)) if commit else None
                if use is None:
                    use, commit = _clone(git, ref, commit, shelf)
        step.note(commit=commit)
    try:
        yield use.tree
    finally:
        use.release()


def _name(remote: GitRemote, commit: str) -> str:
    return hashlib.sha256(f"git\0{remote.url}\0{commit}\0{boot_id()}".encode()).hexdigest()[:NAME_LENGTH]


def _clone(git: _Git, ref: str, commit: str, shelf: Shelf) -> tuple[Use, str]:
    use = shelf.begin()
    try:
        commit = git.clone(use.tree, ref, commit)
        source = f"git {git.remote.url}"
        name = _name(git.remote, commit)
        return shelf.finish(use, name, source=source, boot=boot_id(), bytes=bytes_below(use.tree)), commit
    except BaseException:
        shelf.drop(use)
        raise


class _Git:
    """Runs git against one remote."""

    def __init__(self, remote: GitRemote, access: GitAccess) -> None:
        self.remote = remote
        self._token = _token_for(remote, access)
        self._environment = _environment(remote, access, self._token)

    def commit_of(self, ref: str) -> str:
        """The commit that a branch or tag is at, or that the ref itself is; "" for what may be the start of a commit."""
        if _COMMIT.fullmatch(ref):
            return ref
        listed = self._run("ls-remote", "--", self.remote.url, ref, f"{ref}^{{}}")
        found = {name: commit for commit, _tab, name in (line.partition("\t") for line in listed.splitlines())}
        for name in (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", ref):
            if name in found:
                return found[name]
        if _PART_OF_COMMIT.fullmatch(ref):
            return ""
        raise self._unknown(ref)

    def clone(self, tree: Path, ref: str, commit: str) -> str:
        """Fill `tree` with a shallow clone, of a commit that cannot be asked for with all of it; the commit."""
        self._run("init", "-q", "--", str(tree))
        inside = ("-C", str(tree))
        if not commit or not self._fetched(inside, commit):
            specs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            self._run(*inside, "fetch", "-q", "--", self.remote.url, *specs)
            try:
                commit = self._run(*inside, "rev-parse", "--verify", "-q", f"{commit or ref}^{{commit}}").strip()
            except StagingError:
                raise self._unknown(ref) from None
        self._run(*inside, "checkout", "-q", "--detach", commit)
        return commit

    def _fetched(self, inside: Sequence[str], commit: str) -> bool:
        """Whether the server gave this commit alone; some give only what a branch or tag is at."""
        try:
            self._run(*inside, "fetch", "-q", "--depth=1", "--no-tags", "--", self.remote.url, commit)
        except StagingError as error:
            if not re.search("not our ref|unadvertised object", str(error)):
                raise
            return False
        return True

    def _run(self, *argv: str) -> str:
        try:
            done = subprocess.run(
                ["git", *argv],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            raise self._error("git is not installed here", "install git, or clone it and name the directory") from None
        except subprocess.TimeoutExpired:
            raise self._error(f"git did not end within {_TIMEOUT_S:.0f} s", "look at the server") from None
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip()[-2000:]
            for secret in filter(None, (self._token, quote(self._token), self.remote.password)):
                said = said.replace(secret, "<redacted>")
            raise self._error(said or f"git ended with {done.returncode}", _hint(said, self.remote))
        return done.stdout.decode("utf-8", "replace")

    def _error(self, message: str, hint: str) -> StagingError:
        return StagingError(
            f"workdir: {self.remote.url}: {message}", path=self.remote.url, host=self.remote.host or None, hint=hint
        )

    def _unknown(self, ref: str) -> StagingError:
        return self._error(f"it has no branch, tag or commit {ref}", "look at workdir.ref; was it pushed?")


def _token_for(remote: GitRemote, access: GitAccess) -> str:
    """A token of the environment goes over TLS, or to this machine, only; what the URL had goes where the URL says."""
    if remote.scheme not in ("http", "https"):
        return ""
    if remote.password or remote.user:
        return remote.password or remote.user
    return access.token if remote.scheme == "https" or remote.host in _LOOPBACK else ""


def _environment(remote: GitRemote, access: GitAccess, token: str) -> dict[str, str]:
    kept = (
        "GIT_SSH_COMMAND",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "GIT_EXEC_PATH",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_NOSYSTEM",
    )
    found = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in kept}
    found.update(LC_ALL="C", GIT_TERMINAL_PROMPT="0", GIT_ASKPASS="true", GIT_ALLOW_PROTOCOL="http:https:ssh:file")
    found["SSH_ASKPASS"] = "true"
    settings = [("http.lowSpeedLimit", "1"), ("http.lowSpeedTime", "60"), ("core.hooksPath", os.devnull)]
    if token:
        scope = "/".join(remote.url.split("/", 3)[:3])
        settings += [("credential.helper", ""), (f"credential.{scope}.helper", ""), (f"credential.{scope}.helper", _HELPER)]
        named = remote.user if remote.password else ""
        found.update(SKYLIB_GIT_USER=named or "x-access-token", SKYLIB_GIT_TOKEN=token)
    found["GIT_CONFIG_COUNT"] = str(len(settings))
    for index, (key, value) in enumerate(settings):
        found[f"GIT_CONFIG_KEY_{index}"], found[f"GIT_CONFIG_VALUE_{index}"] = key, value
    if remote.scheme == "ssh":
        found["GIT_SSH_COMMAND"] = _ssh_command(found, access)
    return found


def _ssh_command(environment: Mapping[str, str], access: GitAccess) -> str:
    """The person's own ssh command, when there is one, and what it does not say."""
    command = environment.get("GIT_SSH_COMMAND") or "ssh"
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"]
    if access.ssh_key:
        key = Path(access.ssh_key).expanduser()
        try:
            open_to_others = key.stat().st_mode & 0o077
        except OSError as error:
            raise StagingError(f"GIT_SSH_KEY_PATH: {key}: {error.strerror}", path=str(key), hint="name a key") from error
        if open_to_others:
            raise StagingError(f"GIT_SSH_KEY_PATH: others may read {key}", path=str(key), hint=f"chmod 600 {key}")
        options += ["-o", "IdentitiesOnly=yes", "-i", str(key)]
    return f"{command} {shlex.join(options)}"


def _hint(said: str, remote: GitRemote) -> str:
    if re.search("Host key verification failed|host key is known", said):
        return f"put the host key of {remote.host} into ~/.ssh/known_hosts, from a source that you trust"
    if re.search(r"Permission denied|publickey", said):
        return "set GIT_SSH_KEY_PATH to a private key that may read the repository"
    if re.search(r"Authentication failed|could not read (?:Username|Password)|error: 40[13]", said):
        return "set GIT_TOKEN to a token that may read the repository (it is sent over https only)"
    if re.search(r"Could not resolve|Failed to connect|Couldn't connect|refused|reset by peer|timed out|No route", said):
        return f"{remote.host} does not answer from here"
    return "look at workdir.url; a private repository needs GIT_TOKEN or GIT_SSH_KEY_PATH"
