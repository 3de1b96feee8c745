"""Properties of the models: what is printed reads back equal, whatever text is in it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import InvalidSpecError
from skylib.models.accelerators import Accelerator, Accelerators, parse_accelerators
from skylib.models.frozen_map import FrozenMap, freeze, thaw
from skylib.models.infra import Infra
from skylib.models.resources import Resources
from skylib.models.substitution import substitute, substitute_in
from skylib.models.task import Task
from skylib.models.units import Amount, format_number, parse_amount, parse_memory, parse_ports
from skylib.models.yaml_source import read_documents

_YAMLISH = ["yes", "no", "1e3", "null", "~", "0x10", "1_000", "12:30", "2024-01-01", "- x", "a: b", "#c", "", " ", "|"]
_YAMLISH += ["'", '"', "\\", "\\n", "\n", "a\n\nb\n", " lead\nx", "trail \nx", "\ta", "%d", "&a", "*a", "!t", "=", "<<"]
_YAMLISH += [
    "$A",
    "${A}",
    "$B$A",
    "{{",
    "\u2028x\ny",
    "\x85",
    "\ufeff",
    "é",
    "😀",
    "a\r\nb",
    "---\n",
    "...",
    "? x",
    "@",
    "`",
]
_characters = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
texts = st.one_of(st.sampled_from(_YAMLISH), st.text(_characters, max_size=12))
words = texts.filter(lambda text: bool(text.strip()))
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,4}", fullmatch=True) | st.sampled_from(["A", "B"])
numbers = st.floats(min_value=1e-9, max_value=1e12) | st.integers(1, 10**6).map(float)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
amounts = st.builds(Amount, value=numbers, at_least=st.booleans())
memories = st.builds(Amount, value=numbers, at_least=st.booleans(), ratio=st.booleans())
devices = st.one_of(
    st.builds(Accelerator, name=st.sampled_from(["A100", "V100", "tpu-v4-8", "A100-80GB"]), count=numbers),
    st.builds(Accelerator, memory=amounts, count=numbers, manufacturer=st.sampled_from([None, "nvidia", "amd"])),
)
accelerators = st.one_of(devices, st.lists(devices, min_size=1, max_size=3), st.sets(devices, min_size=1, max_size=3))
infras = st.one_of(
    st.sampled_from(["local", "ssh/lab", "ssh", "aws/us-east-1/a", "*/r", "aws/*/z", "k8s/ctx/with/slash", "*"]),
)
ports = st.lists(st.integers(1, 65535) | st.sampled_from(["8000-8010", "80,443", "1-65535"]), max_size=4)
autostops = st.one_of(
    st.booleans(),
    st.integers(-1, 1000),
    st.sampled_from(["30m", "2h"]),
    st.fixed_dictionaries({}, optional={"idle_minutes": st.integers(0, 99), "down": st.booleans(), "hook": texts}),
)
_fields = {
    "infra": infras,
    "cpus": amounts,
    "memory": memories,
    "accelerators": accelerators,
    "accelerator_args": st.dictionaries(st.sampled_from(["tpu_vm", "tpu_name"]), scalars),
    "instance_type": words,
    "use_spot": st.booleans(),
    "disk_size": st.integers(1, 9999),
    "disk_tier": st.sampled_from(["low", "BEST"]),
    "local_disk": words,
    "max_hourly_cost": numbers,
    "image_id": words | st.dictionaries(words, words, max_size=2),
    "ports": ports,
    "labels": st.dictionaries(words, texts, max_size=2),
    "job_recovery": st.sampled_from(["none", "FAILOVER", {"recover_on_exit_codes": [3, 1]}, {}]),
    "autostop": autostops,
    "priority": st.integers(-1000, 1000),
    "volumes": st.lists(st.dictionaries(st.sampled_from(["path", "name"]), texts), max_size=2),
}
requests = st.fixed_dictionaries({}, optional=_fields)
overlays = st.fixed_dictionaries({}, optional={name: st.none() | field for name, field in _fields.items()})
resources = st.one_of(
    requests,
    st.builds(lambda base, entries: {**base, "any_of": entries}, requests, st.lists(overlays, max_size=3)),
    st.builds(lambda base, entries: {**base, "ordered": entries}, requests, st.lists(overlays, max_size=3)),
).map(lambda fields: Resources(**fields))
storages = st.fixed_dictionaries(
    {},
    optional={
        "source": words | st.lists(words, min_size=1, max_size=2),
        "mode": st.just("copy"),
        "persistent": st.booleans(),
    },
)
services = st.fixed_dictionaries({}, optional={"readiness_probe": words, "ports": trees, "tls": st.just({"keyfile": "$A"})})
variables = st.dictionaries(names, texts, max_size=3)
tasks = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "a-b", "1e3", "0x1", "null", "yes"]),
        "workdir": words | st.builds(lambda url, ref: {"url": url, "ref": ref}, words, st.none() | words),
        "num_nodes": st.integers(1, 10**6),
        "resources": resources,
        "envs": variables,
        "secrets": variables,
        "managed_secrets": st.lists(st.sampled_from(["A", "team.B", "secrets:C"]), unique=True),
        "file_mounts": st.dictionaries(words, words | storages, max_size=3),
        "volumes": st.dictionaries(words, words | st.dictionaries(words, scalars, max_size=2), max_size=2),
        "setup": texts,
        "run": texts | st.lists(texts, max_size=3),
        "service": services,
        "config": st.dictionaries(words, trees, max_size=3),
        "event_callback": words,
        "inputs": st.dictionaries(words, numbers, max_size=1),
        "api_server_access": st.booleans(),
        "timeout_s": st.floats(0.001, 1e9),
    },
).map(lambda fields: Task(**fields))


@given(tasks)
def test_printed_tasks_read_back_equal(task):
    """Parse, print, parse gives an equal task, with its secrets shown."""
    again = Task.from_yaml_str(task.to_yaml(show_secrets=True))
    assert again == task
    assert hash(again) == hash(task)
    assert again.to_yaml(show_secrets=True) == Task.from_yaml_str(again.to_yaml(show_secrets=True)).to_yaml(
        show_secrets=True
    )


@given(resources)
def test_printed_resources_read_back_equal(found):
    """What to_plain gives, from_mapping takes; each candidate is one request without a choice."""
    assert Resources.from_mapping(found.to_plain()) == found
    for candidate in found.candidates():
        assert not candidate.any_of
        assert not candidate.ordered
        assert candidate.accelerators is None or candidate.accelerator is not None
        assert Resources.from_mapping(candidate.to_plain()) == candidate


@given(texts, variables)
def test_text_reaches_a_task_as_it_was_written_quoted(text, values):
    """Any text in double quotes is read as it is; unknown names in it stay."""
    task = Task(run=text, workdir="x" + text, envs=values)
    again = Task.from_yaml_str(task.to_yaml())
    assert (again.run, again.workdir) == (text, "x" + text)


@given(amounts)
def test_counts_print_and_parse(amount):
    """str of a count reads back as the same count."""
    assert parse_amount(str(amount)) == amount


@given(memories)
def test_memory_prints_and_parses(amount):
    """str of an amount of memory reads back as the same amount."""
    assert parse_memory(str(amount)) == amount


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_print_and_parse(number):
    """The shortest text of a number is that number."""
    assert float(format_number(number)) == number


@given(devices)
def test_accelerators_print_and_parse(device):
    """str of an accelerator reads back as the same accelerator."""
    assert Accelerator.parse(str(device)) == device


@given(st.lists(devices, min_size=2, max_size=4, unique=True))
def test_order_of_accelerators_counts_only_in_lists(found):
    """A list keeps its order, a set has none."""
    assert parse_accelerators(found) == Accelerators(options=tuple(found), ordered=True)
    assert parse_accelerators(set(found)) == parse_accelerators(dict.fromkeys(map(str, reversed(found))))


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 50)), max_size=6))
def test_ports_cover_exactly_what_was_asked(asked):
    """Merged ranges hold the same ports, sorted, with a gap between each two."""
    wanted = [(first, min(first + more, 65535)) for first, more in asked]
    merged = parse_ports([f"{first}-{last}" for first, last in wanted])
    assert {port for each in merged for port in range(each.first, each.last + 1)} == {
        port for first, last in wanted for port in range(first, last + 1)
    }
    assert all(one.last + 1 < other.first for one, other in zip(merged, merged[1:]))
    assert parse_ports(merged) == merged


@given(st.text(max_size=12))
def test_parsers_of_text_fail_in_one_way(text):
    """Whatever the text, a parser gives a value that prints and reads back, or an InvalidSpecError."""
    for parse in (parse_amount, parse_memory, Infra.parse, Accelerator.parse):
        try:
            value = parse(text)
        except InvalidSpecError:
            continue
        assert parse(str(value)) == value


@given(texts, variables)
def test_substitution_is_one_pass(text, values):
    """Every known name is replaced by exactly its value, all else stays; values are not looked at again."""
    expected, position = "", 0
    for match in re.finditer(r"\$(\{)?([A-Za-z_][A-Za-z0-9_]*)(?(1)\})", text):
        expected += text[position : match.start()] + values.get(match[2], match[0])
        position = match.end()
    assert substitute(text, values) == expected + text[position:]


@given(trees)
def test_substitution_without_values_changes_nothing(tree):
    """With nothing to put in, a value stays as it is."""
    assert substitute_in(tree, {}) == tree


@given(names, texts, names)
def test_substitution_in_structure_keeps_the_structure(name, value, key):
    """A value lands in one text and adds nothing around it."""
    found = substitute_in({"a": [f"<${{{name}}}>"], "b": {key: 1}}, {name: value})
    assert found == {"a": [f"<{value}>"], "b": {key: 1}}


@given(trees)
def test_freezing_is_undone_by_thawing(tree):
    """Frozen values are hashable, equal when made again, and thaw to what they were."""
    frozen = freeze(tree)
    assert hash(frozen) == hash(freeze(tree))
    assert thaw(frozen) == tree


@given(st.dictionaries(names, st.integers()), st.randoms())
def test_frozen_maps_ignore_order(items, random):
    """Order matters neither for equality nor for the hash."""
    shuffled = list(items.items())
    random.shuffle(shuffled)
    assert FrozenMap(items) == FrozenMap(shuffled) == items
    assert hash(FrozenMap(items)) == hash(FrozenMap(shuffled))


@given(st.text(max_size=40) | st.lists(st.sampled_from(_YAMLISH + [": ", "\n", "  ", "[", "]", "{", "}"])).map("".join))
def test_reading_any_text_fails_in_one_way(text):
    """Any text is documents with lines inside it, or an InvalidSpecError with file and line."""
    try:
        places = [line for document in read_documents(text, file="f") for line in document.lines.values()]
    except InvalidSpecError as error:
        places = [error.line] if error.file == "f" else [0]
    assert all(1 <= line <= text.count("\n") + 2 for line in places)
