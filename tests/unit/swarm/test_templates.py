"""Placeholders: what each stands for, what is refused, and that what comes out can lead nowhere else."""

from __future__ import annotations

import pytest
from swarm.errors import InvalidArgument
from swarm.templates import PLACEHOLDERS, SAMPLE, expand_container, expanded, values_of
from swarm.v1 import types_pb2 as types

TASK = types.Task(id="t1", service_id="s1", service_name="web", slot=2, node_id="n1")
SPEC = types.ServiceSpec(name="web", labels={"tier": "front", "a.b": "dotted", "up": "../../etc"})
NODE = types.NodeDescription(hostname="host-a", os="linux", architecture="amd64")
VALUES = values_of(TASK, SPEC, NODE)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("no placeholder", "no placeholder"),
        ("{{.Service.ID}} {{.Service.Name}}", "s1 web"),
        ("{{ .Node.ID }}/{{.Node.Hostname}}", "n1/host-a"),
        ("{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}", "linux-amd64"),
        ("{{.Task.ID}} {{.Task.Name}} {{- .Task.Slot -}}", "t1 web.2.t1 2"),
        ('{{.Service.Labels.tier}} {{index .Service.Labels "a.b"}} [{{.Service.Labels.none}}]', "front dotted []"),
        ('{{"{{"}}.Task.Slot}}', "{{.Task.Slot}}"),
    ],
)
def test_each_placeholder_stands_for_something_of_the_task(text: str, filled: str) -> None:
    assert expanded(text, VALUES) == filled


def test_the_slot_of_a_global_task_is_its_node() -> None:
    task = types.Task(id="t1", service_name="web", node_id="n1")
    assert expanded("{{.Task.Slot}} {{.Task.Name}}", values_of(task, SPEC, NODE)) == "n1 web.n1.t1"


@pytest.mark.parametrize("text", ["{{.Task.Slott}}", "{{}}", "{{ user }}", "{{.Service.Labels}}", "{{if .Task.Slot}}"])
def test_others_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"is no placeholder; there are \.Service\.ID, .*\.Task\.Slot"):
        expanded(text, VALUES)


def test_the_check_knows_each_placeholder() -> None:
    for name in PLACEHOLDERS:
        assert expanded("{{" + name + "}}", SAMPLE) == "11"


def test_a_container_is_filled_in_and_the_spec_stays() -> None:
    container = types.ContainerSpec(
        hostname="{{.Service.Name}}-{{.Task.Slot}}", env=["A=1", "ON={{.Node.Hostname}}"],
        mounts=[types.Mount(type=types.MOUNT_TYPE_VOLUME, source="data-{{.Task.Slot}}", target="/data")],
    )  # fmt: skip
    filled = expand_container(container, VALUES)
    assert (filled.hostname, list(filled.env), filled.mounts[0].source) == ("web-2", ["A=1", "ON=host-a"], "data-2")
    assert container.hostname == "{{.Service.Name}}-{{.Task.Slot}}"


def test_a_container_without_placeholders_is_left_as_it_is() -> None:
    container = types.ContainerSpec(hostname="a", env=["A={1}"])
    assert expand_container(container, VALUES) is container


def test_what_comes_out_must_be_a_name() -> None:
    volume = types.Mount(type=types.MOUNT_TYPE_VOLUME, source="{{.Service.Labels.up}}", target="/data")
    with pytest.raises(InvalidArgument, match=r"becomes '\.\./\.\./etc', which is no volume's name"):
        expand_container(types.ContainerSpec(mounts=[volume]), VALUES)
    with pytest.raises(InvalidArgument, match=r"becomes '\.\./\.\./etc', which is none"):
        expand_container(types.ContainerSpec(hostname="{{.Service.Labels.up}}"), VALUES)
