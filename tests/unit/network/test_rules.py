"""From a view to the tables of a host and of a container."""

from __future__ import annotations

from swarm import names
from swarm.v1 import types_pb2 as types

from agent.network.host_rules import host_table, published_ports
from agent.network.interface import HostPort, NetworkView
from agent.network.layout import node_zone
from agent.network.ruleset import Table
from agent.network.task_rules import balancing, bridge_macs, task_tables
from agent.network.wiring import Wiring, wire
from tests.unit.network.cluster import (
    BACKEND,
    CLOSED,
    INGRESS,
    attachment,
    endpoint,
    overlay,
    realised,
    service,
    view,
)

HTTP = types.PortConfig(published_port=8080, target_port=80)
DNS = types.PortConfig(published_port=5353, target_port=53, protocol=types.PORT_PROTOCOL_UDP)


def _wiring(seen: NetworkView, task: str = "t1", *networks: types.Network) -> Wiring:
    chosen = networks or (INGRESS, BACKEND)
    addresses = {INGRESS.id: "10.255.0.5", BACKEND.id: "10.0.16.5", CLOSED.id: "10.0.32.5"}
    return wire(task, [attachment(one, addresses[one.id]) for one in chosen], realised(seen), hostname="h")


def _tables(seen: NetworkView, wiring: Wiring) -> tuple[Table, ...]:
    return task_tables(wiring, balancing(seen), bridge_macs(seen))


def _full(serving: bool = True) -> NetworkView:
    return view(
        overlay(
            INGRESS,
            endpoint(INGRESS, "t1", "n1", "10.255.0.5", serving=serving),
            endpoint(INGRESS, "t2", "n2", "10.255.0.6", serving=serving),
            service(INGRESS, "web", "", ports=[HTTP, DNS]),
        ),
        overlay(
            BACKEND,
            endpoint(BACKEND, "t1", "n1", "10.0.16.5", serving=serving),
            endpoint(BACKEND, "t2", "n2", "10.0.16.6", serving=serving),
            service(BACKEND, "web", "10.0.16.2"),
        ),
        overlay(CLOSED),
    )


def test_the_default_route_leads_through_the_first_network_that_has_one() -> None:
    seen = _full()
    both = _wiring(seen, "t1", INGRESS, CLOSED, BACKEND)
    assert [(one.name, one.vni) for one in both.interfaces] == [("eth0", 4098), ("eth1", 4097), ("eth2", 4096)]
    assert both.default_route is both.interfaces[1]
    assert both.primary is both.interfaces[0]
    assert _wiring(seen, "t1", CLOSED, INGRESS).default_route.ingress  # type: ignore[union-attr]
    assert _wiring(seen, "t1", CLOSED).default_route is None
    assert Wiring.from_json(both.to_json()) == both


def test_published_ports_lead_to_serving_tasks() -> None:
    assert [(port.key, port.target, port.backends) for port in published_ports(_full(), {})] == [
        ("tcp . 8080", 80, ("10.255.0.5", "10.255.0.6")),
        ("udp . 5353", 53, ("10.255.0.5", "10.255.0.6")),
    ]
    assert {port.backends for port in published_ports(_full(serving=False), {})} == {()}


def test_a_port_without_a_task_refuses() -> None:
    seen = _full(serving=False)
    table = host_table(published_ports(seen, {}), realised(seen).values(), "n1")
    assert set(table.sets["refused"].elements) == {"tcp . 8080", "udp . 5353"}
    assert not table.sets["ports"].elements


def test_host_mode_leads_to_the_task_on_this_node_while_it_serves() -> None:
    port = types.PortConfig(published_port=9000, target_port=90, mode=types.PUBLISH_MODE_HOST)
    for serving, expected in ((True, ("10.0.16.5",)), (False, ())):
        seen = view(
            overlay(BACKEND, endpoint(BACKEND, "t1", "n1", "10.0.16.5", serving=serving)),
            host_ports=(HostPort("t1", port),),
        )
        (found,) = published_ports(seen, {"t1": _wiring(seen, "t1", BACKEND)})
        assert found.backends == expected


def test_a_port_moves_between_two_tasks_in_host_mode() -> None:
    """The task that goes is still listed beside the one that comes: the port belongs to the one that serves."""
    port = types.PortConfig(published_port=9000, target_port=90, mode=types.PUBLISH_MODE_HOST)
    seen = view(
        overlay(
            BACKEND,
            endpoint(BACKEND, "new", "n1", "10.0.16.6"),
            endpoint(BACKEND, "old", "n1", "10.0.16.5", serving=False),
        ),
        host_ports=(HostPort("new", port), HostPort("old", port)),
    )
    new = wire("new", [attachment(BACKEND, "10.0.16.6")], realised(seen), hostname="h")
    (found,) = published_ports(seen, {"old": _wiring(seen, "old", BACKEND), "new": new})
    assert found.backends == ("10.0.16.6",)


def test_internal_networks_are_not_translated_to_the_outside() -> None:
    seen = _full()
    rules = "\n".join(host_table((), realised(seen).values(), "n1").chains["source_nat"].rules)
    assert "oifname != @bridges ip saddr { 10.0.16.0/20 } masquerade" in rules


def test_a_virtual_ip_without_a_task_is_refused_but_known() -> None:
    seen = _full(serving=False)
    table, _ = _tables(seen, _wiring(seen))
    assert not table.sets["vips"].elements
    assert set(table.sets["addresses"].elements) == {"10.0.16.2"}


def test_a_container_sees_the_virtual_ips_of_its_own_networks() -> None:
    seen = _full()
    table, departure = _tables(seen, _wiring(seen))
    assert set(table.sets["vips"].elements) == {"10.0.16.2"}
    assert departure.family == "netdev"
    (closed,) = _tables(seen, _wiring(seen, "t1", CLOSED))
    assert not closed.sets["vips"].elements
    assert "arrival_mark" not in closed.chains


def test_every_nodes_bridge_has_a_mark_and_a_zone() -> None:
    seen = _full()
    table, departure = _tables(seen, _wiring(seen))
    for number in (1, 2, 3):
        mac = names.bridge_mac(number)
        assert f"{mac} : 0x530000{number:02x}" in table.chains["arrival_mark"].rules[0]
        assert f"{mac} : {node_zone(number)}" in table.chains["arrival_zone"].rules[0]
        assert f"0x530000{number:02x} : {mac}" in departure.chains["egress"].rules[0]
    assert 0 < node_zone(65536) <= 65535


def test_a_change_of_one_service_changes_one_chain() -> None:
    wiring = _wiring(_full())
    before, _ = _tables(_full(), wiring)
    grown = view(
        *_full().overlays[:1],
        overlay(
            BACKEND,
            *_full().overlays[1].endpoints,
            *_full().overlays[1].services,
            service(BACKEND, "other", "10.0.16.3"),
            endpoint(BACKEND, "o1", "n2", "10.0.16.9", service_id="other"),
        ),
    )
    after, _ = _tables(grown, wiring)
    assert {name for name in after.chains if after.chains[name] != before.chains.get(name)} == {"vip_0a001003"}
