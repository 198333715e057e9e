"""Bad input: each kind gets one sentence that names the field and says what would be right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2

from orchestrator.api.validation import (
    check_cluster_spec,
    check_network_spec,
    check_node_spec,
    check_service_spec,
    parse_image_reference,
)
from tests.unit.api.support import web

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "digest"),
    [
        ("nginx", "", "nginx", "", ""),
        ("nginx:1.27", "", "nginx", "1.27", ""),
        ("library/nginx", "", "library/nginx", "", ""),
        ("registry:5000/team/web:1_x-y", "registry:5000", "team/web", "1_x-y", ""),
        ("localhost/web", "localhost", "web", "", ""),
        ("reg.example.com/a/b/c", "reg.example.com", "a/b/c", "", ""),
        ("[fd00::1]:5000/web", "[fd00::1]:5000", "web", "", ""),
        (f"web@sha256:{HEX}", "", "web", "", f"sha256:{HEX}"),
        (f"a.b/web:t@sha256:{HEX}", "a.b", "web", "t", f"sha256:{HEX}"),
        ("a__b/c--d.e_f", "", "a__b/c--d.e_f", "", ""),
    ],
)
def test_image_references_are_read(text: str, domain: str, path: str, tag: str, digest: str) -> None:
    reference = parse_image_reference(text)
    assert (reference.domain, reference.path, reference.tag, reference.digest) == (domain, path, tag, digest)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "an image is needed"),
        ("Nginx", "upper-case letters"),
        ("nginx:", "'' is not a tag"),
        ("nginx:-1", "'-1' is not a tag"),
        ("nginx:" + "x" * 129, "is not a tag"),
        ("nginx@sha256:12", "is not a digest"),
        (f"nginx@sha256:{HEX.upper()}", "64 hexadecimal digits in lower case"),
        ("a//b", "a part of the name is empty"),
        ("/a", "a part of the name is empty"),
        ("a/", "a part of the name is empty"),
        ("a___b", "single separators"),
        ("a..b", "single separators"),
        (".a/b", "is not a registry"),
        ("-a:5/b", "is not a registry"),
        ("a b", "single separators"),
        (HEX, "an image id, not a name"),
        ("a/" * 130 + "b", "longer than 255"),
        ("nginx:1:2", "malformed"),
    ],
)
def test_malformed_image_references(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse_image_reference(text)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_a_sentence(text: str) -> None:
    try:
        reference = parse_image_reference(text)
    except InvalidArgument:
        return
    tag = f":{reference.tag}" if reference.tag else ""
    digest = f"@{reference.digest}" if reference.digest else ""
    domain = f"{reference.domain}/" if reference.domain else ""
    assert f"{domain}{reference.path}{tag}{digest}" == text


Spoil = Callable[[types_pb2.ServiceSpec], object]


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=round((value - int(value)) * 1e9))


def port(spec: types_pb2.ServiceSpec, **fields: int) -> None:
    spec.ports.add(**fields)  # type: ignore[arg-type]


def mount(spec: types_pb2.ServiceSpec, kind: str, **fields: object) -> None:
    spec.task.container.mounts.add(type=types_pb2.MountType.Value(f"MOUNT_TYPE_{kind}"), **fields)  # type: ignore[arg-type]


def setting(path: str, value: object) -> Spoil:
    *parents, name = path.split(".")

    def spoil(spec: types_pb2.ServiceSpec) -> None:
        target: object = spec
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, Duration):
            getattr(target, name).CopyFrom(value)
        elif isinstance(value, list):
            getattr(target, name).extend(value)
        elif isinstance(value, dict):
            getattr(target, name).update(value)
        else:
            setattr(target, name, value)

    return spoil


BAD_SERVICES: list[tuple[Spoil, str]] = [
    (setting("name", ""), "name: a name is needed"),
    (setting("name", "a.b"), "name: 'a.b' must consist of letters"),
    (setting("name", "-a"), "begin and end with a letter or digit"),
    (setting("name", "x" * 64), "has 64 characters; at most 63"),
    (setting("labels", {"a b": "c"}), "labels: 'a b' is not a label name"),
    (lambda spec: spec.ClearField("mode"), "mode: say replicated"),
    (setting("mode.replicated.replicas", 20_001), "mode.replicated.replicas: 20001 replicas are too many"),
    (setting("task.container.image", "UPPER"), "task.container.image: image reference 'UPPER' is malformed"),
    (setting("task.container.env", ["=x"]), "task.container.env: '=x' is not of the form NAME=VALUE"),
    (setting("task.container.env", ["A"]), "is not of the form NAME=VALUE"),
    (setting("task.container.env", ["A=\0"]), "NUL character"),
    (setting("task.container.directory", "work"), "task.container.directory: 'work' must be an absolute path"),
    (setting("task.container.user", "a b"), "not USER or USER:GROUP"),
    (setting("task.container.user", "a\x1bb"), "not USER or USER:GROUP"),
    (setting("task.container.groups", ["a\nb"]), "groups: 'a.nb' is not a group"),
    (setting("task.container.groups", ["wheel", ""]), "groups: '' is not a group"),
    (setting("task.container.dns.options", ["a\x1bb"]), "is not a resolver option"),
    (setting("task.container.hostname", "a_b"), "task.container.hostname: 'a_b' is not a host name"),
    (setting("task.container.stop_signal", "SIGNONE"), "task.container.stop_signal: 'SIGNONE' is not a signal"),
    (setting("task.container.stop_signal", "65"), "not a signal"),
    (setting("task.container.stop_signal", "TERM+9999999"), "not a signal"),
    (setting("task.container.stop_signal", "SIGRTMIN+99"), "not a signal"),
    (setting("task.container.stop_grace_period", seconds(-1)), "stop_grace_period: -1 s is negative"),
    (setting("task.container.hosts", ["web 1.2.3.4"]), "is not `ADDRESS NAME`"),
    (setting("task.container.dns.nameservers", ["ns1"]), "'ns1' is not an IP address"),
    (setting("task.container.capabilities_add", ["NET ADMIN"]), "is not a capability"),
    (setting("task.container.sysctls", {"x": "1"}), "'x' is not a kernel setting"),
    (setting("task.container.health.test", ["curl"]), "health.test: begins with 'curl'"),
    (setting("task.container.health.test", ["CMD"]), "CMD needs a program"),
    (setting("task.container.health.test", ["CMD-SHELL", "a", "b"]), "exactly one line"),
    (setting("task.container.health.interval", seconds(0.0001)), "health.interval: 0.0001 s is too short"),
    (lambda spec: spec.task.container.ulimits.add(name="files"), "'files' is not a limit"),
    (lambda spec: spec.task.container.ulimits.add(name="nofile", soft=2, hard=1), "soft limit 2 is above"),
    (setting("task.limits.memory_bytes", 4095 << 10), "task.limits.memory_bytes: .* at least 4 MiB"),
    (setting("task.limits.nano_cpus", 999_999), "task.limits.nano_cpus: .* out of range"),
    (setting("task.reservations.memory_bytes", -1), "task.reservations.memory_bytes: -1 bytes are too little"),
    (setting("task.reservations.pids", 1), "can be limited, but not reserved"),
    (setting("task.restart.delay", seconds(-1)), "task.restart.delay: -1 s is negative"),
    (setting("task.restart.condition", 9), "task.restart.condition: the value 9 is not known"),
    (setting("task.placement.constraints", ["node.role"]), r"constraints: .* not of the form KEY==VALUE"),
    (setting("task.placement.constraints", ["node.colour == red"]), '"node.colour" is not an attribute'),
    (setting("task.placement.constraints", ["node.role == boss"]), "a role is manager or worker"),
    # A thousand of them ended the leader's work with a RecursionError, again and again: no service was looked after any more.
    (setting("task.placement.spread", ["node.id"] * 65), "spread: has 65 entries; at most 64"),
    # Each task that finds no place repeats it in its status.
    (
        setting("task.placement.constraints", [f"node.id == {'a' * 4096}"]),
        "constraints: has 4107 characters; at most 4096",
    ),
    (setting("task.placement.spread", ["zone"]), '"zone" is not an attribute'),
    (setting("task.placement.constraints", ["a\n==b"]), r"constraints: 'a\\n==b' must not contain line breaks"),
    (setting("task.placement.spread", ["a\x1b[1m"]), r"spread: 'a\\x1b\[1m' must not contain line breaks"),
    (setting("update.delay", seconds(-5)), "update.delay: -5 s is negative"),
    (setting("update.max_failure_ratio", 1.5), "update.max_failure_ratio: 1.5 is out of range"),
    (setting("rollback.failure_action", types_pb2.FAILURE_ACTION_ROLLBACK), "a rollback cannot roll back"),
    (lambda spec: port(spec, target_port=0), "ports.target_port: 0 is not a port"),
    (lambda spec: port(spec, target_port=80, published_port=65536), "ports.published_port: 65536 is not a port"),
    (lambda spec: mount(spec, "BIND", source="data", target="/data"), "needs an absolute path of the host"),
    (lambda spec: mount(spec, "VOLUME", source="data", target="data"), "must be an absolute path in the container"),
    (lambda spec: mount(spec, "VOLUME", source="a/b", target="/data"), "'a/b' is not a volume name"),
    (
        lambda spec: mount(spec, "VOLUME", source="{{.Task.Slott}}", target="/data"),
        "'{{.Task.Slott}}' is no placeholder",
    ),
    (lambda spec: spec.task.container.env.append("A={{ user }}"), "task.container: '{{ user }}' is no placeholder"),
    (lambda spec: mount(spec, "VOLUME", source="ab", target="/"), "cannot be mounted over"),
    (lambda spec: mount(spec, "VOLUME", source="ab", target="//./"), "cannot be mounted over"),
    (lambda spec: mount(spec, "TMPFS", source="ab", target="/t"), "a tmpfs mount has no source"),
    (lambda spec: mount(spec, "VOLUME", source="ab", target="/t", tmpfs_size_bytes=1), "for tmpfs mounts only"),
    (lambda spec: mount(spec, "UNSPECIFIED", target="/t"), "say bind, volume or tmpfs"),
    (lambda spec: spec.task.networks.add(network=""), "a network's name is empty"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD_SERVICES)
def test_a_bad_service_is_refused_with_a_sentence(spoil: Spoil, sentence: str) -> None:
    spec = web()
    check_service_spec(spec)
    spoil(spec)
    with pytest.raises(InvalidArgument, match=sentence):
        check_service_spec(spec)


@pytest.mark.parametrize(
    "spoil",
    [
        setting("task.container.health.test", ["CMD-SHELL", "true\0"]),
        setting("task.container.health.test", ["CMD", "true", "x" * (129 << 10)]),
        setting("task.container.sysctls", {"net.core.somaxconn": "1\0"}),
    ],
)
def test_what_no_program_can_be_given_is_refused(spoil: Spoil) -> None:
    """Such a service was created, and then no task of it ever became healthy, or started: "embedded null byte", "Argument list
    too long"."""
    spec = web()
    spoil(spec)
    with pytest.raises(InvalidArgument, match=r"NUL character|at most 131072 are allowed"):
        check_service_spec(spec)


@pytest.mark.parametrize("mode", [types_pb2.PUBLISH_MODE_INGRESS, types_pb2.PUBLISH_MODE_HOST])
@pytest.mark.parametrize(
    ("number", "protocol", "purpose"),
    [
        (2377, types_pb2.PORT_PROTOCOL_TCP, "2377/tcp is the swarm's own port, for joining"),
        (2378, types_pb2.PORT_PROTOCOL_UNSPECIFIED, "2378/tcp is the swarm's own port, for its managers"),
        (7946, types_pb2.PORT_PROTOCOL_TCP, "7946/tcp is the swarm's own port, for its node daemons"),
        (4789, types_pb2.PORT_PROTOCOL_UDP, "4789/udp is the swarm's own port, for overlay networks"),
    ],
)
def test_the_swarms_own_ports_are_not_published(number: int, protocol: int, purpose: str, mode: int) -> None:
    spec = web()
    for published in range(number, number + 2):  # also where a range covers it
        port(spec, target_port=published, published_port=published, protocol=protocol, mode=mode)
    with pytest.raises(InvalidArgument, match=f"ports.published_port: {purpose}; choose another"):
        check_service_spec(spec)
    del spec.ports[:]
    port(spec, target_port=number, published_port=80, protocol=protocol, mode=mode)  # inside, a container may have it
    other = types_pb2.PORT_PROTOCOL_TCP if protocol == types_pb2.PORT_PROTOCOL_UDP else types_pb2.PORT_PROTOCOL_UDP
    port(spec, target_port=80, published_port=number, protocol=other, mode=mode)
    check_service_spec(spec)


def test_a_range_of_too_many_ports_is_said_to_be_that() -> None:
    spec = web()
    for number in range(1, 65536):
        port(spec, target_port=number, published_port=number)
    with pytest.raises(InvalidArgument, match="ports: has 65535 entries; at most 1024 are allowed"):
        check_service_spec(spec)


def test_what_does_not_go_together_is_refused() -> None:
    spec = web()
    port(spec, target_port=80, published_port=80)
    port(spec, target_port=81, published_port=80)
    with pytest.raises(InvalidArgument, match="ports: port 80/tcp is published twice"):
        check_service_spec(spec)
    spec.ports[1].protocol = types_pb2.PORT_PROTOCOL_UDP
    check_service_spec(spec)
    spec.endpoint_mode = types_pb2.ENDPOINT_MODE_DNSRR
    with pytest.raises(InvalidArgument, match="endpoint mode dnsrr"):
        check_service_spec(spec)
    spec = web()
    spec.task.limits.memory_bytes, spec.task.reservations.memory_bytes = 8 << 20, 9 << 20
    with pytest.raises(InvalidArgument, match="reserves more memory than its limit"):
        check_service_spec(spec)
    for same in ("/a/", "//a", "/./a", "/a/."):
        spec = web()
        mount(spec, "TMPFS", target="/a")
        mount(spec, "TMPFS", target=same)
        with pytest.raises(InvalidArgument, match="two mounts have the target '/a'"):
            check_service_spec(spec)
    spec = web()
    getattr(spec.mode, "global").SetInParent()
    spec.task.placement.max_replicas_per_node = 1
    with pytest.raises(InvalidArgument, match="is for replicated services"):
        check_service_spec(spec)
    spec = web()
    spec.update.parallelism, spec.update.all_at_once = 2, True
    with pytest.raises(InvalidArgument, match="cannot be combined"):
        check_service_spec(spec)


def test_a_service_with_everything_passes() -> None:
    spec = web()
    container = spec.task.container
    container.env.extend(["A=", "B=x=y"])
    container.hosts.append("10.0.0.1 db db.local")
    container.health.test.extend(["CMD", "true"])
    container.health.interval.CopyFrom(seconds(1))
    container.stop_signal = "SIGRTMIN+3"
    container.user = "1000:1000"
    container.groups.extend(["wheel", "1001"])
    container.ulimits.add(name="nofile", soft=1024, hard=-1)
    container.sysctls["net.core.somaxconn"] = "1024"
    container.capabilities_add.extend(["NET_ADMIN", "CAP_CHOWN", "ALL"])
    spec.task.limits.memory_bytes = 4 << 20
    spec.task.limits.nano_cpus = 1_000_000
    spec.task.placement.constraints.extend(["node.labels.zone==a", "node.role != manager"])
    spec.task.placement.spread.append("node.labels.zone")
    mount(spec, "BIND", source="/srv", target="/srv")
    mount(spec, "VOLUME", source="data", target="/data", read_only=True)
    mount(spec, "TMPFS", target="/tmp", tmpfs_size_bytes=1 << 20, tmpfs_mode=0o1777)
    port(spec, target_port=80)
    check_service_spec(spec)
    spec.mode.replicated.replicas = 0
    check_service_spec(spec)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": ""}, "name: a name is needed"),
        ({"driver": "bridge"}, "driver: 'bridge' is not known; .* overlay"),
        ({"subnet": "10.0.0.1/24"}, "subnet: '10.0.0.1/24' is not an IPv4 network"),
        ({"subnet": "fd00::/64"}, "is not an IPv4 network"),
        ({"subnet": "10.0.0.0/30"}, "prefix length from 8 to 29"),
        ({"subnet": "127.0.0.0/24"}, "is reserved.*127.0.0.0/8: loopback"),
        ({"subnet": "0.5.0.0/16"}, "is reserved.*0.0.0.0/8"),
        ({"subnet": "169.254.7.0/24"}, "is reserved.*link-local"),
        ({"subnet": "169.0.0.0/8"}, "has reserved addresses in it"),
        ({"subnet": "239.1.0.0/16"}, "is reserved.*multicast"),
        ({"subnet": "255.255.255.0/24"}, "is reserved.*broadcast"),
        ({"gateway": "10.0.0.1"}, "together with a subnet only"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, "not a host address of"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0.255"}, "not a host address of"),
        ({"mtu": 100}, "mtu: 100 is out of range"),
        ({"ingress": True, "internal": True}, "neither internal nor attachable"),
    ],
)
def test_bad_networks(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        check_network_spec(types_pb2.NetworkSpec(**{"name": "backend", **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"default_registry": "registry"}, "default_registry: 'registry' is not a registry"),
        ({"default_registry": "a.b/c"}, "is not a registry"),
        ({"address_pools": ["10.0.0.0/8", "10.1.0.0/16"]}, "10.1.0.0/16 and 10.0.0.0/8 overlap"),
        ({"address_pools": ["x"]}, "address_pools: 'x' is not an IPv4 network"),
        ({"subnet_prefix_length": 30}, "subnet_prefix_length: 30 is out of range"),
        ({"address_pools": ["10.0.0.0/16"], "subnet_prefix_length": 12}, "larger than the pool"),
        ({"heartbeat_period": seconds(0.01)}, "heartbeat_period: 0.01 s is too short"),
        ({"node_certificate_validity": seconds(60)}, "node_certificate_validity: 60 s is too short"),
    ],
)
def test_bad_clusters(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        check_cluster_spec(types_pb2.ClusterSpec(**fields))  # type: ignore[arg-type]
    check_cluster_spec(types_pb2.ClusterSpec(name="default", default_registry="10.0.0.1:5000"))


def test_bad_nodes() -> None:
    spec = types_pb2.NodeSpec()
    with pytest.raises(InvalidArgument, match="desired_role: say worker or manager"):
        check_node_spec(spec)
    spec.desired_role = types_pb2.NODE_ROLE_WORKER
    spec.availability = 9  # type: ignore[assignment]
    with pytest.raises(InvalidArgument, match="availability: say active, pause or drain"):
        check_node_spec(spec)
