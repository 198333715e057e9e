"""The allocator: what is unique in the cluster is given once, and freed things come round as late as possible."""

from __future__ import annotations

import ipaddress
import time

import pytest
from swarm.v1.types_pb2 import (
    ENDPOINT_MODE_DNSRR,
    PORT_PROTOCOL_UDP,
    PUBLISH_MODE_HOST,
    PUBLISH_MODE_INGRESS,
    TASK_STATE_NEW,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Cluster,
    ClusterSpec,
    Network,
    NetworkAttachmentConfig,
    NetworkSpec,
    Node,
    NodeDescription,
    PortConfig,
    PublishMode,
    Service,
    ServiceRevision,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
)

from orchestrator.allocator import Rotation, ports, step
from orchestrator.allocator.ports import FIRST_PORT, LAST_PORT, SWARM_PORTS
from orchestrator.store import Change, Create, SetDesiredState, SetTaskStatus, Snapshot, Update, copy_of
from orchestrator.store.tables import NetworkTable


def network(id_: str, *, subnet: str = "", gateway: str = "", ingress: bool = False) -> Network:
    return Network(id=id_, spec=NetworkSpec(name=id_, subnet=subnet, gateway=gateway, ingress=ingress))


def service(id_: str, *ports: PortConfig, networks: tuple[str, ...] = ()) -> list[Service | ServiceRevision]:
    spec = ServiceSpec(name=id_, ports=list(ports))
    for name in networks:
        spec.task.networks.append(NetworkAttachmentConfig(network=name, aliases=[f"{id_}-alias"]))
    revision = ServiceRevision(id=f"{id_}-1", service_id=id_, number=1, spec=spec)
    return [Service(id=id_, spec=spec, revision_id=revision.id), revision]


def task(slot: int, service_id: str = "web", state: TaskState.ValueType = TASK_STATE_NEW) -> Task:
    return Task(
        id=f"{service_id}-t{slot}",
        service_id=service_id,
        revision_id=f"{service_id}-1",
        slot=slot,
        status=TaskStatus(state=state),
        desired_state=TASK_STATE_RUNNING,
    )


def snapshot(*objects: Node | ServiceRevision | Task | Service | Network | Cluster) -> Snapshot:
    return Snapshot().with_changes([Create(obj) for obj in objects])


def allocate(snap: Snapshot, rotation: Rotation | None = None) -> tuple[Snapshot, list[Change]]:
    changes = list(step(snap, None, 5.0, rotation or Rotation()).changes)
    return snap.with_changes(changes), changes


BASE = (network("default"), network("ingress", ingress=True))


def test_networks_get_a_vni_a_subnet_and_a_gateway() -> None:
    snap, _ = allocate(snapshot(*BASE))
    first, second = snap.networks["default"], snap.networks["ingress"]
    assert {first.vni, second.vni} == {4096, 4097}
    assert {first.subnet, second.subnet} == {"10.0.0.0/20", "10.0.16.0/20"}
    assert ipaddress.ip_address(first.gateway) == ipaddress.ip_network(first.subnet)[1]
    assert allocate(snap)[1] == []


def test_chosen_subnets_keep_clear_of_users_subnets_and_of_the_hosts() -> None:
    mine = network("mine", subnet="10.0.0.0/18", gateway="10.0.0.9")
    host = Node(id="n", description=NodeDescription(address="10.1.65.3"))
    snap, _ = allocate(snapshot(mine, host, *BASE))
    assert (snap.networks["mine"].subnet, snap.networks["mine"].gateway) == ("10.0.0.0/18", "10.0.0.9")
    assert {snap.networks["default"].subnet, snap.networks["ingress"].subnet} == {"10.0.64.0/20", "10.0.80.0/20"}


def test_chosen_subnets_keep_clear_of_the_hosts_whole_site_while_there_is_room() -> None:
    host = Node(id="n", description=NodeDescription(address="10.0.65.3"))
    snap, _ = allocate(snapshot(host, *BASE))
    assert {found.subnet for found in snap.networks} == {"10.1.0.0/20", "10.1.16.0/20"}
    narrow = Cluster(id="c", spec=ClusterSpec(address_pools=["10.0.64.0/18"]))
    snap, _ = allocate(snapshot(host, narrow, *BASE))
    assert {found.subnet for found in snap.networks} == {"10.0.80.0/20", "10.0.96.0/20"}
    narrow.spec.address_pools[0] = "10.0.64.0/20"
    snap, _ = allocate(snapshot(host, narrow, *BASE))
    assert {found.subnet for found in snap.networks} == {""}


def test_one_more_of_thousands_of_networks_is_made_in_no_time() -> None:
    """Each subnet of the pool was compared with each network: the leader stood still for seconds, and again in each of its
    rounds where the pool was used up."""
    editor = NetworkTable().edit()
    for number in range(2000):
        used = ipaddress.IPv4Network((int(ipaddress.IPv4Address("10.0.0.0")) + (number << 12), 20))
        made = network(f"n{number}")
        made.vni, made.subnet, made.gateway = 4096 + number, str(used), str(used[1])
        editor.put(made)
    table = editor.finish()
    assert isinstance(table, NetworkTable)
    snap = Snapshot(networks=table).with_changes([Create(network("one-more"))])
    began = time.process_time()
    changes = step(snap, [], 5.0, Rotation()).changes
    assert time.process_time() - began < 0.7
    assert snap.with_changes(changes).networks["one-more"].subnet == "10.125.0.0/20"


def test_pools_are_the_clusters() -> None:
    cluster = Cluster(id="c", spec=ClusterSpec(address_pools=["172.30.0.0/24"], subnet_prefix_length=25))
    snap, _ = allocate(snapshot(cluster, network("a"), network("b"), network("c")))
    assert sorted(found.subnet for found in snap.networks) == ["", "172.30.0.0/25", "172.30.0.128/25"]


def test_a_service_gets_a_virtual_ip_on_each_network_and_its_tasks_an_address() -> None:
    snap, _ = allocate(
        snapshot(*BASE, network("back"), *service("web", networks=("default", "back")), task(1), task(2))
    )
    web = snap.services["web"]
    assert [vip.network_id for vip in web.virtual_ips] == ["default", "back"]
    used = [vip.address for vip in web.virtual_ips]
    for found in snap.tasks:
        assert found.status.state == TASK_STATE_PENDING
        assert [at.network_id for at in found.attachments] == ["default", "back"]
        assert list(found.attachments[0].aliases) == ["web-alias"]
        for at in found.attachments:
            address = ipaddress.ip_interface(at.address)
            assert address.network == ipaddress.ip_network(snap.networks[at.network_id].subnet)
            assert at.mac == "02:42:" + ":".join(f"{byte:02x}" for byte in address.ip.packed)
            used.append(str(address.ip))
    gateways = {found.gateway for found in snap.networks}
    assert len(used) == len(set(used)) == 6 and not gateways & set(used)


def test_services_without_virtual_ip() -> None:
    objects = service("web")
    objects[0].spec.endpoint_mode = ENDPOINT_MODE_DNSRR
    snap, _ = allocate(snapshot(*BASE, *objects))
    assert not snap.services["web"].virtual_ips


def test_ports_are_chosen_once_and_kept() -> None:
    objects = service("web", PortConfig(target_port=80), PortConfig(target_port=53, protocol=PORT_PROTOCOL_UDP))
    snap, _ = allocate(snapshot(*BASE, *objects, *service("api", PortConfig(target_port=80))))
    chosen = [port.published_port for name in ("web", "api") for port in snap.services[name].published_ports]
    assert all(30_000 <= port <= 32_767 for port in chosen)
    assert chosen[0] != chosen[2]
    moved = copy_of(snap.services["web"])
    moved.spec.ports.add(target_port=443, published_port=8443)
    again, _ = allocate(snap)
    assert again.services["web"].published_ports == snap.services["web"].published_ports

    after, _ = allocate(snap.with_changes([Update(moved)]))
    assert [port.published_port for port in after.services["web"].published_ports] == [*chosen[:2], 8443]


@pytest.mark.parametrize(
    ("asked", "chosen"), [([0, 8080], [30_000, 8080]), ([8080, 0], [8080, 30_000]), ([0, 0], [30_000, 30_001])]
)
@pytest.mark.parametrize("mode", [PUBLISH_MODE_INGRESS, PUBLISH_MODE_HOST])
def test_a_target_port_that_is_published_twice_keeps_its_numbers(
    asked: list[int], chosen: list[int], mode: PublishMode.ValueType
) -> None:
    """`service create --publish 80`, then `--publish-add 8080:80`: the leader chose another number for the first one in each
    round, and each round's entry was the event that began the next. The log grew without end; nobody could use the port."""
    wanted = [PortConfig(target_port=80, published_port=number, mode=mode) for number in asked]
    rotation = Rotation()
    snap, _ = allocate(snapshot(*BASE, *service("web", *wanted)), rotation)
    assert [port.published_port for port in snap.services["web"].published_ports] == chosen
    assert allocate(snap, rotation)[1] == []


def test_a_number_that_was_given_up_does_not_stay_in_place_of_a_chosen_one() -> None:
    asked = PortConfig(target_port=80, published_port=8080)
    snap, _ = allocate(snapshot(*BASE, *service("web", asked, PortConfig(target_port=80))))
    fewer = copy_of(snap.services["web"])
    del fewer.spec.ports[0]
    after, _ = allocate(snap.with_changes([Update(fewer)]))
    assert [port.published_port for port in after.services["web"].published_ports] == [30_000]


def test_a_chosen_port_is_none_that_another_service_has_in_host_mode() -> None:
    taken = [PortConfig(target_port=80, published_port=port, mode=PUBLISH_MODE_HOST) for port in range(30_000, 32_767)]
    snap, _ = allocate(snapshot(*BASE, *service("api", *taken), *service("web", PortConfig(target_port=80))))
    assert [port.published_port for port in snap.services["web"].published_ports] == [32_767]


def test_a_chosen_port_is_none_that_was_chosen_for_another_service_in_host_mode() -> None:
    """After a change of leader the same number was chosen for a port of the mesh, which then answered on the hosts in place of
    the tasks that had it there."""
    open_port = PortConfig(target_port=80, mode=PUBLISH_MODE_HOST)
    snap, _ = allocate(snapshot(*BASE, *service("api", open_port)))
    snap = snap.with_changes([Create(obj) for obj in service("web", PortConfig(target_port=80))])
    snap = snap.with_changes(step(snap, ["web"], 5.0, Rotation()).changes)
    chosen = [port.published_port for name in ("api", "web") for port in snap.services[name].published_ports]
    assert chosen == [30_000, 30_001]


def test_a_new_leader_looks_at_many_chosen_ports_in_no_time() -> None:
    """Each of them was compared with those of all services: 1,500 held up a new leader for seconds before it did anything."""
    objects = [obj for number in range(1500) for obj in service(f"s{number}", PortConfig(target_port=80))]
    snap, _ = allocate(snapshot(*BASE, *objects))
    began = time.process_time()
    assert allocate(snap)[1] == []
    assert time.process_time() - began < 1


def test_a_chosen_port_is_none_of_the_swarms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(FIRST_PORT <= number <= LAST_PORT for _, number in SWARM_PORTS)
    monkeypatch.setattr(ports, "FIRST_PORT", 2377)
    monkeypatch.setattr(ports, "LAST_PORT", 2379)
    snap, _ = allocate(snapshot(*BASE, *service("web", PortConfig(target_port=80))))
    assert [port.published_port for port in snap.services["web"].published_ports] == [2379]


def test_tasks_of_services_with_ingress_ports_join_the_ingress_network() -> None:
    wanted = (PortConfig(target_port=80, published_port=80), PortConfig(target_port=81, mode=PUBLISH_MODE_HOST))
    snap, _ = allocate(snapshot(*BASE, *service("web", *wanted), task(1)))
    (found,) = snap.tasks
    assert [at.network_id for at in found.attachments] == ["default", "ingress"]
    assert [(port.target_port, port.mode) for port in found.host_ports] == [(81, PUBLISH_MODE_HOST)]
    assert found.host_ports[0].published_port >= 30_000


def test_a_full_network_makes_tasks_wait_and_say_so() -> None:
    small = network("small", subnet="10.9.0.0/29")
    snap, _ = allocate(
        snapshot(*BASE, small, *service("web", networks=("small",)), *(task(slot) for slot in range(1, 9)))
    )
    waiting = [found for found in snap.tasks if found.status.state == TASK_STATE_NEW]
    assert len(waiting) == 4, "of 6 addresses the gateway and the virtual IP take one each"
    assert {found.status.message for found in waiting} == {'network "small" has no free address'}
    assert allocate(snap)[1] == [], "the same message is not written twice"


def test_who_waits_for_one_network_takes_no_address_of_another() -> None:
    """A task on two networks, of which one was full, kept the last address of the other one from everybody, for as long as it
    waited: "network "half" has no free address", and one was free."""
    full, half = network("full", subnet="10.9.0.0/30"), network("half", subnet="10.9.1.0/30")
    both = service("both", networks=("half", "full"))
    snap, _ = allocate(snapshot(*BASE, full, half, *service("holder", networks=("full",))))
    assert len(snap.services["holder"].virtual_ips) == 1, "the gateway has the only other address"
    one = service("one", networks=("half",))
    one[0].spec.endpoint_mode = ENDPOINT_MODE_DNSRR
    snap, _ = allocate(snap.with_changes([Create(obj) for obj in (*both, *one, task(1, "both"), task(1, "one"))]))
    assert snap.tasks["both-t1"].status.message == 'network "full" has no free address'
    assert snap.tasks["one-t1"].status.state == TASK_STATE_PENDING
    assert not snap.services["both"].virtual_ips


def test_a_missing_network_makes_tasks_wait() -> None:
    _, changes = allocate(snapshot(*BASE, *service("web", networks=("gone",)), task(1)))
    assert any(isinstance(change, SetTaskStatus) and "gone" in change.status.message for change in changes)


def test_addresses_come_round_as_late_as_possible_also_under_a_new_leader() -> None:
    rotation = Rotation()
    snap, _ = allocate(snapshot(*BASE, *service("web"), task(1), task(2)), rotation)
    first = {at.address for found in snap.tasks for at in found.attachments}
    ended = []
    for found in snap.tasks:
        moved = copy_of(found)
        moved.status.state, moved.desired_state = TASK_STATE_SHUTDOWN, TASK_STATE_SHUTDOWN
        ended.append(moved)

    snap = snap.with_changes([Update(moved) for moved in ended])
    assert len(snap.tasks.addresses("default")) == 0
    later, _ = allocate(snap.with_changes([Create(task(3))]), rotation)
    assert later.tasks["web-t3"].attachments[0].address not in first
    newest = later.tasks["web-t3"].attachments[0].address
    other_leader, _ = allocate(later.with_changes([Create(task(4))]), Rotation())
    assert other_leader.tasks["web-t4"].attachments[0].address not in {*first, newest}


def test_addresses_stay_reserved_until_the_task_is_confirmed_stopped() -> None:
    small = network("small", subnet="10.9.0.0/29")
    snap, _ = allocate(
        snapshot(*BASE, small, *service("web", networks=("small",)), *(task(slot) for slot in range(1, 5)))
    )

    running = copy_of(snap.tasks["web-t1"])
    running.status.state, running.node_id = TASK_STATE_RUNNING, "n1"
    snap = snap.with_changes([Update(running), SetDesiredState("web-t1", TASK_STATE_SHUTDOWN), Create(task(5))])
    snap, _ = allocate(snap)
    assert snap.tasks["web-t5"].status.state == TASK_STATE_NEW
    snap = snap.with_changes([SetTaskStatus("web-t1", TaskStatus(state=TASK_STATE_SHUTDOWN))])
    snap, _ = allocate(snap)
    assert snap.tasks["web-t5"].attachments[0].address == running.attachments[0].address
