"""What nodes are told of a service: its names on its networks, its published ports on the ingress network."""

from __future__ import annotations

from swarm.v1 import types_pb2 as types

from orchestrator.dispatcher.endpoints import endpoints_of, service_endpoints_of

PORT = types.PortConfig(target_port=80, published_port=8080, protocol=types.PORT_PROTOCOL_TCP)
HOST_PORT = types.PortConfig(target_port=80, published_port=8080, mode=types.PUBLISH_MODE_HOST)


def service(*ports: types.PortConfig) -> types.Service:
    return types.Service(
        id="s", spec=types.ServiceSpec(name="web", ports=ports), published_ports=ports,
        virtual_ips=[types.VirtualIp(network_id="default", address="10.0.0.2")],
    )  # fmt: skip


def test_published_ports_are_told_on_the_ingress_network_though_it_has_no_virtual_ip() -> None:
    found = {endpoint.network_id: endpoint for endpoint in service_endpoints_of(service(PORT), "ingress", "default")}
    assert set(found) == {"default", "ingress"}
    assert list(found["ingress"].ports) == [PORT]
    assert list(found["default"].ports) == []
    assert found["default"].virtual_ip == "10.0.0.2"


def test_without_ingress_ports_a_service_is_not_on_the_ingress_network() -> None:
    for ports in ((), (HOST_PORT,)):
        assert {e.network_id for e in service_endpoints_of(service(*ports), "ingress", "default")} == {"default"}


def test_a_tasks_own_host_name_is_told_with_its_placeholders_filled_in() -> None:
    container = types.ContainerSpec(hostname="{{.Node.Hostname}}-{{.Task.Slot}}")
    revision = types.ServiceRevision(id="r", spec=types.ServiceSpec(task=types.TaskSpec(container=container)))
    node = types.Node(id="n", description=types.NodeDescription(hostname="host-a"))
    task = types.Task(
        id="t", service_name="web", slot=3, node_id="n", revision_id="r",
        attachments=[types.NetworkAttachment(network_id="default", address="10.0.0.5/20")],
    )  # fmt: skip
    assert [endpoint.hostname for endpoint in endpoints_of(task, node, revision)] == ["host-a-3"]
    assert [endpoint.hostname for endpoint in endpoints_of(task, node, None)] == ["web.3"]
