"""Who is a member, by the store: the first transaction, revocation and roles."""

from __future__ import annotations

import random

import pytest
from swarm.errors import FailedPrecondition, HistoryCut, InvalidArgument
from swarm.identity import ANONYMOUS_PEER, JOINING_GRACE, LOCAL_PEER, Peer, Role
from swarm.ids import id_source
from swarm.v1 import types_pb2

from orchestrator.identity.authority import RootAuthority
from orchestrator.identity.membership import (
    bootstrap_objects,
    check_reachable,
    manager_addresses,
    new_node,
    split_advertised,
    with_role,
)
from orchestrator.identity.revocation import check_history, is_demoted, is_revoked, revoke
from orchestrator.store import Change, Create, Snapshot, Update, copy_of

NOW = 1_700_000_000.0
MANAGER, WORKER = types_pb2.NODE_ROLE_MANAGER, types_pb2.NODE_ROLE_WORKER


def beginning(spec: types_pb2.ClusterSpec, address: str = "10.1.0.1") -> list[Change]:
    return bootstrap_objects(
        spec,
        cluster_id="c1",
        authority=RootAuthority.create("c1", NOW),
        node_id="m1",
        hostname="host1",
        address=address,
        availability=types_pb2.AVAILABILITY_UNSPECIFIED,
        ids=id_source(random.Random(1)),
    )


@pytest.fixture
def snapshot() -> Snapshot:
    return Snapshot().with_changes(beginning(types_pb2.ClusterSpec()))


def test_a_cluster_begins_with_a_manager_and_two_networks(snapshot: Snapshot) -> None:
    assert snapshot.cluster is not None
    assert (snapshot.cluster.spec.name, snapshot.cluster.next_node_number) == ("default", 2)
    assert snapshot.cluster.join_secrets.worker != snapshot.cluster.join_secrets.manager
    node = snapshot.nodes["m1"]
    assert (node.number, node.role, node.manager.address) == (1, MANAGER, "10.1.0.1:2378")
    assert node.spec.availability == types_pb2.AVAILABILITY_ACTIVE
    assert sorted(network.spec.name for network in snapshot.networks) == ["default", "ingress"]
    assert snapshot.networks.ingress() is not None
    assert manager_addresses(snapshot) == ["10.1.0.1:2378"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"address_pools": ["x"]}, "address_pools: 'x' is not an IPv4 network"),
        ({"address_pools": ["127.0.0.0/8"]}, "is reserved"),
        ({"address_pools": ["10.9.0.0/24"]}, "there is no room for the subnets"),  # of one network only
        (
            {"address_pools": ["10.1.0.0/24"], "subnet_prefix_length": 25},
            "beside this host's own address 10.1.0.1; give",
        ),
    ],
)
def test_a_cluster_does_not_begin_with_settings_that_leave_no_room(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        beginning(types_pb2.ClusterSpec(**fields))  # type: ignore[arg-type]
    beginning(types_pb2.ClusterSpec(address_pools=["10.1.0.0/24"], subnet_prefix_length=26))


def test_a_host_inside_a_networks_subnet_does_not_join(snapshot: Snapshot) -> None:
    mine = types_pb2.Network(id="n", spec=types_pb2.NetworkSpec(name="mine", subnet="10.7.0.0/16"))
    taken = snapshot.with_changes([Create(mine)])
    with pytest.raises(
        FailedPrecondition, match=r'"h2" has the address 10.7.0.2, .*of network "mine".* remove network'
    ):
        check_reachable(taken, "h2", "10.7.0.2")
    check_reachable(taken, "h2", "10.8.0.2:2378")
    default = next(copy_of(network) for network in snapshot.networks if network.spec.name == "default")
    default.subnet = "10.0.0.0/20"
    with pytest.raises(FailedPrecondition, match=r'10.0.0.0/20, the subnet of network "default".*--default-addr-pool'):
        check_reachable(snapshot.with_changes([Update(default)]), "h2", "10.0.3.2")


def test_a_host_that_only_itself_can_reach_joins_a_swarm_on_the_same_host_only(snapshot: Snapshot) -> None:
    with pytest.raises(InvalidArgument, match=r'"h2" advertises 127.0.0.1, at which no other host reaches it'):
        check_reachable(snapshot, "h2", "127.0.0.1")
    alone = Snapshot().with_changes(beginning(types_pb2.ClusterSpec(), "127.0.0.1"))
    check_reachable(alone, "h2", "127.0.0.1:2379")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.1", ("10.0.0.1", 2378)),
        ("10.0.0.1:9", ("10.0.0.1", 9)),
        ("fd00::1", ("fd00::1", 2378)),
        ("[fd00::1]:9", ("fd00::1", 9)),
    ],
)
def test_advertised_addresses(text: str, parts: tuple[str, int]) -> None:
    assert split_advertised(text) == parts


@pytest.mark.parametrize("text", ["", ":1", "a:b", "a:0", "a:70000"])
def test_malformed_advertised_addresses(text: str) -> None:
    with pytest.raises(InvalidArgument):
        split_advertised(text)


def peer(name: str, role: Role = Role.WORKER, *, cluster: str = "c1", age: float = 1e6) -> Peer:
    return Peer(name, role, cluster, NOW + 1e6, NOW - age)


def test_members_people_and_local_callers_are_welcome(snapshot: Snapshot) -> None:
    for welcome in (LOCAL_PEER, ANONYMOUS_PEER, peer("m1", Role.MANAGER), peer("Ann", Role.ADMIN)):
        assert not is_revoked(snapshot, welcome, NOW)


def test_strangers_are_not(snapshot: Snapshot) -> None:
    assert is_revoked(snapshot, peer("w9"), NOW)
    assert is_revoked(snapshot, peer("m1", cluster="c2"), NOW)
    assert is_revoked(snapshot, peer("Ann", Role.ADMIN, cluster="c2"), NOW)


def test_a_node_that_just_joined_may_be_newer_than_a_replica(snapshot: Snapshot) -> None:
    assert not is_revoked(snapshot, peer("w9", age=JOINING_GRACE / 2), NOW)
    assert not is_revoked(Snapshot(), peer("w9"), NOW)


def test_a_removed_node_is_never_believed_again(snapshot: Snapshot) -> None:
    assert snapshot.cluster is not None
    cluster = copy_of(snapshot.cluster)
    revoke(cluster, "w9", NOW)
    assert is_revoked(snapshot.with_changes([Update(cluster)]), peer("w9", age=0), NOW)


def test_who_was_left_behind_by_a_recovery_is_told_the_epoch_and_others_are_not(snapshot: Snapshot) -> None:
    assert snapshot.cluster is not None
    cluster = copy_of(snapshot.cluster)
    revoke(cluster, "m8", NOW, epoch=7)
    revoke(cluster, "w9", NOW)
    cut = snapshot.with_changes([Update(cluster)])
    with pytest.raises(HistoryCut, match=r"without manager m8 \(epoch 7\).*swarm leave --force"):
        check_history(cut, peer("m8", Role.MANAGER))
    for other in (peer("w9"), peer("m1", Role.MANAGER), LOCAL_PEER, ANONYMOUS_PEER):
        check_history(cut, other)


def test_a_demoted_manager_is_still_a_member_but_no_manager(snapshot: Snapshot) -> None:
    old = peer("m1", Role.MANAGER)
    assert not is_demoted(snapshot, old, NOW)
    leaving = copy_of(snapshot.nodes["m1"])
    leaving.spec.desired_role = WORKER
    assert not is_demoted(snapshot.with_changes([Update(leaving)]), old, NOW), "it has not left the log yet"
    left = snapshot.with_changes([Update(with_role(leaving, WORKER))])
    assert is_demoted(left, old, NOW)
    assert not is_revoked(left, old, NOW), "it has to renew its certificate"
    assert not is_demoted(left, peer("m1", Role.MANAGER, age=JOINING_GRACE / 2), NOW), "the replica may be behind"
    assert is_demoted(left, peer("m1", Role.MANAGER, age=JOINING_GRACE / 2), NOW, leading=True), "the leader is not"
    assert not is_demoted(left, peer("m1", Role.WORKER), NOW)


def test_the_list_of_removed_nodes_forgets_what_time_has_dealt_with(snapshot: Snapshot) -> None:
    assert snapshot.cluster is not None
    cluster = copy_of(snapshot.cluster)
    revoke(cluster, "w1", NOW)
    revoke(cluster, "w2", NOW + 10)
    revoke(cluster, "w2", NOW + 20)
    assert [entry.node_id for entry in cluster.revoked_nodes] == ["w1", "w2"]
    revoke(cluster, "w3", NOW + 90 * 86400 + 5)
    assert [entry.node_id for entry in cluster.revoked_nodes] == ["w2", "w3"]


def test_a_promoted_node_gets_a_cluster_address_and_a_demoted_one_loses_it() -> None:
    node = new_node(
        node_id="w1",
        number=2,
        role=WORKER,
        hostname="h",
        address="10.1.0.2",
        availability=types_pb2.AVAILABILITY_ACTIVE,
    )
    promoted = with_role(node, MANAGER)
    assert promoted.manager.address == "10.1.0.2:2378"
    assert not with_role(promoted, WORKER).HasField("manager")
