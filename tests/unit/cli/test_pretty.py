"""What `inspect --pretty` shows: all that somebody has set."""

from __future__ import annotations

from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli.pretty import node_lines, service_lines


def shown(service: types.Service) -> list[str]:
    return list(service_lines(control.ServiceSummary(service=service), {}))


def test_the_restart_policy_is_shown_with_its_defaults() -> None:
    service = types.Service()
    assert shown(service)[shown(service).index("Restart policy:") + 1 :][:3] == [
        " Condition:          any",
        " Delay:              growing with each failure",
        " Max attempts:       unlimited",
    ]
    policy = service.spec.task.restart
    policy.condition, policy.max_attempts = types.RESTART_CONDITION_ON_FAILURE, 4
    policy.delay.seconds, policy.window.seconds = 5, 90
    assert shown(service)[shown(service).index("Restart policy:") + 1 :][:3] == [
        " Condition:          on-failure",
        " Delay:              5s",
        " Max attempts:       4 within 1m30s",
    ]


def test_limits_and_labels_of_containers_and_sizes_of_mounts_are_shown() -> None:
    service = types.Service()
    container = service.spec.task.container
    container.ulimits.add(name="nofile", soft=5, hard=6)
    container.ulimits.add(name="core", soft=-1, hard=-1)
    container.sysctls["net.core.somaxconn"] = "99"
    container.labels["a"] = "b"
    mount = container.mounts.add(type=types.MOUNT_TYPE_TMPFS, target="/t")
    mount.tmpfs_size_bytes, mount.tmpfs_mode = 64 << 20, 0o1777
    container.mounts.add(type=types.MOUNT_TYPE_BIND, source="/etc", target="/e", read_only=True)
    lines = shown(service)
    for line in (
        " Ulimits:            nofile=5:6 core=unlimited:unlimited",
        " Sysctls:            net.core.somaxconn=99",
        " Labels:             a=b",
        " Mount:              tmpfs - on /t size 64MiB mode 1777",
        " Mount:              bind /etc on /e ro",
    ):
        assert line in lines


def test_a_manager_is_shown_with_its_part_in_the_consensus() -> None:
    node = types.Node(id="m1", role=types.NODE_ROLE_MANAGER)
    assert "Manager:" not in list(node_lines(node))
    node.manager.address = "10.0.0.1:2378"
    lines = list(node_lines(node, "Leader"))
    assert lines[lines.index("Manager:") + 1 :][:2] == [
        " Status:             Leader",
        " Raft address:       10.0.0.1:2378",
    ]
