"""`~/.ssh/config`, as text and as files."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

import pytest

from skylib.errors import ConfigError
from skylib.transport.ssh_config import ConfigSources, HostConfig, Local, expand_tokens, pattern_matches, read_config

LOCAL = Local(user="me", home="/home/me", hostname="laptop.lan", uid=1000)


def read(files: Mapping[str, str], host: str, *, user: str | None = None, exec_answers: bool = False) -> HostConfig:
    """What /c and the files that it includes say; keys of `files` are paths."""
    sources = ConfigSources(
        read=files.get,
        list=lambda pattern: sorted(path for path in files if fnmatch.fnmatch(path, pattern)),
        exec=lambda command: exec_answers and command == "test laptop",
    )
    return read_config(["/c"], host, local=LOCAL, user=user, sources=sources)


@pytest.mark.parametrize(
    ("text", "host", "keyword", "expected"),
    [
        ("Host a\n  User one\nHost *\n  User two\n", "a", "user", "one"),
        ("Host a\n  User one\nHost *\n  User two\n", "b", "user", "two"),
        ("User zero\nHost a\n  User one\n", "a", "user", "zero"),
        ("Host a b\n  Port 7\n", "b", "port", "7"),
        ("Host *.lab !bad.lab\n  Port 7\n", "x.lab", "port", "7"),
        ("Host *.lab !bad.lab\n  Port 7\n", "bad.lab", "port", None),
        ("Host gpu?\n  Port 7\n", "gpu1", "port", "7"),
        ("Host gpu?\n  Port 7\n", "gpu12", "port", None),
        ("HOST a\n\tuser=one\n", "a", "user", "one"),
        ("Host a\n  User = one\n", "a", "user", "one"),
        ('Host a\n  User "one two"\n', "a", "user", "one two"),
        ("# comment\n\n   # another\nHost a\n  User one # trailing\n", "a", "user", "one"),
        ("Host a\n  ProxyCommand nc -X 5 '%h' %p\n", "a", "proxycommand", "nc -X 5 '%h' %p"),
        ("Match host a\n  User one\n", "a", "user", "one"),
        ("Match host a\n  User one\n", "b", "user", None),
        ("Match !host a\n  User one\n", "b", "user", "one"),
        ("Host a\n  HostName real.lab\nMatch host *.lab\n  User one\n", "a", "user", "one"),
        ("Host a\n  HostName real.lab\nMatch originalhost a\n  User one\n", "a", "user", "one"),
        ("Match localuser me\n  User one\n", "a", "user", "one"),
        ("Match localuser other\n  User one\n", "a", "user", None),
        ("Match user me\n  Port 7\n", "a", "port", "7"),
        ("Host a\n  User root\nMatch user root\n  Port 7\n", "a", "port", "7"),
        ("Match all\n  Port 7\n", "a", "port", "7"),
        ("Match host a,b user me\n  Port 7\n", "b", "port", "7"),
        ("Match final host real\n  Port 7\nHost a\n  HostName real\n", "a", "port", "7"),
        ("Match canonical\n  Port 7\n", "a", "port", None),
    ],
)
def test_first_value_of_a_block_that_applies_counts(text: str, host: str, keyword: str, expected: str | None) -> None:
    """Blocks, patterns, negation, quoting and Match criteria follow ssh_config(5)."""
    assert read({"/c": text}, host).first(keyword) == expected


@pytest.mark.parametrize(("answers", "expected"), [(True, "7"), (False, None)])
def test_match_exec_asks_a_command(answers: bool, expected: str | None) -> None:
    """Match exec applies when the command succeeds; tokens in it are expanded."""
    text = 'Match exec "test %L"\n  Port 7\n'
    assert read({"/c": text}, "a", exec_answers=answers).first("port") == expected


def test_match_looks_no_further_than_the_first_criterion_that_fails() -> None:
    """A Match exec after a criterion that fails is not run."""
    ran: list[str] = []
    sources = ConfigSources(read={"/c": "Match host b exec boom\n  Port 7\n"}.get, exec=lambda text: bool(ran.append(text)))
    read_config(["/c"], "a", local=LOCAL, sources=sources)
    assert ran == []


def test_identity_files_add_up() -> None:
    """IdentityFile is the keyword whose values add up over blocks, in order, each once."""
    text = "Host a\n  IdentityFile ~/.ssh/one\nHost *\n  IdentityFile ~/.ssh/two\n  IdentityFile ~/.ssh/one\n"
    assert read({"/c": text}, "a").identity_files == ("~/.ssh/one", "~/.ssh/two")


def test_include_is_expanded_with_globs_home_and_relative_names() -> None:
    """Include takes several patterns; relative ones are under ~/.ssh."""
    files = {
        "/c": "Include conf.d/*.conf ~/more\nHost *\n  User last\n",
        "/home/me/.ssh/conf.d/1.conf": "Host a\n  User one\n",
        "/home/me/.ssh/conf.d/2.conf": "Host b\n  User two\n",
        "/home/me/more": "Host c\n  User three\n",
    }
    assert [read(files, host).first("user") for host in "abcd"] == ["one", "two", "three", "last"]


def test_include_in_a_block_applies_within_it_only() -> None:
    """Blocks of an included file apply only where the block that includes it does, and end with the file."""
    files = {
        "/c": "Host a\n  Include /i\n  Port 7\nHost *\n  Port 9\n",
        "/i": "User plain\nHost *\n  User block\n  Compression yes\n",
    }
    inside, outside = read(files, "a"), read(files, "b")
    assert (inside.first("user"), inside.first("compression"), inside.first("port")) == ("plain", "yes", "7")
    assert (outside.first("user"), outside.first("compression"), outside.first("port")) == (None, None, "9")


def test_host_block_in_an_included_file_does_not_leak_out() -> None:
    """After Include the block of the including file goes on, whatever block the included file ended with."""
    files = {"/c": "Include /i\nUser everybody\n", "/i": "Host never\n  User nobody\n"}
    assert read(files, "a").first("user") == "everybody"


def test_include_of_nothing_is_no_error() -> None:
    """A pattern that matches no file includes nothing."""
    assert read({"/c": "Include nowhere/*\nUser me2\n"}, "a").first("user") == "me2"


def test_include_nests() -> None:
    """Included files may include others."""
    files = {"/c": "Include /c1\n", **{f"/c{n}": f"Include /c{n + 1}\n" for n in range(1, 10)}, "/c10": "User deep\n"}
    assert read(files, "a").first("user") == "deep"


def test_include_too_deep_is_refused() -> None:
    """Seventeen levels are too many."""
    files = {"/c": "Include /c1\n", **{f"/c{n}": f"Include /c{n + 1}\n" for n in range(1, 30)}}
    with pytest.raises(ConfigError, match="16 deep"):
        read(files, "a")


def test_include_of_itself_is_refused() -> None:
    """A cycle of includes is named, not followed."""
    with pytest.raises(ConfigError, match="includes itself"):
        read({"/c": "Include /d\n", "/d": "Include /c\n"}, "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Host a\n  User 'one\n", "line 2.*quote"),
        ("Host a\n\n  User\n", "line 3"),
        ("???\n", "line 1"),
        ("Match hots a\n", "line 1.*hots"),
        ("Match host\n", "line 1.*host"),
        ("Match\n", "line 1"),
        ("Match exec %q\n", "line 1.*%q"),
    ],
)
def test_bad_lines_are_named(text: str, says: str) -> None:
    """What cannot be parsed is a ConfigError with file and line."""
    with pytest.raises(ConfigError, match=says) as caught:
        read({"/c": text}, "a")
    assert caught.value.file == "/c"  # type: ignore[attr-defined]


def test_missing_file_says_nothing(tmp_path: Path) -> None:
    """Without a configuration file there are no values."""
    assert read_config([str(tmp_path / "none")], "a", local=LOCAL).values == {}


def test_real_files_and_commands_are_used_by_default(tmp_path: Path) -> None:
    """Without sources given, files are read, globs are looked up and commands are run."""
    (tmp_path / "a.conf").write_text("Match exec true\n  User one\n")
    main = tmp_path / "config"
    main.write_text(f"Include {tmp_path}/*.conf\nMatch exec false\n  Port 7\n")
    config = read_config([str(main)], "a", local=LOCAL)
    assert (config.first("user"), config.first("port")) == ("one", None)


@pytest.mark.parametrize(("text", "expected"), [("%h:%p", "real:22"), ("100%%", "100%"), ("%%h", "%h"), ("plain", "plain")])
def test_tokens_are_expanded_once(text: str, expected: str) -> None:
    """Tokens stand for values, a doubled percent sign for itself."""
    assert expand_tokens(text, {"h": "real", "p": "22"}) == expected


def test_patterns_take_brackets_literally() -> None:
    """Only * and ? are special in a pattern, unlike in a shell's."""
    assert pattern_matches(["[host]:2222"], "[host]:2222")
    assert not pattern_matches(["[ab]"], "a")
