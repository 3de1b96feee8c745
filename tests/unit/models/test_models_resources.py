"""Resources: loose forms in, frozen values out, alternatives merged and expanded."""

from __future__ import annotations

import pickle

import attrs
import pytest

from skylib.errors import InvalidSpecError
from skylib.models.infra import Infra
from skylib.models.resources import Resources
from skylib.models.units import Amount


def test_constructor_takes_the_forms_of_the_yaml():
    """Every argument is read as in YAML, so that both ways give one value."""
    made = Resources(infra="ssh/lab", cpus="4+", memory="16GB", accelerators="A100:8", ports="80,81", autostop="1h")
    read = Resources.from_mapping(
        {"infra": "ssh/lab", "cpus": "4+", "memory": 16, "gpus": {"A100": 8}, "ports": ["80-81"], "autostop": 60}
    )
    assert made == read
    assert hash(made) == hash(read)


def test_parsed_values():
    """What is stored has types of its own."""
    found = Resources(infra="ssh/lab", cpus="4+", memory="1TB", disk_size="1TB", image_id={"us-east-1": "ami"})
    assert found.infra == Infra(cloud="ssh", region="lab")
    assert found.cpus == Amount(value=4, at_least=True)
    assert found.memory == Amount(value=1024)
    assert found.disk_size == 1024
    assert found.image_id == {"us-east-1": "ami"}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"cpus": "four"}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"memory": "16XB"}, "memory"),
        ({"memory": -1}, "memory"),
        ({"accelerators": "A100:x"}, "accelerators"),
        ({"accelerators": ["A100", 3]}, "accelerators[1]"),
        ({"gpus": "A100:x"}, "gpus"),
        ({"gpus": "A100", "accelerators": "A100"}, "gpus"),
        ({"accelerator_args": {"runtime": "x"}}, "accelerator_args.runtime"),
        ({"use_spot": "yes"}, "use_spot"),
        ({"disk_size": 0}, "disk_size"),
        ({"disk_tier": "huge"}, "disk_tier"),
        ({"network_tier": "low"}, "network_tier"),
        ({"max_hourly_cost": 0}, "max_hourly_cost"),
        ({"max_hourly_cost": float("nan")}, "max_hourly_cost"),
        ({"image_id": 5}, "image_id"),
        ({"image_id": {"us-east-1": 5}}, "image_id[us-east-1]"),
        ({"ports": "http"}, "ports"),
        ({"labels": {"version": 1}}, "labels.version"),
        ({"labels": ["a"]}, "labels"),
        ({"instance_type": 4}, "instance_type"),
        ({"instance_type": " "}, "instance_type"),
        ({"priority": 1001}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"volumes": {"path": "/x"}}, "volumes"),
        ({"volumes": [{"pth": "/x"}]}, "volumes[0].pth"),
        ({"autostop": {"dwn": True}}, "autostop.dwn"),
        ({"infra": 7}, "infra"),
        ({"infra": "aws", "region": "x"}, "infra"),
        ({"cloud": "aws/x"}, "cloud"),
        ({"cloud": "aws", "region": "a/b/c"}, "region"),
        ({"any_of": {"cpus": 1}}, "any_of"),
        ({"any_of": [{"cpus": 1}, {"cpus": "x"}]}, "any_of[1].cpus"),
        ({"any_of": [{"cpu": 1}]}, "any_of[0].cpu"),
        ({"any_of": ["A100"]}, "any_of[0]"),
        ({"any_of": [{"ordered": [{"cpus": 1}]}]}, "any_of[0].ordered"),
        ({"any_of": [{"cpus": 1}], "ordered": [{"cpus": 1}]}, "ordered"),
        ({"acelerators": "A100"}, "acelerators"),
        ({"_cluster_config_overrides": {}}, "_cluster_config_overrides"),
    ],
)
def test_wrong_values_name_their_field(wrong, field):
    """A wrong value is an InvalidSpecError, which is a ValueError, with the field's dotted name."""
    with pytest.raises(InvalidSpecError) as caught:
        Resources.from_mapping(wrong)
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("key", [field.name for field in attrs.fields(Resources)])
def test_null_means_the_default(key):
    """A key without a value is as if it were not there."""
    assert Resources.from_mapping({key: None}) == Resources()


@pytest.mark.parametrize(
    ("older", "infra"),
    [
        ({"cloud": "AWS", "region": "us-east-1", "zone": "us-east-1a"}, "aws/us-east-1/us-east-1a"),
        ({"cloud": "aws", "zone": "us-east-1a"}, "aws/*/us-east-1a"),
        ({"region": "us-east-1"}, "*/us-east-1"),
        ({"cloud": "kubernetes", "region": "ctx/with/slash"}, "k8s/ctx/with/slash"),
        ({"cloud": "*"}, "*"),
    ],
)
def test_older_location_keys(older, infra):
    """cloud, region and zone mean the infra of the same name."""
    assert Resources.from_mapping(older) == Resources(infra=infra)


def test_infra_that_may_be_anything_is_none():
    """A place with only wildcards is the same as no place."""
    assert Resources(infra="*").infra is None


def test_any_of_is_merged_with_the_base():
    """Each alternative has the base's fields; its own replace them, and labels add up."""
    found = Resources(
        cpus="4+",
        labels={"team": "a"},
        any_of=[{"infra": "ssh/one", "labels": {"kind": "b"}}, {"infra": "local", "cpus": 2, "labels": {"team": "c"}}],
    )
    first, second = found.any_of
    assert first == Resources(cpus="4+", infra="ssh/one", labels={"team": "a", "kind": "b"})
    assert second == Resources(cpus=2, infra="local", labels={"team": "c"})
    assert found.candidates() == (first, second)
    assert not found.is_ordered


def test_resources_as_alternatives():
    """A Resources as an alternative lays its own fields over the base's."""
    assert Resources(cpus=4, any_of=[Resources(infra="local")]) == Resources(cpus=4, any_of=[{"infra": "local"}])


def test_alternative_can_take_a_restriction_back():
    """An alternative resets what the base asked for, and this survives printing."""
    found = Resources(infra="aws", use_spot=True, cpus=4, any_of=[{"infra": "*", "use_spot": False, "cpus": None}])
    assert found.candidates() == (Resources(),)
    assert Resources.from_mapping(found.to_plain()) == found


def test_ordered_keeps_its_order():
    """Candidates of `ordered` come in the order of preference."""
    found = Resources(ordered=[{"infra": "ssh/b"}, {"infra": "ssh/a"}])
    assert [str(each.infra) for each in found.candidates()] == ["ssh/b", "ssh/a"]
    assert found.is_ordered


def test_older_keys_in_alternatives_refine_the_base():
    """A region alone in an alternative belongs to the base's cloud."""
    found = Resources.from_mapping({"cloud": "aws", "any_of": [{"region": "us-east-1"}, {"cloud": "gcp"}]})
    assert [str(each.infra) for each in found.candidates()] == ["aws/us-east-1", "gcp"]


def test_accelerator_choices_are_expanded():
    """Each accelerator of a choice is a candidate of its own, inside alternatives, too."""
    found = Resources(accelerators=["A100:2", "V100"], cpus=4)
    assert [str(each.accelerator) for each in found.candidates()] == ["A100:2", "V100"]
    assert found.is_ordered
    nested = Resources(accelerators={"A100", "V100"}, ordered=[{"infra": "ssh/a"}, {"infra": "ssh/b"}])
    assert [(str(each.infra), str(each.accelerator)) for each in nested.candidates()] == [
        ("ssh/a", "A100"),
        ("ssh/a", "V100"),
        ("ssh/b", "A100"),
        ("ssh/b", "V100"),
    ]


def test_accelerator_of_a_choice_is_not_one():
    """Asking a choice for its one accelerator is an error; none is None."""
    assert Resources().accelerator is None
    with pytest.raises(InvalidSpecError, match="candidates"):
        _ = Resources(accelerators=["A100", "V100"]).accelerator


def test_plain_request_is_its_only_candidate():
    """Without alternatives the request itself is the candidate."""
    assert Resources(cpus=4).candidates() == (Resources(cpus=4),)


def test_override_reaches_the_alternatives():
    """override changes base and alternatives, attrs.evolve the base alone."""
    found = Resources(cpus=4, any_of=[{"infra": "local"}, {"cpus": 2}])
    assert [str(each.cpus) for each in found.override(cpus=8).candidates()] == ["8", "8"]
    assert [str(each.cpus) for each in attrs.evolve(found, cpus=8).candidates()] == ["4", "2"]


def test_repr_is_short():
    """repr holds what was asked for, in the forms that the constructor takes."""
    found = Resources(infra="ssh/lab", cpus="4+", any_of=[{"memory": 8}])
    assert repr(found) == "Resources(infra='ssh/lab', cpus='4+', any_of=[{'memory': 8}])"
    assert eval(repr(found)) == found


def test_frozen():
    """Resources do not change."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Resources().cpus = 4  # type: ignore[misc]


def test_survives_pickling():
    """Pickled and back it is equal, alternatives included."""
    found = Resources(labels={"a": "b"}, any_of=[{"infra": "local"}, {"accelerators": ["A100", "V100"]}])
    assert pickle.loads(pickle.dumps(found)) == found


def test_error_survives_pickling_with_its_field():
    """The error of a wrong value keeps its facts in another process."""
    with pytest.raises(InvalidSpecError) as caught:
        Resources(cpus="x")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.field, again.reason, str(again)) == ("cpus", caught.value.reason, str(caught.value))
