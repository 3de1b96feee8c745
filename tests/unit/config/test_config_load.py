"""The configuration that comes out of files, environment and overrides, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from skylib.config.load import Config, load_config
from skylib.config.schema import SECTIONS, keys
from skylib.errors import ConfigError
from skylib.paths import SkyHome


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    (tmp_path / "home").mkdir()
    return SkyHome(tmp_path / "home")


def _load(
    home: SkyHome,
    text: str | None = None,
    *,
    project: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    cwd = home.root / "project"
    cwd.mkdir(exist_ok=True)
    if text is not None:
        home.config.write_text(text)
    if project is not None:
        (cwd / ".sky.yaml").write_text(project)
    return load_config(home, overrides=overrides, environ=environ or {}, cwd=cwd)


def _refused(home: SkyHome, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        _load(home, text)
    return caught.value


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "---\n", "ssh:\n", "ssh: {}\n", "null\n"])
def test_nothing_written_gives_the_defaults(home: SkyHome, text: str | None) -> None:
    """No file, an empty one, an empty section."""
    assert _load(home, text) == Config()


def test_later_layers_win_key_by_key(home: SkyHome) -> None:
    """Home, project, environment, overrides; each keeps what the later ones do not name."""
    config = _load(
        home,
        "ssh: {connect_timeout_s: 1, keepalive_s: 1, max_channels: 3, parallel: 7}\n",
        project="ssh: {connect_timeout_s: 2, keepalive_s: 2, max_channels: 4}\n",
        environ={"SKYLIB_SSH_CONNECT_TIMEOUT_S": "3", "SKYLIB_SSH_KEEPALIVE_S": "3.5"},
        overrides={"ssh": {"connect_timeout_s": 4}},
    )
    ssh = config.ssh
    assert (ssh.connect_timeout_s, ssh.keepalive_s, ssh.max_channels, ssh.parallel) == (4.0, 3.5, 4, 7)


def test_every_value_knows_where_it_came_from(home: SkyHome) -> None:
    """File and line, variable, override or default."""
    config = _load(
        home,
        "\nssh:\n  keepalive_s: 1\n",
        project="logs:\n  keep: 5\n",
        environ={"SKYLIB_SSH_PARALLEL": "3"},
        overrides={"runtime": {"source": "index"}},
    )
    seen = {
        key: str(config.explain(key).origin)
        for key in ("ssh.keepalive_s", "logs.keep", "ssh.parallel", "runtime.source", "agent.call_timeout_s")
    }
    assert seen == {
        "ssh.keepalive_s": f"{home.config}, line 3",
        "logs.keep": f"{home.root / 'project' / '.sky.yaml'}, line 2",
        "ssh.parallel": "$SKYLIB_SSH_PARALLEL",
        "runtime.source": "Client(config=...)",
        "agent.call_timeout_s": "default",
    }
    explained = config.explain("ssh.keepalive_s")
    assert (explained.value, explained.default) == (1.0, 15.0)
    assert "ssh.keepalive_s = 1.0" in str(explained)
    assert explained.meaning in str(explained)


def test_what_a_value_hides_is_told(home: SkyHome) -> None:
    """Every layer that has the key, the nearest first; none where only one has it."""
    config = _load(
        home,
        "ssh: {keepalive_s: 1}\nlogs: {keep: 2}\n",
        project="ssh: {keepalive_s: 2}\n",
        overrides={"ssh": {"keepalive_s": 3}},
    )
    explained = config.explain("ssh.keepalive_s")
    assert [each.value for each in explained.hides] == [2.0, 1.0]
    assert "from Client(config=...), which hides 2.0 from " in str(explained)
    assert config.explain("logs.keep").hides == ()


def test_a_database_stands_in_the_files_place(home: SkyHome) -> None:
    """Its layer comes before the project's, with host and name as its origin; it is checked alike."""
    db = "postgresql://ann:hunter2@db.example/state"
    cwd = home.root / "project"
    cwd.mkdir()
    (cwd / ".sky.yaml").write_text("ssh: {keepalive_s: 2}\n")
    home.config.write_text(f"db: {db}\n")
    stored = {"ssh": {"keepalive_s": 1, "parallel": 3}}
    config = load_config(home, environ={}, cwd=cwd, stored=stored)
    assert (config.ssh.keepalive_s, config.ssh.parallel) == (2.0, 3)
    assert str(config.explain("ssh.parallel").origin) == "database db.example/state"
    for wrong, words in (({"shs": {}}, "unknown key 'shs'"), ([1], "expected a map of settings, got a list")):
        with pytest.raises(ConfigError, match=f"^database db.example/state: {words}"):
            load_config(home, environ={}, cwd=cwd, stored=wrong)


@pytest.mark.parametrize("layer", ["file", "project"])
@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "ssh:\n", "ssh: &a {}\nlogs: *a\n", "\ufeff"])
def test_layers_that_say_nothing(home: SkyHome, layer: str, text: str) -> None:
    """Empty documents, sections and aliases of these, in each file."""
    assert _load(home, text if layer == "file" else None, project=text if layer == "project" else None) == Config()


@pytest.mark.parametrize("content", [b"ssh:\n  parallel: \xff\n", b"ssh: {}\nssh: {}\n", b"shs: 1\n", b"ssh: {<<: {}}\n"])
def test_the_project_file_is_read_as_strictly(home: SkyHome, content: bytes) -> None:
    """Bytes that are no text, duplicate and unknown keys, merge keys: each with the file's name and line."""
    (home.root / ".sky.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"\.sky\.yaml, line [12]: ") as caught:
        load_config(home, environ={}, cwd=home.root)
    assert caught.value.file == str(home.root / ".sky.yaml")


@pytest.mark.parametrize("overrides", [{1: {}}, {"ssh": {1: 2}}, {"ssh": [1]}, {"ssh": {"parallel": None}}, {"shs": 1}])
def test_overrides_of_any_shape_are_refused_by_type(home: SkyHome, overrides: dict[str, object]) -> None:
    """ConfigError, whatever the caller hands over."""
    with pytest.raises(ConfigError, match=r"^Client\(config=\.\.\.\): "):
        _load(home, overrides=overrides)


def test_an_unknown_key_cannot_be_explained() -> None:
    """The nearest one is named."""
    with pytest.raises(ConfigError, match=r"ssh\.keepalive_s"):
        Config().explain("ssh.keepalive")


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("shs:\n  keepalive_s: 1\n", 1, "shs", "nearest valid one is 'ssh'"),
        ("ssh:\n\n  keep_alive: 1\n", 3, "ssh.keep_alive", "nearest valid one is 'ssh.keepalive_s'"),
        ("ssh:\n  keepalive_s: 1\n  keepalive_s: 2\n", 3, "keepalive_s", "stands here and on line 2"),
        ("ssh: {}\nlogs: {}\nssh: {}\n", 3, "ssh", "stands here and on line 1"),
        ("ssh:\n  keepalive_s: fast\n", 2, "ssh.keepalive_s", "a number, not 'fast'"),
        ("ssh:\n  keepalive_s: yes\n", 2, "ssh.keepalive_s", "a number, not True"),
        ("ssh:\n  keepalive_s: .nan\n", 2, "ssh.keepalive_s", "a number, not nan"),
        ("ssh:\n  keepalive_s:\n", 2, "ssh.keepalive_s", "a number, not null"),
        ("ssh:\n  keepalive_s:\n    x: 1\n", 2, "ssh.keepalive_s", "a number, not a map"),
        ("ssh:\n  keepalive_s: [1]\n", 2, "ssh.keepalive_s", "a number, not a list"),
        ("ssh:\n  max_channels: 3.5\n", 2, "ssh.max_channels", "a whole number, not 3.5"),
        ("ssh:\n  max_channels: 1\n", 2, "ssh.max_channels", "at least 2"),
        ("ssh:\n  max_channels: 1000\n", 2, "ssh.max_channels", "at most 100"),
        ("ssh:\n  user_config: 3\n", 2, "ssh.user_config", "text, not 3"),
        ("runtime:\n  source: cloud\n", 2, "runtime.source", "one of client, index"),
        ("ssh: 3\n", 1, "ssh", "a map of settings"),
        ("1: 2\n", 1, None, "keys are text"),
        ("- ssh\n", 1, None, "a map of settings"),
        ("text\n", 1, None, "a map of settings"),
        ("ssh: [1\n", 2, None, "not valid YAML"),
        ("ssh: !!python/object/apply:os.system ['true']\n", 1, None, "is not taken"),
        ("ssh: !!set {a, b}\n", 1, None, "is not taken"),
        ("ssh: &a\n  keepalive_s: *a\n", 1, None, "contains itself"),
        ("ssh: {}\n---\nlogs: {}\n", 2, None, "not valid YAML"),
        ("logs:\n  keep: 2020-13-45\n", 2, None, "not a value"),
        ("ssh: &a {keepalive_s: 1}\nlogs:\n  <<: *a\n", 3, "<<", "merge keys are not taken"),
        ("ssh: *a\n", 1, None, "not valid YAML"),
        ("? [a]\n: 1\n", 1, None, "keys are text, not a list"),
        ("ssh: !!int x\n", 1, None, "not a value"),
        ("ssh: !!bool x\n", 1, None, "not a value"),
        ("logs:\n  keep: " + "9" * 5000 + "\n", 2, None, ""),
        ("ssh:\n  keepalive_s: " + "9" * 400 + "\n", 2, "ssh.keepalive_s", "is a number, not 999"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(home: SkyHome, text: str, line: int, key: str | None, words: str) -> None:
    """File, line and key as facts and in the message."""
    error = _refused(home, text)
    assert (error.file, error.line, error.key) == (str(home.config), line, key)  # type: ignore[attr-defined]
    assert f"{home.config}, line {line}: " in str(error)
    assert words in str(error)


def test_bytes_that_are_no_text_are_refused(home: SkyHome) -> None:
    """With the line that they are on."""
    home.config.write_bytes(b"ssh:\n  user_config: \xff\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load_config(home, environ={}, cwd=home.root)


def test_a_byte_order_mark_is_no_error(home: SkyHome) -> None:
    """Some editors write one."""
    home.config.write_bytes(b"\xef\xbb\xbfssh: {keepalive_s: 2}\n")
    assert load_config(home, environ={}, cwd=home.root).ssh.keepalive_s == 2.0


def test_a_folder_in_the_files_place_is_refused(home: SkyHome) -> None:
    """It is not taken for a file that is missing."""
    home.config.mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(home, environ={}, cwd=home.root)


def test_aliases_cannot_make_a_file_explode(home: SkyHome) -> None:
    """Thirty doublings are read and refused at once."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    assert _refused(home, "\n".join(lines)).line == 1  # type: ignore[attr-defined]


def test_deep_nesting_is_an_error_not_a_crash(home: SkyHome) -> None:
    """Ten thousand brackets."""
    assert "nested too deeply" in str(_refused(home, "ssh: " + "[" * 10_000))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SKYLIB_SSH_KEEPALIVE_S", "soon", "a number, not 'soon'"),
        ("SKYLIB_SSH_MAX_CHANNELS", "3.5", "a whole number"),
        ("SKYLIB_SSH_KEEPALIVE", "1", "nearest valid one is 'SKYLIB_SSH_KEEPALIVE_S'"),
        ("SKYLIB_SHS_CONNECT_TIMEOUT_S", "1", "nearest valid one is 'SKYLIB_SSH_CONNECT_TIMEOUT_S'"),
    ],
)
def test_wrong_variables_are_refused(home: SkyHome, name: str, value: str, words: str) -> None:
    """By their name."""
    with pytest.raises(ConfigError) as caught:
        _load(home, environ={name: value})
    assert f"${name}: " in str(caught.value)
    assert words in str(caught.value)


def test_variables_of_others_are_left_alone(home: SkyHome) -> None:
    """What is nowhere near a key is not ours to judge."""
    environ = {"SKYLIB_CLUSTER_ID": "x", "SKYLIB": "1", "SSH_KEEPALIVE_S": "3"}
    assert _load(home, environ=environ) == Config()


def test_overrides_are_checked_like_a_file(home: SkyHome) -> None:
    """An unknown key in Client(config=...) says so."""
    with pytest.raises(ConfigError, match=r"Client\(config=\.\.\.\): unknown key 'ssh\.keepalive'"):
        _load(home, overrides={"ssh": {"keepalive": 1}})


def test_a_config_is_a_value(home: SkyHome) -> None:
    """Frozen; two with the same values are equal wherever those came from; its repr shows the values."""
    config = _load(home, "ssh: {keepalive_s: 2}")
    assert config == _load(home, "", overrides={"ssh": {"keepalive_s": 2.0}})
    assert "keepalive_s=2.0" in repr(config)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.ssh.keepalive_s = 3.0  # type: ignore[misc]


def test_the_schema_is_whole() -> None:
    """Each section is a field of Config; each key has a meaning, a variable of its own and a default in its bounds."""
    assert set(SECTIONS) == {field.name for field in attrs.fields(Config) if not field.name.startswith("_")}
    every = list(keys())
    assert len({key.variable for key in every}) == len(every)
    for key in every:
        assert key.meaning.endswith(".")
        assert key.kind in (bool, int, float, str)
        assert not key.choices or key.default in key.choices
        if isinstance(key.default, (int, float)):
            assert key.minimum is None or key.default >= key.minimum
            assert key.maximum is None or key.default <= key.maximum


def test_importing_reads_nothing_and_leaves_yaml_alone() -> None:
    """yaml is loaded with the first file that exists or is looked for, not before."""
    code = "import sys, skylib.config.load; print('yaml' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("place", ["config.yaml", ".sky.yaml"])
def test_a_file_that_nobody_writes_to_is_not_waited_for(home: SkyHome, place: str) -> None:
    """A FIFO in the place of a configuration is refused."""
    os.mkfifo(home.root / place)
    with pytest.raises(ConfigError, match="no regular file") as caught:
        load_config(home, environ={}, cwd=home.root)
    assert caught.value.file == str(home.root / place)


def test_a_number_with_hundreds_of_digits_is_out_of_bounds(home: SkyHome) -> None:
    """In a file as anywhere; the message does not have the digits."""
    error = _refused(home, f"ssh:\n  parallel: {'9' * 400}\n")
    assert "at most 1000" in str(error)
    assert "999" not in str(error)
