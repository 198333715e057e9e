"""Nodes, networks, the swarm itself, certificates, information: what is asked and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm.errors import Conflict, FailedPrecondition, NotFound
from swarm.names import NODE_LEFT
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1 import types_pb2 as types

from tests.unit.cli.conftest import Result, Script

Run = Callable[..., Result]


def host(name: str, role: Any = types.NODE_ROLE_WORKER, **fields: Any) -> types.Node:
    made = types.Node(id=f"{name}-id", role=role, meta=types.Meta(version=4), **fields)
    made.spec.desired_role = role
    made.description.hostname = name
    made.description.engine_version = "0.1.0"
    made.description.address = "10.0.0.1"
    made.status.state = types.NODE_STATE_READY
    return made


def test_nodes_show_leader_reachability_and_the_one_that_answers(script: Script, swarmctl: Run) -> None:
    gone = host("m2", types.NODE_ROLE_MANAGER)
    gone.status.state = types.NODE_STATE_DOWN
    drained = host("w1")
    drained.spec.availability = types.AVAILABILITY_DRAIN
    script.answers["ListNodes"] = control.ListNodesResponse(
        nodes=[drained, gone, host("m1", types.NODE_ROLE_MANAGER)],
        leader_id="m1-id",
        members=[
            control.RaftMemberInfo(node_id="m1-id", reachable=True, leader=True),
            control.RaftMemberInfo(node_id="m2-id", reachable=False),
        ],
    )
    script.answers["GetInfo"] = control.GetInfoResponse(node_id="m1-id")
    assert swarmctl("node", "ls").lines == [
        "ID        HOSTNAME   STATUS   AVAILABILITY   MANAGER STATUS   ENGINE VERSION   ADDRESS",
        "m1-id *   m1         Ready    Active         Leader           0.1.0            10.0.0.1",
        "m2-id     m2         Down     Active         Unreachable      0.1.0            10.0.0.1",
        "w1-id     w1         Ready    Drain                           0.1.0            10.0.0.1",
    ]
    found = json.loads(swarmctl("node", "ls", "--format", "json").out)
    assert [(one["description"]["hostname"], one["manager_status"]) for one in found] == [
        ("m1", "Leader"),
        ("m2", "Unreachable"),
        ("w1", None),
    ]
    assert swarmctl("node", "ls", "-q").lines == ["m1-id", "m2-id", "w1-id"]


@pytest.mark.parametrize(
    "words",
    [
        ("service", "ls"), ("service", "ps", "web"), ("service", "inspect", "--pretty", "web"), ("node", "ls"),
        ("node", "inspect", "m1"), ("node", "ps", "m1"), ("network", "ls"), ("network", "inspect", "backend"),
    ],
)  # fmt: skip
def test_stale_reads_ask_for_them_and_say_how_old_they_may_be(
    script: Script, swarmctl: Run, words: tuple[str, ...]
) -> None:
    replica = control.Replica(node_id="m2", index=42)
    script.answers.update(
        GetInfo=control.GetInfoResponse(node_id="m2"),
        ListServices=control.ListServicesResponse(replica=replica),
        GetService=control.GetServiceResponse(replica=replica),
        ListTasks=control.ListTasksResponse(replica=replica),
        ListNodes=control.ListNodesResponse(replica=replica),
        GetNode=control.GetNodeResponse(replica=replica),
        ListNetworks=control.ListNetworksResponse(replica=replica),
        GetNetwork=control.GetNetworkResponse(replica=replica),
    )
    result = swarmctl(*words, "--stale")
    assert result.code == 0
    assert "at index 42" in result.err and "knows no leader" in result.err
    assert all(request.stale for method, request in script.requests if method != "GetInfo")
    script.requests.clear()
    swarmctl(*words)
    assert not any(request.stale for method, request in script.requests if method != "GetInfo")


def test_a_node_changes_in_what_is_named_only(script: Script, swarmctl: Run) -> None:
    read = host("w1")
    read.spec.labels.update({"keep": "1", "old": "2"})
    script.answers["GetNode"] = control.GetNodeResponse(node=read)
    script.answers["UpdateNode"] = [Conflict("moved"), control.UpdateNodeResponse(node=read)]
    result = swarmctl(
        "node", "update", "--availability", "drain", "--label-add", "zone=a", "--label-rm", "old", "w1"
    )  # fmt: skip
    assert (result.code, result.out) == (0, "w1\n")
    request = script.asked("UpdateNode")[-1]
    assert request.reference == "w1-id"
    assert request.version == 4
    assert request.spec.availability == types.AVAILABILITY_DRAIN
    assert request.spec.desired_role == types.NODE_ROLE_WORKER
    assert dict(request.spec.labels) == {"keep": "1", "zone": "a"}


def test_bad_node_settings_are_refused_here(script: Script, swarmctl: Run) -> None:
    assert swarmctl("node", "update", "--availability", "gone", "w1").code == 2
    assert swarmctl("node", "update", "--role", "boss", "w1").code == 2
    assert not script.requests


def test_promote_and_demote(script: Script, swarmctl: Run) -> None:
    script.answers["GetNode"] = control.GetNodeResponse(node=host("w1"))
    script.answers["UpdateNode"] = control.UpdateNodeResponse()
    assert swarmctl("node", "promote", "w1").out == "Node w1 promoted to a manager.\n"
    assert script.only("UpdateNode").spec.desired_role == types.NODE_ROLE_MANAGER
    assert swarmctl("node", "demote", "w1").out == "Node w1 is already a worker.\n"


def test_the_manager_that_is_asked_is_demoted_last(script: Script, swarmctl: Run) -> None:
    def get(request: control.GetRequest) -> Any:
        if request.reference == "gone":
            return NotFound('node "gone" does not exist')
        found = host(request.reference.removesuffix("-id"))
        found.spec.desired_role = types.NODE_ROLE_MANAGER
        return control.GetNodeResponse(node=found)

    script.answers["GetInfo"] = control.GetInfoResponse(node_id="m1-id")
    script.answers["GetNode"] = get
    script.answers["UpdateNode"] = control.UpdateNodeResponse()
    for own in ("m1", "m1-id", "self"):
        result = swarmctl("node", "demote", own, "gone", "m2")
        assert result.code == 3
        assert result.lines == ["Node m2 demoted to a worker.", f"Node {own} demoted to a worker."]


def test_node_ps_of_itself_and_rm(script: Script, swarmctl: Run) -> None:
    script.answers["GetInfo"] = control.GetInfoResponse(node_id="m1-id")
    script.answers["GetNode"] = control.GetNodeResponse(node=host("m1"))
    script.answers["ListTasks"] = control.ListTasksResponse()
    assert swarmctl("node", "ps").code == 0
    assert script.only("GetNode").reference == "m1-id"
    assert script.only("ListTasks").filters[0] == control.Filter(key="node", value="m1-id")
    script.answers["RemoveNode"] = FailedPrecondition('node "w1" is not down; stop it first or use --force')
    assert swarmctl("node", "rm", "w1").code == 10
    script.answers["RemoveNode"] = control.RemoveNodeResponse()
    assert swarmctl("node", "rm", "--force", "w1").out == "w1\n"
    assert script.asked("RemoveNode")[-1].force


def test_node_inspect(script: Script, swarmctl: Run) -> None:
    script.answers["GetNode"] = control.GetNodeResponse(node=host("w1"))
    assert json.loads(swarmctl("node", "inspect", "w1").out)[0]["status"]["state"] == "ready"
    members = [control.RaftMemberInfo(node_id="w1-id", reachable=True)]
    script.answers["ListNodes"] = control.ListNodesResponse(members=members, leader_id="w1-id")
    assert " State:              Ready" in swarmctl("node", "inspect", "--pretty", "w1").lines
    manager = host("w1", types.NODE_ROLE_MANAGER)
    manager.manager.address = "10.0.0.1:2378"
    script.answers["GetNode"] = control.GetNodeResponse(node=manager)
    assert " Status:             Leader" in swarmctl("node", "inspect", "--pretty", "w1").lines


def test_networks(script: Script, swarmctl: Run) -> None:
    script.answers["CreateNetwork"] = control.CreateNetworkResponse(network=types.Network(id="net1"))
    result = swarmctl(
        "network", "create", "-d", "overlay", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.1", "--internal",
        "--attachable", "--label", "a=1", "-o", "mtu=1400", "-o", "x=y", "backend",
    )  # fmt: skip
    assert result.out == "net1\n"
    assert script.only("CreateNetwork").spec == types.NetworkSpec(
        name="backend", driver="overlay", subnet="10.9.0.0/24", gateway="10.9.0.1", internal=True, attachable=True,
        labels={"a": "1"}, mtu=1400, options={"x": "y"},
    )  # fmt: skip
    network = types.Network(id="netnetnetnet1", spec=types.NetworkSpec(name="backend"), subnet="10.9.0.0/24", vni=7)
    script.answers["ListNetworks"] = control.ListNetworksResponse(networks=[network])
    assert swarmctl("network", "ls").lines == [
        "NETWORK ID     NAME      DRIVER    SCOPE   SUBNET",
        "netnetnetnet   backend   overlay   swarm   10.9.0.0/24",
    ]
    task = types.Task(service_name="web", slot=1)
    task.attachments.add(network_id="netnetnetnet1", address="10.9.0.5/24")
    script.answers["GetNetwork"] = control.GetNetworkResponse(network=network, tasks=[task])
    assert json.loads(swarmctl("network", "inspect", "backend").out)[0]["network"]["vni"] == 7
    assert " web.1:              10.9.0.5/24" in swarmctl("network", "inspect", "--pretty", "backend").lines
    script.answers["RemoveNetwork"] = control.RemoveResponse()
    assert swarmctl("network", "rm", "backend").out == "backend\n"
    assert script.only("RemoveNetwork").request_id


@pytest.mark.parametrize(
    "words", [["--subnet", "a", "--subnet", "b"], ["--scope", "local"], ["-o", "mtu=x"], ["-o", "x"]]
)
def test_bad_network_flags(script: Script, swarmctl: Run, words: list[str]) -> None:
    assert swarmctl("network", "create", *words, "n").code == 2
    assert not script.requests


def test_init_prints_how_to_join(script: Script, swarmctl: Run) -> None:
    script.answers["Init"] = node.InitResponse(
        node_id="n1", worker_token="SWMTKN-w", manager_token="SWMTKN-m", address="10.0.0.1:2377"
    )
    result = swarmctl(
        "swarm", "init", "--advertise-addr", "10.0.0.1", "--task-history-limit", "2", "--cert-expiry", "48h",
        "--default-addr-pool", "10.8.0.0/16", "--default-addr-pool-mask-length", "24", "--default-registry", "r:5000",
        "--availability", "drain",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "    swarmctl swarm join --token SWMTKN-w 10.0.0.1:2377" in result.lines
    request = script.only("Init")
    assert request.advertise_address == "10.0.0.1"
    assert request.availability == types.AVAILABILITY_DRAIN
    assert request.spec.task_history_limit == 2
    assert request.spec.node_certificate_validity.seconds == 48 * 3600
    assert (list(request.spec.address_pools), request.spec.subnet_prefix_length) == (["10.8.0.0/16"], 24)
    assert request.spec.default_registry == "r:5000"


def test_join_takes_the_token_from_a_file_too(script: Script, swarmctl: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("SWMTKN-w\n")
    script.answers["Join"] = node.LocalState(state="active", role=types.NODE_ROLE_WORKER)
    result = swarmctl("swarm", "join", "--token", f"@{tmp_path}/token", "10.0.0.1", "10.0.0.2:2377")
    assert result.out == "This node joined a swarm as a worker.\n"
    assert script.only("Join").token == "SWMTKN-w"
    assert list(script.only("Join").addresses) == ["10.0.0.1", "10.0.0.2:2377"]


def test_join_tokens(script: Script, swarmctl: Run) -> None:
    tokens = control.GetJoinTokensResponse(worker="W", manager="M", addresses=["a:2377", "b:2377"])
    script.answers["GetJoinTokens"] = script.answers["RotateJoinToken"] = tokens
    assert swarmctl("swarm", "join-token", "-q", "worker").out == "W\n"
    assert swarmctl("swarm", "join-token", "manager").lines[-1] == "    swarmctl swarm join --token M a:2377 b:2377"
    assert swarmctl("swarm", "join-token", "--rotate", "worker").lines[0].startswith("Successfully rotated")
    assert script.only("RotateJoinToken").role == types.NODE_ROLE_WORKER
    assert swarmctl("swarm", "join-token", "boss").code == 2


def test_leave_update_and_ca(script: Script, swarmctl: Run) -> None:
    script.answers["Leave"] = node.LocalState()
    assert swarmctl("swarm", "leave", "--force").code == 0
    assert script.only("Leave").force
    cluster = types.Cluster(meta=types.Meta(version=3), spec=types.ClusterSpec(name="default", labels={"a": "1"}))
    cluster.ca.certificate_pem = b"-----BEGIN CERTIFICATE-----\n"
    script.answers["GetCluster"] = control.GetClusterResponse(cluster=cluster)
    script.answers["UpdateCluster"] = control.UpdateClusterResponse()
    assert swarmctl("swarm", "update", "--dispatcher-heartbeat", "5s", "--label-add", "b=2").code == 0
    request = script.only("UpdateCluster")
    assert (request.version, request.spec.heartbeat_period.seconds) == (3, 5)
    assert dict(request.spec.labels) == {"a": "1", "b": "2"}
    assert request.spec.name == "default"
    assert swarmctl("swarm", "ca").out == "-----BEGIN CERTIFICATE-----\n"


def test_a_certificate_is_made_of_a_key_that_stays_here(script: Script, swarmctl: Run, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    script.answers["IssueCertificate"] = control.IssueCertificateResponse(certificate_pem=b"cert", ca_pem=b"ca")
    target = tmp_path / "tls"
    result = swarmctl("cert", "issue", "alice", "--role", "viewer", "-o", str(target))
    assert result.code == 0, result.err
    request = script.only("IssueCertificate")
    assert (request.role, request.name) == ("viewer", "alice")
    signed = x509.load_pem_x509_csr(request.csr_pem)
    key = load_pem_private_key((target / "node.key").read_bytes(), None)
    assert signed.public_key() == key.public_key()
    assert signed.is_signature_valid
    assert b"PRIVATE" not in request.SerializeToString()
    assert (target / "node.key").stat().st_mode & 0o777 == 0o600
    assert ((target / "node.pem").read_bytes(), (target / "ca.pem").read_bytes()) == (b"cert", b"ca")
    again = swarmctl("cert", "issue", "alice", "-o", str(target))
    assert again.code == 4
    assert len(script.asked("IssueCertificate")) == 1


def test_how_to_use_a_certificate_names_the_managers(script: Script, swarmctl: Run, tmp_path: Path) -> None:
    script.answers["IssueCertificate"] = control.IssueCertificateResponse(certificate_pem=b"cert", ca_pem=b"ca")
    members = [control.RaftMemberInfo(address="10.0.0.1:2378"), control.RaftMemberInfo(address="10.0.0.2:2378")]
    script.answers["GetInfo"] = control.GetInfoResponse(raft=control.RaftInfo(members=members))
    result = swarmctl("cert", "issue", "alice", "-o", str(tmp_path / "tls"))
    assert f"swarmctl --host 10.0.0.1:2378,10.0.0.2:2378 --tls {tmp_path}/tls service ls" in result.err


def test_nodes_that_left_or_joined_anew_come_with_a_hint(script: Script, swarmctl: Run) -> None:
    left, old, new, lost = host("w1"), host("w2"), host("w2"), host("w3")
    for number, gone in enumerate((left, old, lost), 2):
        gone.status.state = types.NODE_STATE_DOWN
        gone.description.address = f"10.0.0.{number}"
    left.status.message = NODE_LEFT
    old.id, new.description.address = "w2-old", old.description.address
    script.answers["ListNodes"] = control.ListNodesResponse(nodes=[left, old, new, lost])
    script.answers["GetInfo"] = control.GetInfoResponse()
    assert swarmctl("node", "ls").err.splitlines() == [
        "Node w1 w1-id: it left the swarm; `swarmctl node rm w1-id` takes it off the list.",
        "Node w2 w2-old: its host is a member again, as another node; `swarmctl node rm w2-old` takes it off the list.",
    ]
    assert swarmctl("node", "ls", "-q").err == ""


@pytest.mark.parametrize("words", [["--role", "king"], ["--role", "server"], ["--address", "x"]])
def test_bad_certificate_flags(script: Script, swarmctl: Run, tmp_path: Path, words: list[str]) -> None:
    assert swarmctl("cert", "issue", "x", *words, "-o", str(tmp_path / "tls")).code == 2
    assert not script.requests


def test_info_and_version(script: Script, swarmctl: Run) -> None:
    script.answers["GetState"] = node.LocalState(state="active", node_id="n1", role=types.NODE_ROLE_MANAGER, tasks=3)
    answer = control.GetInfoResponse(
        node_id="n1", cluster_id="c1", leader_id="n1", nodes=5, managers=3, version="0.1.0"
    )
    answer.raft.role, answer.raft.term = "leader", 4
    answer.raft.members.add(node_id="n1", address="10.0.0.1:2378", reachable=True, leader=True)
    script.answers["GetInfo"] = answer
    lines = swarmctl("info").lines
    assert "Swarm: c1" in lines
    assert "  n1  10.0.0.1:2378  reachable  leader" in lines
    known = types.Node(id="n1", description=types.NodeDescription(hostname="m1"))
    script.answers["ListNodes"] = control.ListNodesResponse(nodes=[known])
    lines = swarmctl("info").lines
    assert lines[0] == "Node: m1 (n1)"
    assert "  m1 (n1)  10.0.0.1:2378  reachable  leader" in lines
    found = json.loads(swarmctl("info", "--format", "json").out)
    assert (found["swarm"]["raft"]["term"], found["nodes"][0]["role"]) == (4, "manager")
    assert swarmctl("version").lines[1] == "Manager: 0.1.0"


def test_info_of_a_worker_is_no_failure(script: Script, swarmctl: Run) -> None:
    script.answers["GetState"] = node.LocalState(state="active", node_id="w1", role=types.NODE_ROLE_WORKER)
    script.answers["GetInfo"] = FailedPrecondition("not a manager")
    result = swarmctl("info")
    assert (result.code, result.lines[0]) == (0, "Node: w1")
