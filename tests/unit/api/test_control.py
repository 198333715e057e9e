"""What the API does to the store: creating, updating, removing, and what it refuses with which sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import pytest_asyncio
from swarm.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from swarm.identity import Role, peer_from_certificate
from swarm.keys import new_key_and_request
from swarm.tokens import parse_token
from swarm.v1 import control_pb2, types_pb2

from orchestrator.api.progress import STABLE_SECONDS
from orchestrator.consensus import Member, MemberStatus
from orchestrator.store import Change, Create, Result, Update, copy_of
from tests.unit.api.support import CONTEXT, DIGEST, Api, first, web


@pytest_asyncio.fixture
async def api() -> Api:
    return await Api().start()


async def create(api: Api, spec: types_pb2.ServiceSpec, request_id: str = "") -> control_pb2.CreateServiceResponse:
    return await api.service.CreateService(control_pb2.CreateServiceRequest(spec=spec, request_id=request_id), CONTEXT)


async def update(
    api: Api, service: types_pb2.Service, spec: types_pb2.ServiceSpec, request_id: str = ""
) -> types_pb2.Service:
    answer = await api.service.UpdateService(
        control_pb2.UpdateServiceRequest(
            reference=service.id, spec=spec, version=service.meta.version, request_id=request_id
        ),
        CONTEXT,
    )
    return answer.service


async def scale(api: Api, name: str, replicas: int) -> types_pb2.Service:
    spec = web(name, replicas=replicas)
    spec.task.container.image = "something/stale"
    answer = await api.service.UpdateService(control_pb2.UpdateServiceRequest(reference=name, spec=spec), CONTEXT)
    return answer.service


async def add_node(api: Api, node_id: str, role: types_pb2.NodeRole.ValueType, number: int) -> types_pb2.Node:
    node = types_pb2.Node(id=node_id, number=number, role=role)
    node.spec.desired_role = role
    node.description.hostname = f"host-{node_id}"
    if role == types_pb2.NODE_ROLE_MANAGER:
        node.manager.address = f"10.1.0.{number}:2378"
        api.log.members[node_id] = Member(node_id, node.manager.address)
    await api.transactions.commit([Create(node)])
    return api.snapshot.nodes[node_id]


# ------------------------------------------------------------------------------------------------------------- services


async def test_a_service_comes_with_its_first_revision_and_the_image_pinned(api: Api) -> None:
    service = (await create(api, web())).service
    assert service.spec.task.container.image_digest == DIGEST
    revision = api.snapshot.revisions[service.revision_id]
    assert (revision.number, revision.service_id) == (1, service.id)
    assert revision.spec == service.spec
    assert api.asked == ["nginx:1"]


async def test_the_same_request_id_is_the_same_service(api: Api) -> None:
    once = (await create(api, web(), "r1")).service
    again = (await create(api, web(), "r1")).service
    assert again.id == once.id
    assert len(api.snapshot.services) == 1


async def test_who_names_no_version_does_not_hear_of_others_writing_meanwhile(api: Api) -> None:
    """`service rm` beside the control loop, which writes the service's endpoint, said "read it again and repeat"."""
    service = (await create(api, web())).service
    commit = api.transactions.commit

    async def interrupted(changes: Sequence[Change], **options: Any) -> Result:
        api.transactions.commit = commit  # type: ignore[method-assign]
        await commit([Update(copy_of(api.snapshot.services[service.id]))])
        return await commit(changes, **options)

    api.transactions.commit = interrupted  # type: ignore[method-assign]
    assert (await scale(api, "web", 7)).spec.mode.replicated.replicas == 7
    api.transactions.commit = interrupted  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="changed since it was read"):
        await update(api, api.snapshot.services[service.id], web(replicas=9))
    assert api.snapshot.services[service.id].spec.mode.replicated.replicas == 7
    api.transactions.commit = interrupted  # type: ignore[method-assign]
    await api.service.RemoveService(control_pb2.RemoveRequest(reference="web"), CONTEXT)
    assert api.snapshot.services[service.id].removing


async def test_a_taken_name_is_refused_before_the_registry_is_asked(api: Api) -> None:
    await create(api, web())
    api.asked.clear()
    with pytest.raises(AlreadyExists, match='service "web" exists already'):
        await create(api, web())
    assert api.asked == []


async def test_names_that_differ_in_case_only_are_one_name_to_dns(api: Api) -> None:
    upper = (await create(api, web("Abc"))).service
    with pytest.raises(AlreadyExists, match=r'service "abc": service "Abc" exists already.* upper from lower case'):
        await create(api, web("abc"))
    await api.service.RemoveService(control_pb2.RemoveRequest(reference="Abc"), CONTEXT)
    await create(api, web("aBC"))
    # From before this was refused: stored, and goes on.
    await api.transactions.commit([Create(types_pb2.Service(id="old", spec=web("ABC")))])
    assert (await scale(api, "ABC", 5)).id == "old" != upper.id


async def test_a_published_port_belongs_to_one_service(api: Api) -> None:
    first_one, second = web("proxy"), web("web")
    for spec in (first_one, second):
        spec.ports.add(target_port=80, published_port=80)
    await create(api, first_one)
    with pytest.raises(AlreadyExists, match=r'service "web": port 80/tcp is already published by service "proxy"'):
        await create(api, second)
    second.ports[0].mode = types_pb2.PUBLISH_MODE_HOST  # the mesh has it on every host
    with pytest.raises(AlreadyExists, match="already published"):
        await create(api, second)
    second.ports[0].protocol = types_pb2.PORT_PROTOCOL_UDP
    await create(api, second)


async def test_an_ingress_port_cannot_be_one_that_tasks_have_on_their_hosts(api: Api) -> None:
    on_host, mesh = web("agent"), web("web")
    on_host.ports.add(target_port=80, published_port=80, mode=types_pb2.PUBLISH_MODE_HOST)
    mesh.ports.add(target_port=8080, published_port=80)
    await create(api, on_host)
    with pytest.raises(AlreadyExists, match='already published by service "agent"'):
        await create(api, mesh)


async def test_nor_one_that_was_chosen_for_them(api: Api) -> None:
    """It was accepted, and the mesh then took the port away from the tasks that answered at it on their hosts."""
    on_host, mesh = web("agent"), web("web")
    on_host.ports.add(target_port=80, mode=types_pb2.PUBLISH_MODE_HOST)
    chosen = copy_of((await create(api, on_host)).service)
    chosen.published_ports.add(target_port=80, published_port=30_000, mode=types_pb2.PUBLISH_MODE_HOST)
    await api.transactions.commit([Update(chosen)])
    mesh.ports.add(target_port=8080, published_port=30_000)
    with pytest.raises(AlreadyExists, match='port 30000/tcp is already published by service "agent"'):
        await create(api, mesh)


async def test_an_image_that_does_not_exist_is_an_error_and_leaves_nothing(api: Api) -> None:
    api.images["reg.example:5000/nix"] = NotFound("404")
    with pytest.raises(NotFound, match=r"was not found in the registry reg.example:5000"):
        await create(api, web(image="reg.example:5000/nix"))
    assert len(api.snapshot.services) == 0


async def test_a_registry_that_cannot_be_asked_is_a_warning(api: Api) -> None:
    api.images["nginx:1"] = Unavailable("connection refused")
    answer = await create(api, web())
    assert "docker.io" in answer.warnings[0]
    assert answer.service.spec.task.container.image_digest == ""


async def test_an_image_named_by_digest_is_not_looked_up(api: Api) -> None:
    answer = await create(api, web(image=f"nginx@{DIGEST}"))
    assert answer.service.spec.task.container.image_digest == DIGEST
    assert api.asked == []


async def test_a_registry_is_not_asked_where_that_is_not_wanted(api: Api) -> None:
    request = control_pb2.CreateServiceRequest(spec=web(), no_resolve_image=True)
    service = (await api.service.CreateService(request, CONTEXT)).service
    assert service.spec.task.container.image_digest == ""
    spec = copy_of(service).spec
    spec.task.container.image = f"nginx@{DIGEST}"
    changed = control_pb2.UpdateServiceRequest(
        reference=service.id, spec=spec, version=service.meta.version, no_resolve_image=True
    )
    service = (await api.service.UpdateService(changed, CONTEXT)).service
    assert service.spec.task.container.image_digest == DIGEST
    assert api.asked == []


async def test_networks_are_stored_by_id_and_must_exist(api: Api) -> None:
    spec = web()
    spec.task.networks.add(network="backend")
    with pytest.raises(NotFound, match=r'network "backend" was not found; create it with `swarmctl network create'):
        await create(api, spec)
    created = await api.service.CreateNetwork(
        control_pb2.CreateNetworkRequest(spec=types_pb2.NetworkSpec(name="backend")), CONTEXT
    )
    service = (await create(api, spec)).service
    assert [attachment.network for attachment in service.spec.task.networks] == [created.network.id]
    spec.name = "other"
    spec.task.networks[0].network = "ingress"
    with pytest.raises(InvalidArgument, match="network of published ports"):
        await create(api, spec)


async def test_only_a_changed_task_spec_makes_a_revision(api: Api) -> None:
    service = (await create(api, web())).service
    spec = copy_of(service).spec
    spec.labels["team"] = "a"
    relabelled = await update(api, service, spec)
    assert relabelled.revision_id == service.revision_id
    spec.task.container.env.append("A=b")
    changed = await update(api, relabelled, spec)
    assert changed.previous_revision_id == service.revision_id
    assert api.snapshot.revisions[changed.revision_id].number == 2
    assert changed.spec.task.container.image_digest == DIGEST
    assert api.asked == ["nginx:1"]  # the image was not touched


async def test_a_new_revision_starts_a_new_update(api: Api) -> None:
    service = copy_of((await create(api, web())).service)
    service.update_status.state = types_pb2.UPDATE_STATE_PAUSED
    await api.transactions.commit([Update(service)])
    service = api.snapshot.services[service.id]
    spec = copy_of(service).spec
    spec.task.container.image = "nginx:2"
    changed = await update(api, service, spec)
    assert not changed.HasField("update_status")
    assert api.asked[-1] == "nginx:2"


@pytest.mark.parametrize("state", [types_pb2.UPDATE_STATE_PAUSED, types_pb2.UPDATE_STATE_ROLLBACK_PAUSED])
async def test_other_ports_start_an_update_that_was_paused_anew(
    api: Api, state: types_pb2.UpdateState.ValueType
) -> None:
    """A user who published a port after an update was paused saw it listed, and no task ever took connections on it."""
    service = copy_of((await create(api, web())).service)
    service.update_status.state = state
    await api.transactions.commit([Update(service)])
    spec = copy_of(service).spec
    spec.labels["team"] = "a"
    relabelled = await update(api, api.snapshot.services[service.id], spec)
    assert relabelled.update_status.state == state
    spec.ports.add(target_port=80, published_port=8080)
    assert not (await update(api, relabelled, spec)).HasField("update_status")


async def test_an_update_names_the_version_that_it_read(api: Api) -> None:
    service = (await create(api, web())).service
    await scale(api, "web", 5)
    with pytest.raises(Conflict, match=r'service "web" changed since it was read'):
        await update(api, service, service.spec)


async def test_a_repeated_update_is_one_update(api: Api) -> None:
    service = (await create(api, web())).service
    spec = copy_of(service).spec
    spec.task.container.args.append("x")
    once = await update(api, service, spec, "u1")
    again = await update(api, service, spec, "u1")
    assert again == once
    assert len(api.snapshot.revisions) == 2


async def test_scaling_needs_no_version_and_changes_nothing_else(api: Api) -> None:
    service = (await create(api, web())).service
    scaled = await scale(api, "web", 7)
    assert scaled.spec.mode.replicated.replicas == 7
    assert scaled.spec.task == service.spec.task
    assert scaled.revision_id == service.revision_id
    with pytest.raises(InvalidArgument, match="20001 replicas are too many"):
        await scale(api, "web", 20_001)


async def test_a_global_service_has_no_scale(api: Api) -> None:
    spec = web()
    getattr(spec.mode, "global").SetInParent()
    await create(api, spec)
    with pytest.raises(InvalidArgument, match='service "web" is global: it has one task on each node'):
        await scale(api, "web", 5)


async def test_a_service_keeps_its_name_and_mode(api: Api) -> None:
    service = (await create(api, web())).service
    spec = copy_of(service).spec
    spec.name = "www"
    with pytest.raises(InvalidArgument, match="cannot be renamed"):
        await update(api, service, spec)
    spec = copy_of(service).spec
    getattr(spec.mode, "global").SetInParent()
    with pytest.raises(InvalidArgument, match="is replicated and cannot change that"):
        await update(api, service, spec)


async def test_rolling_back_returns_to_the_revision_before_and_keeps_the_scale(api: Api) -> None:
    service = (await create(api, web())).service
    with pytest.raises(FailedPrecondition, match="no previous version"):
        await api.service.UpdateService(control_pb2.UpdateServiceRequest(reference="web", rollback=True), CONTEXT)
    spec = copy_of(service).spec
    spec.task.container.image = "nginx:2"
    changed = await update(api, service, spec)
    await scale(api, "web", 9)
    answer = await api.service.UpdateService(control_pb2.UpdateServiceRequest(reference="web", rollback=True), CONTEXT)
    assert answer.service.revision_id == service.revision_id
    assert answer.service.previous_revision_id == changed.revision_id
    assert answer.service.spec.task.container.image == "nginx:1"
    assert answer.service.spec.mode.replicated.replicas == 9
    assert answer.service.update_status.state == types_pb2.UPDATE_STATE_ROLLBACK_STARTED


async def test_rolling_back_keeps_what_makes_no_revision(api: Api) -> None:
    """A user who published a port and set a label, updated the image and rolled that back was left without port and label:
    the service could not be reached any more."""
    service = (await create(api, web())).service
    spec = copy_of(service).spec
    spec.labels["team"] = "a"
    spec.ports.add(target_port=80, published_port=8080)
    service = await update(api, service, spec)
    spec.task.container.image = "nginx:2"
    await update(api, service, spec)
    answer = await api.service.UpdateService(control_pb2.UpdateServiceRequest(reference="web", rollback=True), CONTEXT)
    assert answer.service.spec.task.container.image == "nginx:1"
    assert dict(answer.service.spec.labels) == {"team": "a"}
    assert [port.published_port for port in answer.service.spec.ports] == [8080]


async def test_there_is_no_rolling_back_to_a_removed_network(api: Api) -> None:
    """A user who rolled back was told that it began, and saw one task wait for a network without end; scaling said to create
    a network by the id of the removed one."""
    await api.service.CreateNetwork(
        control_pb2.CreateNetworkRequest(spec=types_pb2.NetworkSpec(name="backend")), CONTEXT
    )
    spec = web()
    spec.task.networks.add(network="backend")
    service = (await create(api, spec)).service
    spec = copy_of(service).spec
    del spec.task.networks[:]
    changed = await update(api, service, spec)
    await api.service.RemoveNetwork(control_pb2.RemoveRequest(reference="backend"), CONTEXT)
    with pytest.raises(FailedPrecondition, match=r"cannot return to its previous version: a network .* was removed"):
        await api.service.UpdateService(control_pb2.UpdateServiceRequest(reference="web", rollback=True), CONTEXT)
    assert api.snapshot.services[service.id] == changed


async def test_a_removed_service_gives_up_its_name_at_once(api: Api) -> None:
    service = (await create(api, web())).service
    request = control_pb2.RemoveRequest(reference="web", request_id="x")
    assert (await api.service.RemoveService(request, CONTEXT)).id == service.id
    assert (await api.service.RemoveService(request, CONTEXT)).id == service.id
    assert api.snapshot.services[service.id].removing
    with pytest.raises(FailedPrecondition, match="is being removed"):
        await update(api, service, service.spec)
    assert (await create(api, web())).service.id != service.id


async def test_an_unknown_service_is_not_found(api: Api) -> None:
    with pytest.raises(NotFound, match='service "nix" was not found; `swarmctl service ls`'):
        await api.service.GetService(control_pb2.GetRequest(reference="nix"), CONTEXT)


async def test_a_prefix_finds_one_object_and_an_ambiguous_one_lists_them(api: Api) -> None:
    for id_ in ("abc1", "abc2"):
        await api.transactions.commit([Create(types_pb2.Service(id=id_, spec=web(f"s-{id_}")))])
    answer = await api.service.GetService(control_pb2.GetRequest(reference="abc1"), CONTEXT)
    assert answer.summary.service.id == "abc1"
    with pytest.raises(InvalidArgument, match=r'service "abc" is ambiguous: it could be abc1, abc2'):
        await api.service.GetService(control_pb2.GetRequest(reference="abc"), CONTEXT)


async def test_lists_are_filtered_and_paged(api: Api) -> None:
    for number in range(5):
        spec = web(f"web{number}")
        spec.labels["parity"] = "even" if number % 2 == 0 else "odd"
        await create(api, spec)

    async def names(token: str = "", *filters: tuple[str, str], size: int = 2) -> tuple[list[str], str]:
        request = control_pb2.ListRequest(page_size=size, page_token=token)
        for key, value in filters:
            request.filters.add(key=key, value=value)
        answer = await api.service.ListServices(request, CONTEXT)
        return [summary.service.spec.name for summary in answer.services], answer.next_page_token

    assert await names("", ("label", "parity=even"), size=9) == (["web0", "web2", "web4"], "")
    assert (await names("", ("name", "web1"), ("name", "web3")))[0] == ["web1", "web3"]
    page, token = await names()
    seen = page
    while token:
        page, token = await names(token)
        seen += page
    assert seen == [f"web{number}" for number in range(5)]
    with pytest.raises(InvalidArgument, match="filter 'colour' is not known here; known are id, label, mode, name"):
        await names("", ("colour", "red"))
    with pytest.raises(InvalidArgument, match="page_token"):
        await names("!!")


async def test_watching_shows_each_change_and_ends_with_the_service(api: Api) -> None:
    service = (await create(api, web(replicas=1))).service
    answers = api.service.WatchService(control_pb2.WatchServiceRequest(reference="web"), CONTEXT)
    shown = await first(answers)
    assert (shown.summary.desired, shown.summary.running, shown.converged) == (1, 0, False)
    task = types_pb2.Task(
        id="t1",
        service_id=service.id,
        slot=1,
        revision_id=service.revision_id,
        desired_state=types_pb2.TASK_STATE_RUNNING,
        status=types_pb2.TaskStatus(state=types_pb2.TASK_STATE_RUNNING),
        service_name="web",
    )
    await api.transactions.commit([Create(task)])
    shown = await first(answers)
    assert (shown.summary.running, shown.converged) == (1, False), "it has only just started"
    api.clock.advance(STABLE_SECONDS)
    shown = await first(answers)
    assert shown.converged
    assert [entry.id for entry in shown.tasks] == ["t1"]
    await api.service.RemoveService(control_pb2.RemoveRequest(reference="web"), CONTEXT)
    assert (await first(answers)).summary.service.removing
    from orchestrator.store import Kind, Remove

    await api.transactions.commit([Remove(Kind.SERVICE, service.id)])
    with pytest.raises(StopAsyncIteration):
        await first(answers)


# ------------------------------------------------------------------------------------------------------------- networks


async def new_network(api: Api, **fields: object) -> types_pb2.Network:
    answer = await api.service.CreateNetwork(
        control_pb2.CreateNetworkRequest(spec=types_pb2.NetworkSpec(**fields)),  # type: ignore[arg-type]
        CONTEXT,
    )
    return answer.network


async def test_network_names_and_subnets_are_not_shared(api: Api) -> None:
    await new_network(api, name="a", subnet="10.50.0.0/16")
    with pytest.raises(AlreadyExists, match='network "a" exists already'):
        await new_network(api, name="a")
    with pytest.raises(AlreadyExists, match=r'subnet 10.50.7.0/24 overlaps with 10.50.0.0/16 of network "a"'):
        await new_network(api, name="b", subnet="10.50.7.0/24")
    with pytest.raises(AlreadyExists, match="ingress network already"):
        await new_network(api, name="b", ingress=True)


async def test_a_subnet_that_a_node_is_in_is_refused(api: Api) -> None:
    worker = copy_of(await add_node(api, "w1", types_pb2.NODE_ROLE_WORKER, 2))
    worker.description.address = "198.18.0.4"
    await api.transactions.commit([Update(worker)])
    with pytest.raises(
        InvalidArgument, match=r'"n7": 198.18.0.0/24 has the address 198.18.0.4 of node "host-w1" in it'
    ):
        await new_network(api, name="n7", subnet="198.18.0.0/24")
    await new_network(api, name="n7", subnet="198.18.1.0/24")


async def test_a_network_in_use_names_who_uses_it(api: Api) -> None:
    await new_network(api, name="backend")
    spec = web()
    spec.task.networks.add(network="backend")
    await create(api, spec)
    request = control_pb2.RemoveRequest(reference="backend")
    with pytest.raises(InUse, match='network "backend" is used by service "web"; remove or update that first'):
        await api.service.RemoveNetwork(request, CONTEXT)
    await api.service.RemoveService(control_pb2.RemoveRequest(reference="web"), CONTEXT)
    await api.service.RemoveNetwork(request, CONTEXT)
    with pytest.raises(NotFound):
        await api.service.GetNetwork(control_pb2.GetRequest(reference="backend"), CONTEXT)


@pytest.mark.parametrize("name", ["ingress", "default"])
async def test_the_networks_of_the_swarm_stay(api: Api, name: str) -> None:
    with pytest.raises(FailedPrecondition, match="belongs to the swarm itself"):
        await api.service.RemoveNetwork(control_pb2.RemoveRequest(reference=name), CONTEXT)


# ---------------------------------------------------------------------------------------------------------------- nodes


async def set_spec(api: Api, node: types_pb2.Node, **changes: object) -> types_pb2.Node:
    spec = copy_of(node).spec
    for key, value in changes.items():
        setattr(spec, key, value)
    answer = await api.service.UpdateNode(
        control_pb2.UpdateNodeRequest(reference=node.id, spec=spec, version=node.meta.version), CONTEXT
    )
    return answer.node


async def test_a_node_is_drained_with_the_version_that_was_read(api: Api) -> None:
    node = await add_node(api, "w1", types_pb2.NODE_ROLE_WORKER, 2)
    drained = await set_spec(api, node, availability=types_pb2.AVAILABILITY_DRAIN)
    assert drained.spec.availability == types_pb2.AVAILABILITY_DRAIN
    with pytest.raises(Conflict):
        await set_spec(api, node, availability=types_pb2.AVAILABILITY_PAUSE)


async def test_a_node_is_not_given_the_name_of_another(api: Api) -> None:
    first_one = await add_node(api, "w1", types_pb2.NODE_ROLE_WORKER, 2)
    second = await add_node(api, "w2", types_pb2.NODE_ROLE_WORKER, 3)
    with pytest.raises(AlreadyExists, match='name: "host-w2" is the host name of node w2 already; choose another'):
        await set_spec(api, first_one, name="host-w2")
    second = await set_spec(api, second, name="db")
    with pytest.raises(AlreadyExists, match='name: "db" is the name of node w2 already'):
        await set_spec(api, first_one, name="db")
    await set_spec(api, first_one, name="host-w1")  # its own
    assert (await set_spec(api, second, name="db", availability=types_pb2.AVAILABILITY_DRAIN)).spec.name == "db"


async def test_a_shared_host_name_is_ambiguous(api: Api) -> None:
    for number, node_id in ((2, "w1"), (3, "w2")):
        node = await add_node(api, node_id, types_pb2.NODE_ROLE_WORKER, number)
        copy = copy_of(node)
        copy.description.hostname = "twin"
        await api.transactions.commit([Update(copy)])
    with pytest.raises(InvalidArgument, match='node "twin" is ambiguous: it could be w1, w2'):
        await api.service.GetNode(control_pb2.GetRequest(reference="twin"), CONTEXT)


async def test_the_only_manager_cannot_be_demoted(api: Api) -> None:
    with pytest.raises(FailedPrecondition, match="is the only manager"):
        await set_spec(api, api.snapshot.nodes["m1"], desired_role=types_pb2.NODE_ROLE_WORKER)


async def test_demoting_below_quorum_is_refused_with_the_numbers(api: Api) -> None:
    m2 = await add_node(api, "m2", types_pb2.NODE_ROLE_MANAGER, 2)
    m3 = await add_node(api, "m3", types_pb2.NODE_ROLE_MANAGER, 3)
    healthy = api.log.status
    members = api.log.members

    def status():  # type: ignore[no-untyped-def]
        from dataclasses import replace

        return replace(
            healthy(),
            members=tuple(MemberStatus(member, member.node_id != "m3", False, 1) for member in members.values()),
        )

    api.log.status = status  # type: ignore[method-assign]
    with pytest.raises(
        FailedPrecondition,
        match=r'demoting node "host-m2" would leave 2 managers, of which 1 can be reached .* needs 2',
    ):
        await set_spec(api, m2, desired_role=types_pb2.NODE_ROLE_WORKER)
    with pytest.raises(FailedPrecondition, match="removing node"):
        await api.service.RemoveNode(control_pb2.RemoveNodeRequest(reference="m2", force=True), CONTEXT)
    demoted = await set_spec(api, m3, desired_role=types_pb2.NODE_ROLE_WORKER)  # the one that is down may go
    assert demoted.spec.desired_role == types_pb2.NODE_ROLE_WORKER


async def test_removing_a_node_that_is_up_needs_force_and_revokes_it(api: Api) -> None:
    await add_node(api, "w1", types_pb2.NODE_ROLE_WORKER, 2)
    with pytest.raises(FailedPrecondition, match=r'node "host-w1" is not down; .* or use --force'):
        await api.service.RemoveNode(control_pb2.RemoveNodeRequest(reference="w1"), CONTEXT)
    request = control_pb2.RemoveNodeRequest(reference="w1", force=True, request_id="rm")
    await api.service.RemoveNode(request, CONTEXT)
    await api.service.RemoveNode(request, CONTEXT)
    assert "w1" not in api.snapshot.nodes
    assert api.snapshot.cluster is not None
    assert [revoked.node_id for revoked in api.snapshot.cluster.revoked_nodes] == ["w1"]


async def test_a_manager_is_demoted_before_it_is_removed(api: Api) -> None:
    await add_node(api, "m2", types_pb2.NODE_ROLE_MANAGER, 2)
    await add_node(api, "m3", types_pb2.NODE_ROLE_MANAGER, 3)
    with pytest.raises(FailedPrecondition, match="is a manager; demote it first"):
        await api.service.RemoveNode(control_pb2.RemoveNodeRequest(reference="m2"), CONTEXT)
    await api.service.RemoveNode(control_pb2.RemoveNodeRequest(reference="m2", force=True), CONTEXT)


# -------------------------------------------------------------------------------------------------------------- cluster


async def test_the_cluster_is_shown_without_secrets(api: Api) -> None:
    cluster = (await api.service.GetCluster(control_pb2.GetClusterRequest(), CONTEXT)).cluster
    assert cluster.ca.certificate_pem
    assert not cluster.ca.private_key_pem
    assert not cluster.HasField("join_secrets")
    changed = await api.service.UpdateCluster(
        control_pb2.UpdateClusterRequest(spec=cluster.spec, version=cluster.meta.version), CONTEXT
    )
    assert not changed.cluster.ca.private_key_pem
    with pytest.raises(Conflict):
        await api.service.UpdateCluster(
            control_pb2.UpdateClusterRequest(spec=cluster.spec, version=cluster.meta.version), CONTEXT
        )
    assert api.snapshot.cluster is not None
    assert api.snapshot.cluster.ca.private_key_pem


async def test_rotating_one_token_leaves_the_other(api: Api) -> None:
    before = await api.service.GetJoinTokens(control_pb2.GetJoinTokensRequest(), CONTEXT)
    assert list(before.addresses) == ["10.1.0.1:2377"]
    request = control_pb2.RotateJoinTokenRequest(role=types_pb2.NODE_ROLE_WORKER, request_id="rot")
    after = await api.service.RotateJoinToken(request, CONTEXT)
    assert parse_token(after.worker).digest == parse_token(before.worker).digest
    assert after.worker != before.worker
    assert after.manager == before.manager
    assert (await api.service.RotateJoinToken(request, CONTEXT)).worker == after.worker


async def test_people_and_servers_get_certificates(api: Api) -> None:
    csr = new_key_and_request("x").csr_pem

    async def issue(role: str, addresses: list[str] | None = None) -> bytes:
        answer = await api.service.IssueCertificate(
            control_pb2.IssueCertificateRequest(csr_pem=csr, role=role, name="Ann", addresses=addresses or []), CONTEXT
        )
        return answer.certificate_pem

    assert peer_from_certificate(await issue("viewer")).role is Role.VIEWER
    assert peer_from_certificate(await issue("server", ["registry.lab", "10.0.0.1"])).role is Role.SERVER
    with pytest.raises(InvalidArgument, match="'swarm-manager' is how a node proves itself"):
        await issue("server", ["swarm-manager"])
    with pytest.raises(InvalidArgument, match="say admin, viewer or server"):
        await issue("manager")
    with pytest.raises(InvalidArgument, match="only a server's certificate carries addresses"):
        await issue("admin", ["x"])


async def test_info_needs_no_leader(api: Api) -> None:
    api.log.lose_leadership()
    info = await api.service.GetInfo(control_pb2.GetInfoRequest(), CONTEXT)
    assert (info.node_id, info.cluster_id, info.leader_id, info.nodes) == ("m1", "cluster1", "", 1)
    with pytest.raises(Unavailable):
        await api.service.ListNodes(control_pb2.ListRequest(), CONTEXT)


# ---------------------------------------------------------------------------------------------------------------- tasks


async def test_tasks_are_listed_with_names_and_found_by_them(api: Api) -> None:
    service = (await create(api, web())).service
    for number, (slot, state, desired) in enumerate(
        [
            (1, types_pb2.TASK_STATE_FAILED, types_pb2.TASK_STATE_SHUTDOWN),
            (1, types_pb2.TASK_STATE_RUNNING, types_pb2.TASK_STATE_RUNNING),
            (2, types_pb2.TASK_STATE_NEW, types_pb2.TASK_STATE_READY),
        ]
    ):
        await api.transactions.commit(
            [
                Create(
                    types_pb2.Task(
                        id=f"t{number}",
                        service_id=service.id,
                        service_name="web",
                        revision_id=service.revision_id,
                        slot=slot,
                        node_id="m1",
                        desired_state=desired,
                        status=types_pb2.TaskStatus(state=state),
                    )
                )
            ]
        )
    request = control_pb2.ListTasksRequest()
    request.filters.add(key="service", value="web")
    answer = await api.service.ListTasks(request, CONTEXT)
    assert [task.id for task in answer.tasks] == ["t1", "t0", "t2"]
    assert (answer.names[0].task, answer.names[0].node, answer.names[0].image) == ("web.1", "host1", "nginx:1")
    request.filters.add(key="desired-state", value="running")
    assert [task.id for task in (await api.service.ListTasks(request, CONTEXT)).tasks] == ["t1", "t2"]
    found = await api.service.GetTask(control_pb2.GetRequest(reference="web.1"), CONTEXT)
    assert found.task.id == "t1"
    assert found.revision.number == 1


async def test_a_stale_read_needs_no_leader_and_says_of_which_state_it_is(api: Api) -> None:
    await create(api, web())
    index = api.snapshot.index
    api.log.lose_leadership()
    with pytest.raises(Unavailable):
        await api.service.ListServices(control_pb2.ListRequest(), CONTEXT)

    listed = await api.service.ListServices(control_pb2.ListRequest(stale=True), CONTEXT)
    assert [summary.service.spec.name for summary in listed.services] == ["web"]
    assert listed.replica == control_pb2.Replica(node_id="m1", index=index, leader_id="")

    one = control_pb2.GetRequest(reference="web", stale=True)
    tasks = control_pb2.ListTasksRequest(stale=True)
    assert (await api.service.GetService(one, CONTEXT)).replica.index == index
    assert (await api.service.ListTasks(tasks, CONTEXT)).replica.index == index
    assert (await api.service.ListNodes(control_pb2.ListRequest(stale=True), CONTEXT)).replica.index == index
    assert (await api.service.ListNetworks(control_pb2.ListRequest(stale=True), CONTEXT)).replica.index == index
    node = control_pb2.GetRequest(reference=api.snapshot.nodes.named("host1")[0].id, stale=True)
    assert (await api.service.GetNode(node, CONTEXT)).replica.index == index


async def test_a_replica_without_any_state_gives_no_stale_answers() -> None:
    with pytest.raises(Unavailable, match="not received the cluster's state"):
        await Api().service.ListServices(control_pb2.ListRequest(stale=True), CONTEXT)


async def test_an_answer_that_is_not_stale_names_no_replica(api: Api) -> None:
    listed = await api.service.ListServices(control_pb2.ListRequest(), CONTEXT)
    assert not listed.HasField("replica")


async def test_join_tokens_come_with_the_port_that_managers_are_joined_at() -> None:
    for port in (2377, 4377):
        api = await Api(enrolment_port=port).start()
        tokens = await api.service.GetJoinTokens(control_pb2.GetJoinTokensRequest(), CONTEXT)
        assert list(tokens.addresses) == [f"10.1.0.1:{port}"]


async def test_a_task_on_a_node_that_is_down_says_so_until_it_has_ended(api: Api) -> None:
    node = copy_of(await add_node(api, "n2", types_pb2.NODE_ROLE_WORKER, 2))
    node.status.state, node.status.message = types_pb2.NODE_STATE_DOWN, "no heartbeat for 3 s"
    tasks = [types_pb2.Task(id=f"t{slot}", slot=slot, service_name="web", node_id="n2") for slot in (1, 2)]
    tasks[0].status.state, tasks[1].status.state = types_pb2.TASK_STATE_ASSIGNED, types_pb2.TASK_STATE_FAILED
    await api.transactions.commit([Update(node), *(Create(task) for task in tasks)])
    listed = await api.service.ListTasks(control_pb2.ListTasksRequest(), CONTEXT)
    assert [names.node_problem for names in listed.names] == ["the node is down: no heartbeat for 3 s", ""]
