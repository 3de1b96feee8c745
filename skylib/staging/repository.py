"""What git would take for a repository, and what its configuration says of ignored files; read without git.

Source: gitrepository-layout(5), git-config(1), gitignore(5), git-worktree(1). Compared with git itself in
tests/property/test_staging_ignore.py.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator

import attrs

from skylib.errors import StagingError
from skylib.staging.ignore import PatternList, parse_patterns

__all__ = ["GitSettings", "Repository", "git_settings", "parse_config", "repository_above", "repository_at"]

_DEEPEST_INCLUDE = 10
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b", '"': '"', "\\": "\\"}
_HEADER = re.compile(r'\s*\[\s*([A-Za-z0-9.-]+)\s*(?:"((?:[^"\\\n]|\\.)*)")?\s*\]')
_NAME = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9-]*)[ \t]*")
_TRUE = ("true", "yes", "on")
_Settings = list[tuple[str, str | None]]


@attrs.frozen(kw_only=True)
class Repository:
    """top: its work tree. git_dir: its own data; common_dir: what its work trees share (the same without `git worktree`)."""

    top: str
    git_dir: str
    common_dir: str


@attrs.frozen(kw_only=True)
class GitSettings:
    """excludes_file: path of the user's own patterns, "" for none. ignore_case: capital letters are small ones."""

    excludes_file: str
    ignore_case: bool = False


def repository_at(folder: str) -> Repository | None:
    """The repository whose work tree `folder` is the top of; None when it is none."""
    place = f"{folder}/.git"
    if os.path.isfile(place):
        place = _pointed_to(place)
    return _repository(folder, place) if place else None


def repository_above(folder: str) -> Repository | None:
    """The repository that `folder` (absolute) is in; None as well inside of a bare one or of a `.git`."""
    top = folder
    while True:
        found = repository_at(top)
        if found is not None:
            return found
        if os.path.isfile(f"{top}/.git") or _repository(top, top) is not None:
            return None  # git stops at a link to a repository that is gone, and at a bare one
        parent = os.path.dirname(top)
        if parent == top:
            return None
        top = parent


def git_settings(repository: Repository | None, folder: str) -> GitSettings:
    """What the configuration of system, user, repository and environment says, later ones over earlier ones.

    folder: relative paths in it start there when there is no repository.
    """
    default = f"{os.environ.get('XDG_CONFIG_HOME') or os.path.expanduser('~/.config')}/git/ignore"
    chosen, ignore_case = default, False
    for name, value in _all_settings(repository):
        if name == "core.excludesfile" and value is not None:
            chosen = _expanded(value)
        elif name == "core.ignorecase":
            ignore_case = _is_true(value)
    top = repository.top if repository is not None else folder
    return GitSettings(excludes_file=os.path.join(top, chosen) if chosen else "", ignore_case=ignore_case)


def parse_config(text: str) -> _Settings:
    """The settings of a git configuration file, in order: "section.name" or "section.Subsection.name" and its value.

    None: a name without "=". Reading ends at what git would refuse.
    """
    found: _Settings = []
    section = ""
    position = 0
    while position < len(text):
        skipped = re.compile(r"[ \t\r\n\ufeff]*(?:[#;][^\n]*)?").match(text, position)
        if skipped is not None and skipped.end() > position:
            position = skipped.end()
            continue
        header = _HEADER.match(text, position)
        if header is not None:
            section = header[1].lower()
            if header[2] is not None:
                section += "." + re.sub(r"\\(.)", r"\1", header[2])
            position = header.end()
            continue
        name = _NAME.match(text, position)
        if name is None:
            return found
        position = name.end()
        value: str | None = None
        if text[position : position + 1] == "=":
            value, position = _value(text, position + 1)
        found.append((f"{section}.{name[1].lower()}".lstrip("."), value))
    return found


def _value(text: str, position: int) -> tuple[str, int]:
    """A value up to the end of its line, unquoted, and where the next line begins."""
    out: list[str] = []
    kept = 0  # spaces outside of quotes count only before something else
    quoted = False
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\n":
            break
        if char == "\r" and text[position : position + 1] == "\n":
            continue
        if char == "\\":
            following = text[position : position + 1]
            position += 1
            if following == "\r" and text[position : position + 1] == "\n":
                position += 1
                continue
            if following != "\n":
                out.append(_ESCAPES.get(following, following))
                kept = len(out)
        elif char == '"':
            quoted = not quoted
            kept = len(out)
        elif char in "#;" and not quoted:
            end = text.find("\n", position)
            position = end + 1 if end >= 0 else len(text)
            break
        elif char in " \t" and not quoted:
            if out:
                out.append(char)
        else:
            out.append(char)
            kept = len(out)
    return "".join(out[:kept]), position


def _pointed_to(file: str) -> str:
    """Where a `.git` that is a file points to; "" when it does not."""
    content = _text(file) or ""
    if not content.startswith("gitdir: "):
        return ""
    return os.path.join(os.path.dirname(file), content[len("gitdir: ") :].rstrip("\r\n"))


def _repository(top: str, git_dir: str) -> Repository | None:
    """None when `git_dir` does not have what makes one: HEAD, objects, refs."""
    head = f"{git_dir}/HEAD"
    try:
        says = os.readlink(head) if os.path.islink(head) else (_text(head) or "")
    except OSError:
        return None
    if not re.match(r"(ref:\s*)?refs/|[0-9a-fA-F]{40}", says) or (says.startswith("refs/") and not os.path.islink(head)):
        return None
    shared = (_text(f"{git_dir}/commondir") or "").rstrip("\r\n")
    common = os.path.normpath(os.path.join(git_dir, shared)) if shared else git_dir
    if not (os.path.isdir(f"{common}/objects") and os.path.isdir(f"{common}/refs")):
        return None
    return Repository(top=top, git_dir=git_dir, common_dir=common)


def _all_settings(repository: Repository | None) -> Iterator[tuple[str, str | None]]:
    for file in _users_files():
        yield from _file_settings(file, repository, _DEEPEST_INCLUDE, closed_ok=True)
    for file in _repositorys_files(repository):
        yield from _file_settings(file, repository, _DEEPEST_INCLUDE)
    yield from _with_includes(_settings_of_environment(), "", repository, _DEEPEST_INCLUDE)


def _users_files() -> Iterator[str]:
    """Of the system and of the user."""
    if not _is_true(os.environ.get("GIT_CONFIG_NOSYSTEM", "false")):
        yield os.environ.get("GIT_CONFIG_SYSTEM", "/etc/gitconfig")
    if "GIT_CONFIG_GLOBAL" in os.environ:
        yield os.environ["GIT_CONFIG_GLOBAL"]
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        yield f"{base}/git/config"
        yield os.path.expanduser("~/.gitconfig")


def _repositorys_files(repository: Repository | None) -> Iterator[str]:
    if repository is not None:
        own = f"{repository.common_dir}/config"
        yield own
        named = dict(parse_config(_text(own) or ""))
        if "extensions.worktreeconfig" in named and _is_true(named["extensions.worktreeconfig"]):
            yield f"{repository.git_dir}/config.worktree"


def _settings_of_environment() -> _Settings:
    """Of $GIT_CONFIG_COUNT with its keys and values, and of what `git -c` hands down."""
    found: _Settings = []
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    for number in range(int(count) if count.isdecimal() else 0):
        name = os.environ.get(f"GIT_CONFIG_KEY_{number}")
        if name is not None:
            found.append((_lower(name), os.environ.get(f"GIT_CONFIG_VALUE_{number}")))
    try:
        words = shlex.split(os.environ.get("GIT_CONFIG_PARAMETERS", ""))
    except ValueError:
        words = []
    for word in words:
        name, has_value, value = word.partition("=")
        found.append((_lower(name), value if has_value else None))
    return found


def _lower(name: str) -> str:
    """Section and name of a setting in small letters; what stands between is as it is."""
    section, _, rest = name.partition(".")
    middle, dot, last = rest.rpartition(".")
    return f"{section.lower()}.{middle}{dot}{last.lower()}"


def _file_settings(
    file: str, repository: Repository | None, depth: int, *, closed_ok: bool = False
) -> Iterator[tuple[str, str | None]]:
    settings = parse_config(_text(file, closed_ok=closed_ok) or "")
    return _with_includes(settings, os.path.dirname(file), repository, depth)


def _with_includes(
    settings: _Settings, folder: str, repository: Repository | None, depth: int
) -> Iterator[tuple[str, str | None]]:
    """Each setting, and behind an `include.path` those of that file. folder: of the file, where relative paths start."""
    for name, value in settings:
        yield name, value
        if value and depth and (name == "include.path" or _condition_holds(name, folder, repository)):
            yield from _file_settings(os.path.join(folder, _expanded(value)), repository, depth - 1)


def _condition_holds(name: str, folder: str, repository: Repository | None) -> bool:
    """Of `includeIf.<condition>.path`, with a gitdir or a branch; other conditions never hold here."""
    if repository is None or not (name.startswith("includeif.") and name.endswith(".path")):
        return False
    kind, _, glob = name.removeprefix("includeif.").removesuffix(".path").partition(":")
    if kind == "onbranch":
        head = re.match(r"ref:\s*refs/heads/(.*)", _text(f"{repository.git_dir}/HEAD") or "")
        return head is not None and _matches(glob + "**" * glob.endswith("/"), head[1], fold=False)
    if kind not in ("gitdir", "gitdir/i"):
        return False
    glob = os.path.join(folder, glob[2:]) if glob.startswith("./") else _expanded(glob)
    glob = ("" if glob.startswith("/") else "**/") + glob + ("**" if glob.endswith("/") else "")
    places = {repository.git_dir, os.path.realpath(repository.git_dir)}
    return any(_matches(glob, place, fold=kind == "gitdir/i") for place in places)


def _matches(glob: str, text: str, *, fold: bool) -> bool:
    if "/" not in glob:
        glob = f"/{glob}"
    patterns = PatternList(parse_patterns(os.fsencode(glob), fold=fold), fold=fold)
    return patterns.decide(os.fsencode(text.lstrip("/")), is_dir=True) is not None


def _expanded(path: str) -> str:
    return os.path.expanduser(path) if path.startswith("~") else path


def _is_true(value: str | None) -> bool:
    """As git reads it; a name without a value is true."""
    return value is None or value.lower() in _TRUE or (value.lstrip("+-").isdecimal() and int(value) != 0)


def _text(file: str, *, closed_ok: bool = False) -> str | None:
    """A file's content; None when there is no such file. Raises StagingError when it cannot be read.

    closed_ok: nor is there one that permissions keep from us, as git has it for the user's own (sudo with $HOME kept).
    """
    try:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as opened:
            return opened.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, ValueError) as exc:
        if closed_ok and isinstance(exc, PermissionError):
            return None
        raise StagingError(f"cannot read {file}: {exc}", path=file) from exc
