"""Task: what its constructor and its YAML take and refuse, where errors point, what printing shows."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import attrs
import pytest

from skylib.errors import InvalidSpecError
from skylib.models.resources import Resources
from skylib.models.secret import Secret
from skylib.models.task import GitWorkdir, ManagedSecret, StorageMount, Task
from skylib.models.task_yaml import TASK_KEYS

_EXAMPLES = Path(__file__).parents[2] / "data" / "skypilot_examples"


def parse(text: str, **more: object) -> Task:
    return Task.from_yaml_str(dedent(text), file="task.yaml", **more)  # type: ignore[arg-type]


def error_of(text: str, **more: object) -> InvalidSpecError:
    with pytest.raises(InvalidSpecError) as caught:
        parse(text, **more)
    return caught.value


WHOLE = """
name: whole.task-1
workdir: {url: https://example.org/repo.git, ref: main}
num_nodes: 2
resources:
  infra: ssh/lab
  accelerators: {A100: 8}
  labels: {team: a}
  ordered:
    - cpus: 8+
      labels: {size: big}
    - memory: 64GB
envs: {MODEL: big, COUNT: 3, RATE: 0.5, DEBUG: true}
secrets: {TOKEN: hush, "secrets:team.KEY": null}
managed_secrets:
  - PLAIN
  - FILE: {mount_path: /run/file}
file_mounts:
  /local: ./src
  /url: s3://bucket/path
  /storage:
    name: store
    source: [~/a, ~/b]
    store: s3
    mode: mount_cached
    persistent: false
    config: {mount_cached: {transfers: 4}}
volumes:
  /data: my-volume
  /scratch: {size: 100Gi}
setup: pip list
run: |
  echo "$MODEL"
service:
  readiness_probe: {path: /health, headers: {X: y}}
  replicas: 2
config: {kubernetes: {pod_config: {spec: [1, null, x]}}}
event_callback: echo done
inputs: {s3://in: 1.5}
outputs: {s3://out: 2, "results/*.json": ./results}
api_server_access: false
timeout_s: 3600
"""


def test_every_field_is_read():
    """A document with every field gives a task with every field, typed."""
    task = parse(WHOLE)
    assert all(getattr(task, name) != getattr(Task(), name) for name in TASK_KEYS if name != "pool")
    assert task.workdir == GitWorkdir(url="https://example.org/repo.git", ref="main")
    assert task.envs == {"MODEL": "big", "COUNT": "3", "RATE": "0.5", "DEBUG": "True"}
    assert task.secrets == {"TOKEN": Secret("hush")}
    assert task.managed_secrets == (
        ManagedSecret(name="team.KEY"),
        ManagedSecret(name="PLAIN"),
        ManagedSecret(name="FILE", mount_path="/run/file"),
    )
    storage = task.file_mounts["/storage"]
    assert isinstance(storage, StorageMount)
    assert (storage.source, storage.mode, storage.persistent) == (("~/a", "~/b"), "MOUNT_CACHED", False)
    assert task.resources.ordered[0].labels == {"team": "a", "size": "big"}


def test_every_field_is_printed_and_read_back():
    """A document with every field survives being printed."""
    task = parse(WHOLE)
    again = Task.from_yaml_str(task.to_yaml(show_secrets=True))
    assert again == task
    assert hash(again) == hash(task)


def test_keys_of_the_yaml_are_the_fields_of_the_model():
    """No field of Task is without a key, and no key without a field."""
    assert set(TASK_KEYS) == {field.name for field in attrs.fields(Task)}


@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_in_skypilots_shape_parse_and_print(path):
    """Tasks as SkyPilot's users write them are read, and read back equal."""
    task = Task.from_yaml(path, envs={"INDEX": 1} if path.stem == "multi_echo" else None)
    assert task.run
    assert Task.from_yaml_str(task.to_yaml(show_secrets=True)) == task


def test_variables_are_put_into_the_mounts_of_an_example():
    """Destinations and sources of mounts hold the values."""
    mounts = Task.from_yaml(_EXAMPLES / "file_mounts.yaml", envs={"NAME": "other"}).file_mounts
    assert mounts["~/data/other.txt"] == "./other.txt"


def test_empty_document_is_the_default_task():
    """All fields are optional."""
    assert parse("") == parse("# nothing") == parse("---\n---\n") == Task()


@pytest.mark.parametrize("key", TASK_KEYS)
def test_null_means_the_default(key):
    """A key without a value is as if it were not there."""
    assert parse(f"{key}:") == Task()


def test_header_document_gives_the_name():
    """A first document with only a name is a header, as SkyPilot's pipelines have it."""
    assert parse("name: chain\n---\nrun: echo").name == "chain"
    assert parse("name: chain\n---\nname: own\nrun: echo").name == "own"


def test_pipelines_are_refused():
    """More than one task is refused at the line of the second."""
    error = error_of("name: chain\n---\nrun: one\n---\nrun: two\n")
    assert "pipelines are not supported" in error.message
    assert (error.file, error.line) == ("task.yaml", 5)


@pytest.mark.parametrize(
    ("text", "line", "field", "near"),
    [
        ("name: x\nrunn: echo", 2, "runn", "run"),
        ("nodes: 2", 1, "nodes", "num_nodes"),
        ("Resources: {}", 1, "Resources", "resources"),
        ("run: x\nresources:\n  cpus: 1\n  acelerators: A100", 4, "resources.acelerators", "accelerators"),
        ("resources:\n  autostop:\n    idle_minute: 1", 3, "resources.autostop.idle_minute", "idle_minutes"),
        ("resources:\n  job_recovery:\n    strategi: x", 3, "resources.job_recovery.strategi", "strategy"),
        ("resources:\n  any_of:\n  - cpus: 1\n  - memry: 1", 4, "resources.any_of[1].memry", "memory"),
        ("workdir:\n  url: x\n  reff: y", 3, "workdir.reff", "ref"),
        ("file_mounts:\n  /x:\n    sorce: y", 3, "file_mounts[/x].sorce", "source"),
        ("service:\n  readiness_probe:\n    pth: /", 3, "service.readiness_probe.pth", "path"),
        ("managed_secrets:\n- A: {mount_pth: /x}", 2, "managed_secrets[0].A.mount_pth", "mount_path"),
    ],
)
def test_unknown_keys(text, line, field, near):
    """An unknown key is refused with file, line, its place and the nearest key that exists."""
    error = error_of(text)
    assert (error.file, error.line, error.field) == ("task.yaml", line, field)
    assert f"'{near}'" in error.message
    assert f"'{near}'" in error.hint
    assert error.message.startswith(f"task.yaml:{line}: ")


def test_unknown_key_far_from_all_lists_what_there_is():
    """Without a near key the hint lists the valid ones."""
    assert "num_nodes" in error_of("zzzzzz: 1").hint


@pytest.mark.parametrize("key", ["_metadata", "file_mounts_mapping", "volume_mounts", "_user_specified_yaml"])
def test_internal_keys_are_refused(key):
    """What SkyPilot writes for itself is refused, and said to be that."""
    assert "own use" in error_of(f"{key}: {{}}").message


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("- a", 1, None),
        ("just text", 1, None),
        ("name: [x]", 1, "name"),
        ("name: 'has blank'", 1, "name"),
        ("name: -x", 1, "name"),
        ("name: a---b", 1, "name"),
        ("name: x\nnum_nodes: 0", 2, "num_nodes"),
        ("num_nodes: -1", 1, "num_nodes"),
        ("num_nodes: true", 1, "num_nodes"),
        ("num_nodes: '2'", 1, "num_nodes"),
        ("num_nodes: 1.5", 1, "num_nodes"),
        ("workdir: 3", 1, "workdir"),
        ("workdir: ''", 1, "workdir"),
        ("workdir: {ref: x}", 1, "workdir"),
        ("resources: A100", 1, "resources"),
        ("resources:\n\n  cpus: x", 3, "resources.cpus"),
        ("resources:\n  ports:\n  - 80\n  - x", 2, "resources.ports"),
        ("envs: [A]", 1, "envs"),
        ("envs:\n  A: 1\n  1B: x", 3, "envs.1B"),
        ("envs:\n  A-B: 1", 2, "envs[A-B]"),
        ("envs:\n  A: [x]", 2, "envs.A"),
        ("envs:\n  A: 'x\\0'\n  B: \"x\\0\"", 3, "envs.B"),
        ("secrets: x", 1, "secrets"),
        ("secrets: [NAME]", 1, "secrets[0]"),
        ("managed_secrets: [a b]", 1, "managed_secrets[0]"),
        ("managed_secrets: [A, A]", 1, "managed_secrets[1]"),
        ("file_mounts: [x]", 1, "file_mounts"),
        ("file_mounts:\n  /x: 3", 2, "file_mounts[/x]"),
        ("file_mounts:\n  /x: {mode: move}", 2, "file_mounts[/x].mode"),
        ("file_mounts:\n  /x: {persistent: 1}", 2, "file_mounts[/x].persistent"),
        ("file_mounts:\n  /x: {source: []}", 2, "file_mounts[/x].source"),
        ("volumes:\n  /x: 3", 2, "volumes[/x]"),
        ("setup: {a: b}", 1, "setup"),
        ("run: 3", 1, "run"),
        ("run: [echo, 3]", 1, "run[1]"),
        ("service: x", 1, "service"),
        ("service: {}\npool: {}", 2, "pool"),
        ("config: []", 1, "config"),
        ("event_callback: 3", 1, "event_callback"),
        ("inputs: {a: x}", 1, "inputs.a"),
        ("outputs: {a: 1, b: 2}", 1, "outputs"),
        ("outputs: {a: [x]}", 1, "outputs.a"),
        ("outputs: {a: ''}", 1, "outputs.a"),
        ("api_server_access: 'no'", 1, "api_server_access"),
    ],
)
def test_wrong_values(text, line, field):
    """A wrong value is refused with file, line and field."""
    error = error_of(text)
    assert (error.file, error.line, error.field) == ("task.yaml", line, field)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\nrun: [", 2),
        ("name: x\n\trun: y", 2),
        ("name: 'x\n", 2),
        ("run: *nowhere", 1),
        ("name: x\nrun: \x01", 2),
        ("name: a: b", 1),
        ("[" * 5000, 1),
        ("name: !!python/object/apply:os.system [ls]", 1),
        ("name: x\nrun: !!binary aGk=", 2),
        ("run: !custom x", 1),
        ("num_nodes: !!int x", 1),
        ("num_nodes: " + "9" * 5000, 1),
        ("? [a, b]\n: c", 1),
        ("name: x\nconfig: &a\n  b: *a", 2),
        ("<<: [1]", 1),
    ],
)
def test_text_that_is_no_usable_yaml(text, line):
    """Broken, dangerous or endless YAML is an InvalidSpecError with file and line."""
    error = error_of(text)
    assert (error.file, error.line) == ("task.yaml", line)


def test_aliases_inside_aliases_do_not_explode():
    """A document that would grow to billions of values is refused quickly."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "too often" in error_of("config:\n  " + "\n  ".join(levels)).message


def test_duplicate_keys_are_refused_with_both_lines():
    """A key that stands twice is refused, and both places are told."""
    error = error_of("name: x\nrun: a\nenvs:\n  A: 1\n  B: 2\n  A: 3\n")
    assert (error.line, error.field) == (6, "envs.A")
    assert "lines 4 and 6" in error.message


def test_anchors_and_merge_keys():
    """Anchors and `<<` work, own keys win, and errors inside point to where the text stands."""
    text = """
    config:
      base: &base
        memory: 4
        cpus: 2
    resources:
      <<: *base
      memory: 8
    """
    assert parse(text).resources == Resources(cpus=2, memory=8)
    assert error_of(text.replace("cpus: 2", "cpus: x")).line == 5


def test_text_that_looks_like_a_number_or_date_elsewhere():
    """Dates and base-60 numbers stay text; keys are what was written."""
    task = parse("envs: {DAY: 2024-01-01, CLOCK: 12:30, yes: 'no'}\nconfig: {1: one, ~: tilde}")
    assert task.envs == {"DAY": "2024-01-01", "CLOCK": "12:30", "yes": "no"}
    assert task.config == {"1": "one", "~": "tilde"}


def test_settings_of_a_task_know_their_lines():
    """They compare, print and travel as plain ones; file and lines stay until other settings take their place."""
    text = "run: x\nconfig:\n  provision:\n    timeout_s: 1800\n  runtime: {python: '3.9'}\n"
    task = Task.from_yaml_str(text, file="t.yaml")
    plain = Task(run="x", config={"provision": {"timeout_s": 1800}, "runtime": {"python": "3.9"}})
    assert task == plain
    assert hash(task) == hash(plain)
    assert repr(task) == repr(plain)
    for again in (task, pickle.loads(pickle.dumps(task)), attrs.evolve(task, run="y")):
        assert again.config.file == "t.yaml"
        assert {path: again.config.lines[path] for path in [("provision",), ("provision", "timeout_s")]} == {
            ("provision",): 3,
            ("provision", "timeout_s"): 4,
        }
    assert not hasattr(attrs.evolve(task, config={"provision": {"timeout_s": 1}}).config, "lines")
    assert Task.from_yaml_str(task.to_yaml()) == task


def test_envs_from_outside_come_on_top():
    """envs= replaces and adds, before variables are put in."""
    task = parse("workdir: ~/$A-$B\nenvs: {A: 1}", envs={"A": 2, "B": "x"})
    assert (task.workdir, task.envs) == ("~/2-x", {"A": "2", "B": "x"})


def test_variable_without_a_value():
    """A null variable is an error that names it, unless a value comes from outside."""
    error = error_of("run: x\nenvs:\n  NEEDED:\n")
    assert (error.field, error.line) == ("envs.NEEDED", 3)
    assert "NEEDED has no value" in error.message
    assert parse("envs:\n  NEEDED:\n", envs={"NEEDED": ""}).envs == {"NEEDED": ""}


def test_secret_without_a_value():
    """A null secret is an error that names it, unless a value comes from outside."""
    assert "TOKEN has no value" in error_of("secrets:\n  TOKEN:\n").message
    assert parse("secrets:\n  TOKEN:\n", secrets={"TOKEN": "x"}).secrets == {"TOKEN": Secret("x")}


def test_list_of_managed_secrets():
    """secrets may be a list of references to secrets that a server keeps."""
    assert parse("secrets: ['secrets:A', 'secrets:team.B']").managed_secrets == (
        ManagedSecret(name="A"),
        ManagedSecret(name="team.B"),
    )


def test_where_variables_are_put_in():
    """workdir, file_mounts, volumes and service get values, keys included; scripts and names do not."""
    task = parse(
        """
        workdir: {url: "https://$HOST/x"}
        file_mounts:
          /$DIR: ${DIR}/src
          /s: {source: "s3://$DIR", name: "$DIR-b"}
        volumes: {/v: $DIR}
        service: {readiness_probe: {path: "/$DIR", headers: {"$DIR": "$DIR"}}}
        setup: echo $DIR
        run: echo $DIR
        envs: {DIR: data, OTHER: $DIR}
        secrets: {HOST: example.org}
        """
    )
    assert task.workdir == GitWorkdir(url="https://example.org/x")
    assert task.file_mounts == {"/data": "data/src", "/s": StorageMount(source="s3://data", name="data-b")}
    assert task.volumes == {"/v": "data"}
    assert task.service == {"readiness_probe": {"path": "/data", "headers": {"data": "data"}}}
    assert (task.setup, task.run, task.envs["OTHER"]) == ("echo $DIR", "echo $DIR", "$DIR")


def test_values_with_quotes_backslashes_and_newlines_survive():
    """A value is put in as it is, whatever it holds, and can add no key."""
    value = "a\"b\\n\\\\c\nd': {e: f}"
    assert parse("file_mounts: {/x: ./$V}", envs={"V": value}).file_mounts == {"/x": "./" + value}


def test_unknown_variables_stay():
    """Names without a value, and dollars without a name, stay as written."""
    assert parse("workdir: $A/${A}/$/${A/$1/$${B}\nenvs: {B: x}").workdir == "$A/${A}/$/${A/$1/$x"


def test_keys_that_become_one_are_refused():
    """Two destinations that turn out to be the same are an error."""
    assert "becomes the same" in error_of("file_mounts: {/$A: x, /b: y}\nenvs: {A: b}").message


def test_value_with_a_dollar_survives_printing():
    """A value that itself looks like a variable is not replaced when the printed task is read."""
    task = parse("workdir: $A\nfile_mounts: {/$A: $B}\nenvs: {A: $B, B: x}")
    assert (task.workdir, task.file_mounts) == ("$B", {"/$B": "x"})
    assert Task.from_yaml_str(task.to_yaml()) == task


def test_constructor_takes_arguments_as_they_are():
    """Task(...) puts no variables in, and what it holds survives printing."""
    task = Task(workdir="~/$A", envs={"A": "x"})
    assert task.workdir == "~/$A"
    assert Task.from_yaml_str(task.to_yaml()) == task


def test_constructor_takes_loose_forms():
    """Paths, lines, maps and numbers are turned into the fields' types."""
    task = Task(
        workdir=Path("src"),
        run=["echo a", "echo b"],
        envs={"N": 1},
        secrets={"S": "x"},
        resources={"gpus": "A100"},
        file_mounts={"/x": Path("y"), "/z": {"source": "s3://b"}},
    )
    assert (task.workdir, task.run, task.envs) == ("src", "echo a\necho b", {"N": "1"})
    assert task.resources == Resources(accelerators="A100")
    assert task.file_mounts == {"/x": "y", "/z": StorageMount(source="s3://b")}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_nodes": True}, "num_nodes"),
        ({"num_nodes": 0}, "num_nodes"),
        ({"name": "a b"}, "name"),
        ({"envs": {"A": None}}, "envs.A"),
        ({"envs": {1: "x"}}, "envs.1"),
        ({"resources": {"cpus": "x"}}, "resources.cpus"),
        ({"run": "a\0b"}, "run"),
        ({"run": "a\ud800b"}, "run"),
        ({"config": {"a": {1: 2}}}, "config.a"),
        ({"config": {"a": float("nan")}}, "config.a"),
        ({"config": {"a": object()}}, "config.a"),
    ],
)
def test_constructor_validates(arguments, field):
    """A wrong argument is an InvalidSpecError with its field, without a file."""
    with pytest.raises(InvalidSpecError) as caught:
        Task(**arguments)
    assert caught.value.field == field
    assert getattr(caught.value, "file", None) is None


def test_tasks_are_values():
    """Equal tasks hash alike, whatever the order of their maps, and do not change."""
    one, other = Task(envs={"A": "1", "B": "2"}), Task(envs={"B": "2", "A": "1"})
    assert (one, hash(one)) == (other, hash(other))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.run = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.envs["A"] = "x"  # type: ignore[index]


def test_changed_with_evolve():
    """attrs.evolve gives a changed, validated copy."""
    task = Task(run="x", resources=Resources(any_of=[{"infra": "local"}]), secrets={"A": "b"})
    assert attrs.evolve(task, num_nodes=2) == Task(run="x", num_nodes=2, resources=task.resources, secrets={"A": "b"})
    with pytest.raises(InvalidSpecError):
        attrs.evolve(task, num_nodes=0)


def test_survives_pickling():
    """Pickled and back it is equal, secrets included, and still hides them."""
    task = parse(WHOLE)
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert "hush" not in repr(again)


def test_secrets_do_not_show():
    """No secret's value is in repr, str, format or the printed YAML, not even where it was put into a path."""
    task = parse("secrets: {TOKEN: hunter2}\nworkdir: {url: 'https://u:$TOKEN@h/'}\nfile_mounts: {/$TOKEN: ./x}")
    assert task.workdir == GitWorkdir(url="https://u:hunter2@h/")
    for shown in (
        repr(task),
        str(task),
        f"{task}",
        f"{task.secrets}",
        task.to_yaml(),
        f"{task.secrets['TOKEN']!s:>40}",
    ):
        assert "hunter2" not in shown
    assert "hunter2" in task.to_yaml(show_secrets=True)


def test_secrets_given_anew_complete_a_printed_task():
    """A task printed without secrets asks for them, and is equal when it gets them."""
    task = parse("secrets: {TOKEN: hunter2, B: TOKEN}\nworkdir: ~/$TOKEN/$B")
    with pytest.raises(InvalidSpecError, match="has no value"):
        Task.from_yaml_str(task.to_yaml())
    assert Task.from_yaml_str(task.to_yaml(), secrets=task.secrets) == task


@pytest.mark.parametrize("secret", ["hunter2", "x" * 80 + "hunter2", "quo'te\"hunter2\nand\\back"])
def test_secrets_do_not_show_in_errors(secret):
    """An error about a value that a secret was put into does not tell it, nor does its pickle."""
    error = error_of("file_mounts: {'/$TOKEN': {mode: $TOKEN}}", secrets={"TOKEN": secret})
    for shown in (str(error), repr(error), pickle.dumps(error).decode("latin-1"), repr(vars(error))):
        assert "hunter2" not in shown
        assert "xxxxx" not in shown


def test_a_secret_is_told_by_its_type_only():
    """A secret of a wrong type is refused without its value."""
    error = error_of("secrets: {TOKEN: [hunter2]}")
    assert "hunter2" not in str(error)


def test_secret_does_not_change():
    """A Secret is frozen, and equal by value to other Secrets only."""
    secret = Secret("x")
    with pytest.raises(AttributeError):
        secret._value = "y"  # type: ignore[misc]
    assert secret == Secret("x")
    assert secret != "x"


def test_from_yaml_reads_a_file(tmp_path):
    """A file is read as UTF-8, with or without a byte-order mark, and named in errors."""
    path = tmp_path / "task.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\nrun: echo \xc3\xa9\n")
    assert Task.from_yaml(path) == Task(name="x", run="echo é")
    path.write_text("runn: x")
    with pytest.raises(InvalidSpecError) as caught:
        Task.from_yaml(str(path))
    assert (caught.value.file, caught.value.line) == (str(path), 1)


def test_file_that_cannot_be_read(tmp_path):
    """A missing file, a directory and one that is not UTF-8 are typed errors that name it."""
    (tmp_path / "latin").write_bytes(b"name: \xe9\xff")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin"):
        with pytest.raises(InvalidSpecError, match="cannot be read") as caught:
            Task.from_yaml(path)
        assert caught.value.file == str(path)


def test_scripts_are_printed_as_blocks():
    """A script of several lines stays readable in the printed YAML."""
    assert "run: |\n  echo a\n  echo b\n" in Task(run="echo a\necho b\n").to_yaml()


def test_models_do_not_import_yaml():
    """Importing the models does not import PyYAML; reading does."""
    code = "import sys, skylib.models.task, skylib.models.unsupported; sys.exit('yaml' in sys.modules)"
    checkout = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0


def test_a_database_in_a_task_is_not_shown():
    """No task may set it, and it is refused later; until then its password stands in no repr."""
    url = "postgresql://u:hunter2@h/x"
    for config in ({"db": url}, {"db": [url]}, {"db": "u:hunter2@h"}, {"ssh": {"parallel": url}}, {"dbb": url}):
        assert "hunter2" not in repr(Task(run="x", config=config))
    assert "'timeout_s': 5" in repr(Task(config={"provision": {"timeout_s": 5}}))
