"""Members of the log follow the roles that the store wants, and never at the price of the quorum."""

from __future__ import annotations

from swarm.v1 import types_pb2 as types

from orchestrator.consensus import ConsensusStatus, Member, MemberStatus
from orchestrator.manager.roles import Blocked, HandOver, RemoveMember, WriteNode, next_step
from orchestrator.store import Create, Kind, Remove, Snapshot, Update, copy_of
from tests.unit.dispatcher.worlds import World, node


async def managers(count: int) -> World:
    world = World()
    await world.commit(Create(types.Cluster(id="c1")))
    for number in range(1, count + 1):
        made = node(number, manager=True)
        made.spec.desired_role = types.NODE_ROLE_MANAGER
        await world.commit(Create(made))
    return world


def log_of(*node_ids: str, unreachable: tuple[str, ...] = ()) -> ConsensusStatus:
    members = tuple(
        MemberStatus(Member(id_, f"192.0.2.{id_[1:]}:2378"), id_ not in unreachable, id_ == "n1", 9) for id_ in node_ids
    )
    return ConsensusStatus("leader", 1, "n1", 9, 9, members)


async def demote(world: World, node_id: str) -> Snapshot:
    changed = copy_of(world.store.snapshot().nodes[node_id])
    changed.spec.desired_role = types.NODE_ROLE_WORKER
    return await world.commit(Update(changed))


async def test_where_members_and_roles_agree_there_is_nothing_to_do() -> None:
    world = await managers(3)
    assert next_step(world.store.snapshot(), log_of("n1", "n2", "n3"), "n1") is None


async def test_a_demoted_manager_leaves_the_log_before_its_role_changes() -> None:
    world = await managers(3)
    snapshot = await demote(world, "n2")
    step = next_step(snapshot, log_of("n1", "n2", "n3"), "n1")
    assert isinstance(step, RemoveMember)
    assert step.node_id == "n2"
    after = next_step(snapshot, log_of("n1", "n3"), "n1")
    assert isinstance(after, WriteNode)
    assert after.node.role == types.NODE_ROLE_WORKER
    assert not after.node.HasField("manager")


async def test_a_removed_node_leaves_the_log() -> None:
    world = await managers(3)
    snapshot = await world.commit(Remove(Kind.NODE, "n3"))
    step = next_step(snapshot, log_of("n1", "n2", "n3", unreachable=("n3",)), "n1")
    assert isinstance(step, RemoveMember)
    assert step.node_id == "n3"


async def test_a_leader_that_is_demoted_hands_over_first() -> None:
    world = await managers(3)
    assert isinstance(next_step(await demote(world, "n1"), log_of("n1", "n2", "n3"), "n1"), HandOver)


async def test_the_last_manager_stays() -> None:
    world = await managers(1)
    step = next_step(await demote(world, "n1"), log_of("n1"), "n1")
    assert isinstance(step, Blocked)
    assert "last one" in step.sentence


async def test_nobody_leaves_where_the_others_would_be_no_majority() -> None:
    world = await managers(3)
    step = next_step(await demote(world, "n2"), log_of("n1", "n2", "n3", unreachable=("n3",)), "n1")
    assert isinstance(step, Blocked)
    assert "majority" in step.sentence


async def test_a_manager_that_joined_elsewhere_is_noted_where_it_listens() -> None:
    world = await managers(2)
    moved = ConsensusStatus(
        "leader",
        1,
        "n1",
        9,
        9,
        (
            MemberStatus(Member("n1", "192.0.2.1:2378"), True, True, 9),
            MemberStatus(Member("n2", "192.0.2.99:2400"), True, False, 9),
        ),
    )
    step = next_step(world.store.snapshot(), moved, "n1")
    assert isinstance(step, WriteNode)
    assert step.node.manager.address == "192.0.2.99:2400"


async def test_before_the_first_transaction_nothing_is_done() -> None:
    assert next_step(World().store.snapshot(), log_of("n1"), "n1") is None
