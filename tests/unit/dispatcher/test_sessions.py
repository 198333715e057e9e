"""Sessions over real connections: with the leader, with a follower, and across a change of leadership."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from swarm.channels import open_channel
from swarm.names import MANAGER_TLS_NAME, NODE_LEFT
from swarm.v1 import dispatcher_pb2 as dispatcher
from swarm.v1 import types_pb2 as types
from swarm.v1.dispatcher_pb2_grpc import DispatcherRelayStub

from orchestrator.dispatcher import liveness, statuses
from orchestrator.store import Create, Kind, Remove, SetDesiredState, SetTaskStatus, Update, copy_of
from tests.unit.dispatcher.managers import DEADLINE, Agent, Swarm, swarm_of
from tests.unit.dispatcher.worlds import BACK, World, node, task

TASK = dispatcher.ASSIGNED_KIND_TASK


async def founded() -> World:
    world = World()
    await world.found(2)
    for number in (1, 2):  # not heard of yet
        unknown = copy_of(world.store.snapshot().nodes[f"n{number}"])
        unknown.status.state = types.NODE_STATE_UNKNOWN
        await world.commit(Update(unknown))
    return world


def state_of(swarm: Swarm, node_id: str) -> int:
    return swarm.store.snapshot().nodes[node_id].status.state


def task_state(swarm: Swarm, task_id: str) -> int:
    return swarm.store.snapshot().tasks[task_id].status.state


async def test_a_session_makes_its_node_ready_with_what_the_agent_says_of_its_host() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm, Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
        await agent.until(lambda: agent.mirror.position > (0, 0))
        await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        stored = swarm.store.snapshot().nodes["n1"]
        assert stored.description.address == "192.0.2.77"
        assert stored.status.boot_id == "boot-1"
        assert agent.settings is not None
        assert agent.settings.heartbeat_period.ToSeconds() == 1
        assert agent.settings.ca_pem == b"the CA"
        assert agent.settings.node.id == "n1"


async def test_tasks_go_out_and_statuses_come_in_through_the_leader() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        await _one_task(swarm, "m1")


async def test_tasks_go_out_and_statuses_come_in_through_a_follower() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm:
        await _one_task(swarm, "m2")


async def _one_task(swarm: Swarm, manager: str) -> None:
    async with Agent(swarm, "n1").connected(swarm.managers[manager]) as agent:
        await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        await swarm.transactions.commit([Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED))])
        await agent.until(lambda: agent.mirror.names(TASK) == {"t1"})
        agent.report(1, t1=types.TASK_STATE_ACCEPTED)
        agent.report(2, t1=types.TASK_STATE_RUNNING)
        await agent.until(lambda: agent.acknowledged == 2)
        assert task_state(swarm, "t1") == types.TASK_STATE_RUNNING

        # It is stopped: the watermark reaches the index of its withdrawal once every node has programmed it.
        result = await swarm.transactions.commit([SetDesiredState("t1", types.TASK_STATE_SHUTDOWN)])
        await agent.until(lambda: agent.watermark >= result.index)
        agent.report(3, t1=types.TASK_STATE_SHUTDOWN)
        await agent.until(lambda: agent.acknowledged == 3)
        await swarm.transactions.commit([Remove(Kind.TASK, "t1")])
        await agent.until(lambda: agent.mirror.names(TASK) == set())


async def test_the_watermark_waits_for_every_node_on_the_network() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm:
        slow = Agent(swarm, "n2")
        async with (
            Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent,
            slow.connected(swarm.managers["m2"]),
        ):
            for node_id in ("n1", "n2"):
                await swarm.until(lambda node_id=node_id: state_of(swarm, node_id) == types.NODE_STATE_READY)
            await swarm.transactions.commit([Create(task("t1", "n1", BACK)), Create(task("t2", "n2", BACK, address=6))])
            await slow.until(lambda: slow.mirror.names(TASK) == {"t2"})
            slow.acknowledging = False
            result = await swarm.transactions.commit([SetDesiredState("t1", types.TASK_STATE_SHUTDOWN)])
            await slow.until(lambda: slow.mirror.position[1] >= result.index)
            await agent.until(lambda: agent.mirror.position[1] >= result.index)
            # A status of another task goes the whole way; had the watermark moved, the agent would have heard.
            agent.report(1, t1=types.TASK_STATE_RUNNING)
            await agent.until(lambda: agent.acknowledged == 1)
            assert agent.watermark < result.index
            slow.say(dispatcher.AgentMessage(network_ack=dispatcher.NetworkAck(index=result.index)))
            await agent.until(lambda: agent.watermark >= result.index)


async def test_a_change_of_leadership_disturbs_no_session_and_loses_no_status() -> None:
    world = await founded()
    await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED)))
    async with swarm_of(world.store, "m1", "m2", "m3") as swarm:
        agents = {"n1": Agent(swarm, "n1"), "n2": Agent(swarm, "n2")}
        async with (
            agents["n1"].connected(swarm.managers["m2"]) as first,
            agents["n2"].connected(swarm.managers["m1"]) as second,
        ):
            for node_id in agents:
                await swarm.until(lambda node_id=node_id: state_of(swarm, node_id) == types.NODE_STATE_READY)
            swarm.log.elect("")
            first.report(1, t1=types.TASK_STATE_RUNNING)
            swarm.log.elect("m3")
            await first.until(lambda: first.acknowledged == 1)
            swarm.log.elect("m2")  # where the session is
            first.report(2, t1=types.TASK_STATE_FAILED)
            await first.until(lambda: first.acknowledged == 2)
            assert task_state(swarm, "t1") == types.TASK_STATE_FAILED
            assert (first.ended, second.ended) == (None, None)
            assert state_of(swarm, "n2") == types.NODE_STATE_READY


async def test_a_leader_that_leads_again_at_once_keeps_the_sessions_of_its_followers() -> None:
    world = await founded()
    await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED)))
    async with swarm_of(world.store, "m1", "m2") as swarm, Agent(swarm, "n1").connected(swarm.managers["m2"]) as agent:
        await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        swarm.log.elect("m1")  # a new term, of the same leader: its followers see no change
        agent.report(1, t1=types.TASK_STATE_RUNNING)
        await agent.until(lambda: agent.acknowledged == 1 or agent.ended is not None)
        assert agent.ended is None
        assert task_state(swarm, "t1") == types.TASK_STATE_RUNNING


async def test_a_silent_node_is_down_and_one_that_comes_back_is_ready() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]):
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_DOWN)
        assert "no heartbeat" in swarm.store.snapshot().nodes["n1"].status.message
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]):
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        assert swarm.store.snapshot().nodes["n1"].status.message == ""


async def test_a_newer_boot_ends_the_session_at_another_manager() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm, Agent(swarm, "n1").connected(swarm.managers["m2"]) as old:
        await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        async with Agent(swarm, "n1", "boot-2", 2).connected(swarm.managers["m1"]):
            await old.until(lambda: old.ended is not None)
            assert old.ended is not None
            assert old.ended.reason == dispatcher.SESSION_END_REASON_SUPERSEDED
            await swarm.until(lambda: swarm.store.snapshot().nodes["n1"].status.boot_id == "boot-2")


async def test_a_cloned_state_directory_is_reported() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        manager = swarm.managers["m1"]
        async with Agent(swarm, "n1", "boot-a", 4).connected(manager) as original:
            await original.until(lambda: original.settings is not None)
            async with Agent(swarm, "n1", "boot-b", 4).connected(manager) as clone:
                await original.until(lambda: original.ended is not None)
                async with Agent(swarm, "n1", "boot-a", 4).connected(manager) as again:
                    await again.until(lambda: again.ended is not None)
                    assert again.ended is not None
                    assert again.ended.reason == dispatcher.SESSION_END_REASON_CLONED
                    await swarm.until(lambda: "two hosts" in swarm.store.snapshot().nodes["n1"].status.message)
                    assert clone.ended is None


async def test_sessions_end_where_no_leader_is_known_for_too_long() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers["m2"]) as agent:
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
            swarm.log.elect("")
            await agent.until(lambda: agent.ended is not None)
            assert agent.ended is not None
            assert agent.ended.reason == dispatcher.SESSION_END_REASON_NO_LEADER
        async with Agent(swarm, "n1").connected(swarm.managers["m2"]) as again:
            await again.until(lambda: again.ended is not None)
            assert again.ended is not None
            assert again.ended.reason == dispatcher.SESSION_END_REASON_NO_LEADER


async def test_a_demoted_manager_sends_its_agents_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LEADERLESS_PERIODS", 1e6)  # not because it misses its leader
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers["m2"]) as agent:
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
            swarm.demoted.add("m2")
            swarm.log.elect("m1")  # a new term: the relay is opened again, and refused
            await agent.until(lambda: agent.ended is not None)
            assert agent.ended is not None
            assert agent.ended.reason == dispatcher.SESSION_END_REASON_NO_LEADER
            assert "no manager any more" in agent.ended.message
        async with Agent(swarm, "n1").connected(swarm.managers["m2"]) as agent:
            await agent.until(lambda: agent.ended is not None)
            assert agent.settings is None


async def test_an_agent_that_has_seen_more_is_sent_elsewhere() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        agent = Agent(swarm, "n1")
        agent.hello.seen_epoch, agent.hello.seen_index = 1, 10_000
        async with agent.connected(swarm.managers["m1"]):
            await agent.until(lambda: agent.ended is not None)
            assert agent.ended is not None
            assert agent.ended.reason == dispatcher.SESSION_END_REASON_STALE


async def test_a_removed_node_is_told_so() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
            await swarm.transactions.commit([Remove(Kind.NODE, "n1")])
            await agent.until(lambda: agent.ended is not None)
            assert agent.ended is not None
            assert agent.ended.reason == dispatcher.SESSION_END_REASON_REMOVED
        # Gone, but not on the list of those removed: this replica might only be behind.
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]) as stranger:
            await stranger.until(lambda: stranger.ended is not None)
            assert stranger.ended is not None
            assert stranger.ended.reason == dispatcher.SESSION_END_REASON_STALE
        revoked = copy_of(swarm.store.snapshot().cluster or types.Cluster())
        revoked.revoked_nodes.add(node_id="n1")
        await swarm.transactions.commit([Update(revoked)])
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]) as returned:
            await returned.until(lambda: returned.ended is not None)
            assert returned.ended is not None
            assert returned.ended.reason == dispatcher.SESSION_END_REASON_REMOVED


async def test_a_node_that_was_down_before_it_was_removed_is_forgotten() -> None:
    """A leader grew with every node that had come and gone: what it remembers of one was forgotten only where the node was
    removed while it lived."""
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        async with Agent(swarm, "n2").connected(swarm.managers["m1"]):
            await swarm.until(lambda: state_of(swarm, "n2") == types.NODE_STATE_READY)
        leader = swarm.managers["m1"].service._leader
        assert leader is not None
        leader._liveness.forget("n2")  # as when it is judged to be down
        leader._down.add("n2")
        await swarm.transactions.commit([Remove(Kind.NODE, "n2")])
        async with asyncio.timeout(DEADLINE):
            while "n2" in leader._down or leader._registry._nodes:  # noqa: ASYNC110 – nothing announces it
                await asyncio.sleep(0.01)


async def test_a_node_of_another_cluster_is_refused() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        agent = Agent(swarm, "n1")
        agent.hello.cluster_id = "another"
        async with agent.connected(swarm.managers["m1"]):
            await agent.until(lambda: agent.error is not None)
            assert agent.error is not None
            assert agent.error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_settings_follow_the_store() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm, Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
        await agent.until(lambda: agent.settings is not None)
        await swarm.transactions.commit([Create(node(9, manager=True))])
        await agent.until(lambda: [m.node_id for m in agent.settings.managers] == ["n9"])  # type: ignore[union-attr]
        promoted = copy_of(swarm.store.snapshot().nodes["n1"])
        promoted.spec.desired_role = types.NODE_ROLE_MANAGER
        await swarm.transactions.commit([Update(promoted)])
        await agent.until(
            lambda: agent.settings.node.spec.desired_role == types.NODE_ROLE_MANAGER  # type: ignore[union-attr]
        )


async def test_a_manager_that_cannot_take_more_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm, Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
        await agent.until(lambda: agent.settings is not None)
        monkeypatch.setattr(statuses, "MAXIMUM_PENDING", 0)
        agent.report(1, t1=types.TASK_STATE_RUNNING)
        await agent.until(lambda: agent.ended is not None)
        assert agent.ended is not None
        assert agent.ended.reason == dispatcher.SESSION_END_REASON_OVERLOADED


async def test_a_second_hello_ends_the_session() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm, Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
        agent.say(dispatcher.AgentMessage(hello=agent.hello))
        await agent.until(lambda: agent.ended is not None)


async def test_a_relay_speaks_only_for_itself_and_only_to_the_leader() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1", "m2") as swarm:
        tls = swarm.certificate("m2", types.NODE_ROLE_MANAGER)

        async def refused(manager: str, name: str) -> grpc.StatusCode:
            async with open_channel(swarm.managers[manager].address, tls, MANAGER_TLS_NAME) as channel:
                call = DispatcherRelayStub(channel).Relay()
                await call.write(dispatcher.RelayUp(hello=dispatcher.RelayHello(manager_id=name)))
                await call.read()
                return await call.code()

        with pytest.raises(grpc.aio.AioRpcError) as error:
            await refused("m1", "m1")
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await refused("m2", "m2")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_is_no_relay() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        tls = swarm.certificate("n1", types.NODE_ROLE_WORKER)
        async with open_channel(swarm.managers["m1"].address, tls, MANAGER_TLS_NAME) as channel:
            call = DispatcherRelayStub(channel).Relay()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call.read()
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_agent_writes_only_statuses_of_its_own_tasks() -> None:
    world = await founded()
    await world.commit(Create(task("theirs", "n2", state=types.TASK_STATE_PREPARING)))
    async with swarm_of(world.store, "m1") as swarm, Agent(swarm, "n1").connected(swarm.managers["m1"]) as agent:
        agent.report(1, theirs=types.TASK_STATE_FAILED)
        await agent.until(lambda: agent.acknowledged == 1)
        assert task_state(swarm, "theirs") == types.TASK_STATE_PREPARING
        await swarm.transactions.commit([SetTaskStatus("theirs", types.TaskStatus(state=types.TASK_STATE_RUNNING))])


async def test_an_agent_cannot_displace_what_another_one_says_of_its_task() -> None:
    """A failed task stayed RUNNING for ever, and was not replaced, where another node spoke of it in the same moment: that was
    not believed, but its own node's word had made way for it in the queue, and was acknowledged."""
    world = await founded()
    await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_ASSIGNED)))
    async with swarm_of(world.store, "m1") as swarm:
        manager = swarm.managers["m1"]
        async with Agent(swarm, "n1").connected(manager) as own, Agent(swarm, "n2").connected(manager) as stranger:
            for node_id in ("n1", "n2"):
                await swarm.until(lambda node_id=node_id: state_of(swarm, node_id) == types.NODE_STATE_READY)
            swarm.log.elect("")  # what is reported waits
            for number, agent in ((1, own), (2, stranger)):
                agent.report(1, t1=types.TASK_STATE_FAILED if agent is own else types.TASK_STATE_REJECTED)
                async with asyncio.timeout(DEADLINE):
                    while len(manager.service.hub.statuses._sequences) < number:  # noqa: ASYNC110 – nothing announces it
                        await asyncio.sleep(0.005)
            swarm.log.elect("m1")
            await own.until(lambda: own.acknowledged == 1)
            assert task_state(swarm, "t1") == types.TASK_STATE_FAILED


@pytest.mark.parametrize("manager", ["m1", "m2"])
async def test_a_node_that_leaves_is_down_at_once_although_its_session_goes_on(manager: str) -> None:
    world = await founded()
    await world.commit(Create(task("t1", "n1", BACK, state=types.TASK_STATE_RUNNING)))
    async with swarm_of(world.store, "m1", "m2") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers[manager]) as agent:
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
            agent.say(dispatcher.AgentMessage(leaving=dispatcher.Leaving()))
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_DOWN)
            assert swarm.store.snapshot().nodes["n1"].status.message == NODE_LEFT
            # What it still has to say is heard, and its heartbeats make it no member again.
            agent.say(dispatcher.AgentMessage(heartbeat=dispatcher.Heartbeat()))
            agent.report(1, t1=types.TASK_STATE_SHUTDOWN)
            await agent.until(lambda: agent.acknowledged == 1)
            assert task_state(swarm, "t1") == types.TASK_STATE_SHUTDOWN
            assert state_of(swarm, "n1") == types.NODE_STATE_DOWN
            # Nor does the next leader, which hears of the session from the manager that holds it.
            swarm.log.elect("m2" if manager == "m1" else "m1")
            agent.report(2, t1=types.TASK_STATE_SHUTDOWN)
            await agent.until(lambda: agent.acknowledged == 2)
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_DOWN)
        # It stayed after all: a new session says so.
        async with Agent(swarm, "n1").connected(swarm.managers[manager]):
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
            assert swarm.store.snapshot().nodes["n1"].status.message == ""


async def test_a_session_that_just_ends_leaves_its_node_the_time_to_come_back() -> None:
    world = await founded()
    async with swarm_of(world.store, "m1") as swarm:
        async with Agent(swarm, "n1").connected(swarm.managers["m1"]):
            await swarm.until(lambda: state_of(swarm, "n1") == types.NODE_STATE_READY)
        seen = swarm.store.snapshot().index
        async with Agent(swarm, "n1", boot_id="boot-2", counter=2).connected(swarm.managers["m1"]):
            await swarm.until(lambda: swarm.store.snapshot().nodes["n1"].status.boot_id == "boot-2")
            node_now = swarm.store.snapshot().nodes["n1"]
            assert node_now.status.state == types.NODE_STATE_READY
            assert (
                node_now.status.since.ToNanoseconds() == world.store.snapshot().nodes["n1"].status.since.ToNanoseconds()
            )
            assert swarm.store.snapshot().index > seen
