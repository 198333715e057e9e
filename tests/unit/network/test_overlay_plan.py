"""From a view to a host's devices and entries, and from one state to the next."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from swarm import names
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types

from agent.network import host_kernel, rtnetlink
from agent.network.layout import overlay_alias
from agent.network.overlay_plan import HostState, changes, desired, overlay_of
from tests.unit.network.cluster import BACKEND, CLOSED, INGRESS, PEERS, endpoint, overlay, realised, view


def _state(*overlays: object, peers: object = PEERS) -> HostState:
    seen = view(*overlays, peers=peers)  # type: ignore[arg-type]
    return desired(seen, realised(seen))


def test_only_remote_endpoints_are_entries() -> None:
    state = _state(
        overlay(BACKEND, endpoint(BACKEND, "here", "n1", "10.0.16.5"), endpoint(BACKEND, "there", "n2", "10.0.16.6"))
    )
    mac = names.endpoint_mac("10.0.16.6")
    assert state.forwards == {(4097, mac): "192.0.2.2"}
    assert state.neighbours == {(4097, "10.0.16.6"): mac}


def test_an_endpoint_of_a_node_that_is_gone_is_no_entry() -> None:
    assert not _state(overlay(BACKEND, endpoint(BACKEND, "lost", "n9", "10.0.16.6"))).forwards


def test_a_node_with_an_address_that_no_tunnel_can_lead_to_does_not_cut_the_others_off() -> None:
    odd = dispatcher.NodePeer(node_id="n4", address="host4.example", number=4)
    members = (endpoint(BACKEND, "odd", "n4", "10.0.16.9"), endpoint(BACKEND, "there", "n2", "10.0.16.6"))
    state = _state(overlay(BACKEND, *members), peers=(*PEERS, odd))
    assert set(state.forwards.values()) == {"192.0.2.2"}


def test_an_endpoint_that_does_not_serve_is_still_reachable() -> None:
    assert _state(overlay(BACKEND, endpoint(BACKEND, "there", "n2", "10.0.16.6", serving=False))).forwards


def test_ingress_knows_every_nodes_bridge() -> None:
    assert _state(overlay(INGRESS)).forwards == {
        (4096, names.bridge_mac(2)): "192.0.2.2",
        (4096, names.bridge_mac(3)): "192.0.2.3",
    }


def test_an_internal_network_has_no_gateway() -> None:
    seen = view(overlay(CLOSED), overlay(BACKEND))
    overlays = realised(seen)
    assert overlays[CLOSED.id].gateway == ""
    assert overlays[BACKEND.id].gateway == "10.0.16.1/20"


def test_the_mtu_leaves_room_for_the_tunnel() -> None:
    seen = view(overlay(BACKEND))
    assert overlay_of(seen, seen.overlays[0], 1400, local=True).mtu == 1350
    assert overlay_of(seen, seen.overlays[0], 0, local=True).mtu == 1450
    wished = types.Network()
    wished.CopyFrom(BACKEND)
    wished.spec.mtu = 9000
    asking = view(overlay(wished))
    assert overlay_of(asking, asking.overlays[0], 1500, local=True).mtu == 1450
    assert overlay_of(seen, seen.overlays[0], 1500, local=False).local == ""


def test_equal_states_need_no_changes() -> None:
    state = _state(overlay(INGRESS), overlay(BACKEND, endpoint(BACKEND, "there", "n2", "10.0.16.6")))
    assert not changes(state, state)


def test_an_endpoint_that_moves_changes_one_entry() -> None:
    old = _state(overlay(BACKEND, endpoint(BACKEND, "a", "n2", "10.0.16.6"), endpoint(BACKEND, "b", "n2", "10.0.16.7")))
    new = _state(overlay(BACKEND, endpoint(BACKEND, "a", "n3", "10.0.16.6"), endpoint(BACKEND, "b", "n2", "10.0.16.7")))
    found = changes(old, new)
    assert found.added_forwards == ((4097, names.endpoint_mac("10.0.16.6"), "192.0.2.3"),)
    assert not found.removed_forwards and not found.added_neighbours


def test_entries_go_with_their_endpoint_and_node() -> None:
    old = _state(overlay(INGRESS), overlay(BACKEND, endpoint(BACKEND, "a", "n2", "10.0.16.6")))
    new = _state(overlay(INGRESS), overlay(BACKEND, endpoint(BACKEND, "a", "n2", "10.0.16.6")), peers=PEERS[1:])
    found = changes(old, new)
    mac = names.endpoint_mac("10.0.16.6")
    assert set(found.removed_forwards) == {(4097, mac), (4096, names.bridge_mac(2))}
    assert found.removed_neighbours == ((4097, "10.0.16.6"),)


def test_a_device_that_goes_takes_its_entries_along() -> None:
    old = _state(overlay(INGRESS), overlay(BACKEND, endpoint(BACKEND, "a", "n2", "10.0.16.6")))
    found = changes(old, _state(overlay(INGRESS)))
    assert found.removed_overlays == (4097,)
    assert not found.removed_forwards and not found.removed_neighbours


def test_a_device_that_is_made_anew_gets_all_its_entries() -> None:
    state = _state(overlay(BACKEND, endpoint(BACKEND, "a", "n2", "10.0.16.6")))
    other = HostState({4097: replace(state.overlays[4097], mtu=1000)}, state.forwards, state.neighbours)
    found = changes(other, state)
    assert found.changed_overlays == (state.overlays[4097],)
    assert len(found.added_forwards) == len(found.added_neighbours) == 1


def test_a_device_that_somebody_removed_is_a_failure_that_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ip link delete` of a network's tunnel device: at the next task of that network elsewhere the node daemon failed
    unexpectedly, and the node had neither session nor manager until swarmd was restarted."""
    sockets = MagicMock()
    sockets.return_value.__enter__.return_value.execute.side_effect = list
    monkeypatch.setattr(host_kernel, "NetlinkSocket", sockets)
    monkeypatch.setattr(rtnetlink, "list_links", lambda _: [])
    before, after = _state(overlay(BACKEND)), _state(overlay(BACKEND, endpoint(BACKEND, "t2", "n2", "10.0.16.9")))
    found = changes(before, after)
    for half in (replace(found, added_forwards=()), replace(found, added_neighbours=())):
        with pytest.raises(OSError, match="sx1001 is gone"):
            host_kernel.carry_out(half)


def test_a_device_that_somebody_renamed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ip link set sw1001 name br-shop`: the node daemon failed unexpectedly, and again at each start."""
    bridge = rtnetlink.Link(7, "sw1001", overlay_alias(BACKEND.id), "bridge", 0, 1450, "", True)
    monkeypatch.setattr(host_kernel, "NetlinkSocket", MagicMock())
    for name in ("list_addresses", "list_neighbours"):
        monkeypatch.setattr(rtnetlink, name, lambda *_: [])
    for name, found in (("sw1001", [BACKEND.vni]), ("br-shop", []), ("br1001", [])):
        links = [replace(bridge, name=name)]
        monkeypatch.setattr(rtnetlink, "list_links", lambda _, links=links: links)
        assert list(host_kernel.read(()).overlays) == found


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", host_kernel.Underlay(9000, True)),
        ("203.0.113.1", host_kernel.Underlay(1500, True)),
        ("198.51.100.9", host_kernel.Underlay(1500, False)),
    ],
)
def test_an_address_of_the_loopback_interface_has_the_mtu_of_the_way_out(
    address: str, expected: host_kernel.Underlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts that announce an address of their loopback interface by a routing protocol: containers sent packets of 64 KiB that
    went through the tunnels in 45 fragments each, where anything let fragments pass."""
    links = [(1, "lo", 65536), (2, "eth0", 1500), (3, "eth1", 9000)]
    addresses = [(1, "127.0.0.1/8"), (1, "203.0.113.1/32"), (3, "192.0.2.1/24")]
    dumped = [rtnetlink.Link(index, name, "", "", 0, mtu, "", True) for index, name, mtu in links]
    monkeypatch.setattr(host_kernel, "NetlinkSocket", MagicMock())
    monkeypatch.setattr(rtnetlink, "list_links", lambda _: dumped)
    monkeypatch.setattr(rtnetlink, "list_addresses", lambda _: addresses)
    monkeypatch.setattr(rtnetlink, "default_route_link", lambda _: 2)
    assert host_kernel.underlay(address) == expected
