"""Every flag of `service create` and `service update`: which words of a spec it sets, and that it sets no other.

Each case goes through the real command line; the request that arrives at the manager is compared as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm.v1 import control_pb2 as control
from swarm.v1 import types_pb2 as types

from orchestrator.cli.lazy import takes
from orchestrator.cli.messages import as_json
from orchestrator.cli.service_flags import CreateFlags
from orchestrator.cli.service_specs import name_of_image
from orchestrator.cli.update_flags import UpdateFlags
from tests.unit.cli.conftest import Result, Script

Run = Callable[..., Result]


def difference(old: Any, new: Any, path: str = "") -> dict[str, Any]:
    """What differs between two JSON values, by path; what was or is unset counts as empty."""
    if old == new:
        return {}
    if isinstance(new, dict) and isinstance(old, dict | None):
        found: dict[str, Any] = {}
        for key in sorted({*new, *(old or {})}):
            found.update(difference((old or {}).get(key), new.get(key), f"{path}.{key}" if path else key))
        return found
    return {} if not old and not new else {path: new}


TASK, BOX = "task", "task.container"
CREATE: list[tuple[list[str], dict[str, Any]]] = [
    (["--name", "other"], {"name": "other"}),
    (["--replicas", "5"], {"mode.replicated.replicas": 5}),
    (["--publish", "8080:80"], {
        "ports": [{"name": "", "protocol": "tcp", "target_port": 80, "published_port": 8080, "mode": "ingress"}]}),
    (["-p", "target=80,mode=host"], {
        "ports": [{"name": "", "protocol": "tcp", "target_port": 80, "published_port": 0, "mode": "host"}]}),
    (["-e", "A=1", "--env", "B=2"], {f"{BOX}.env": ["A=1", "B=2"]}),
    (["--label", "a=1"], {"labels.a": "1"}),
    (["-l", "a=1"], {"labels.a": "1"}),
    (["--container-label", "a=1"], {f"{BOX}.labels.a": "1"}),
    (["--network", "name=net,alias=db"], {f"{TASK}.networks": [{"network": "net", "aliases": ["db"]}]}),
    (["--constraint", "node.role==worker"], {f"{TASK}.placement.constraints": ["node.role==worker"]}),
    (["--placement-pref", "spread=node.labels.z"], {f"{TASK}.placement.spread": ["node.labels.z"]}),
    (["--replicas-max-per-node", "2"], {f"{TASK}.placement.max_replicas_per_node": 2}),
    (["--limit-cpu", "0.5"], {f"{TASK}.limits.nano_cpus": 500_000_000}),
    (["--limit-memory", "64m"], {f"{TASK}.limits.memory_bytes": 64 << 20}),
    (["--limit-pids", "100"], {f"{TASK}.limits.pids": 100}),
    (["--reserve-cpu", "1"], {f"{TASK}.reservations.nano_cpus": 10**9}),
    (["--reserve-memory", "1g"], {f"{TASK}.reservations.memory_bytes": 1 << 30}),
    (["--restart-condition", "on-failure"], {f"{TASK}.restart.condition": "on-failure"}),
    (["--restart-delay", "5s"], {f"{TASK}.restart.delay": "5s"}),
    (["--restart-max-attempts", "3"], {f"{TASK}.restart.max_attempts": 3}),
    (["--restart-window", "1m"], {f"{TASK}.restart.window": "1m"}),
    (["--update-parallelism", "2"], {"update.parallelism": 2}),
    (["--update-parallelism", "0"], {"update.all_at_once": True}),
    (["--update-delay", "10s"], {"update.delay": "10s"}),
    (["--update-failure-action", "rollback"], {"update.failure_action": "rollback"}),
    (["--update-monitor", "0s"], {"update.monitor": "0s"}),
    (["--update-max-failure-ratio", "0.2"], {"update.max_failure_ratio": 0.2}),
    (["--update-order", "start-first"], {"update.order": "start-first"}),
    (["--rollback-parallelism", "2"], {"rollback.parallelism": 2}),
    (["--rollback-delay", "10s"], {"rollback.delay": "10s"}),
    (["--rollback-failure-action", "continue"], {"rollback.failure_action": "continue"}),
    (["--rollback-monitor", "7s"], {"rollback.monitor": "7s"}),
    (["--rollback-max-failure-ratio", "1"], {"rollback.max_failure_ratio": 1.0}),
    (["--rollback-order", "stop-first"], {"rollback.order": "stop-first"}),
    (["--stop-grace-period", "1m30s"], {f"{BOX}.stop_grace_period": "1m30s"}),
    (["--stop-signal", "SIGUSR1"], {f"{BOX}.stop_signal": "SIGUSR1"}),
    (["--health-cmd", "true"], {f"{BOX}.health.test": ["CMD-SHELL", "true"]}),
    (["--health-interval", "5s"], {f"{BOX}.health.interval": "5s"}),
    (["--health-timeout", "2s"], {f"{BOX}.health.timeout": "2s"}),
    (["--health-retries", "4"], {f"{BOX}.health.retries": 4}),
    (["--health-start-period", "9s"], {f"{BOX}.health.start_period": "9s"}),
    (["--health-start-interval", "1s"], {f"{BOX}.health.start_interval": "1s"}),
    (["--no-healthcheck"], {f"{BOX}.health.test": ["NONE"]}),
    (["--mount", "source=v,target=/v,ro"], {f"{BOX}.mounts": [
        {"type": "volume", "source": "v", "target": "/v", "read_only": True, "tmpfs_size_bytes": 0, "tmpfs_mode": 0}]}),
    (["-u", "1000:1000"], {f"{BOX}.user": "1000:1000"}),
    (["--group", "audio"], {f"{BOX}.groups": ["audio"]}),
    (["-w", "/srv"], {f"{BOX}.directory": "/srv"}),
    (["--hostname", "box"], {f"{BOX}.hostname": "box"}),
    (["--host", "db:10.0.0.9"], {f"{BOX}.hosts": ["10.0.0.9 db"]}),
    (["--dns", "1.1.1.1"], {f"{BOX}.dns.nameservers": ["1.1.1.1"]}),
    (["--dns-search", "corp"], {f"{BOX}.dns.search": ["corp"]}),
    (["--dns-option", "ndots:2"], {f"{BOX}.dns.options": ["ndots:2"]}),
    (["--read-only"], {f"{BOX}.read_only": True}),
    (["-t"], {f"{BOX}.tty": True}),
    (["--init"], {f"{BOX}.init": True}),
    (["--cap-add", "net_admin"], {f"{BOX}.capabilities_add": ["CAP_NET_ADMIN"]}),
    (["--cap-drop", "ALL"], {f"{BOX}.capabilities_drop": ["ALL"]}),
    (["--sysctl", "net.core.somaxconn=99"], {f"{BOX}.sysctls.net.core.somaxconn": "99"}),
    (["--ulimit", "nofile=5:6"], {f"{BOX}.ulimits": [{"name": "nofile", "soft": 5, "hard": 6}]}),
    (["--entrypoint", "sh -c 'a b'"], {f"{BOX}.command": ["sh", "-c", "a b"]}),
    (["--endpoint-mode", "dnsrr"], {"endpoint_mode": "dnsrr"}),
    (["--with-registry-auth"], {}),
    (["--no-resolve-image"], {}),
]  # fmt: skip


@pytest.fixture
def created(script: Script, swarmctl: Run) -> Callable[..., dict[str, Any]]:
    script.answers["CreateService"] = lambda request: control.CreateServiceResponse(service=types.Service(id="x"))

    def run(*words: str) -> dict[str, Any]:
        script.requests.clear()
        result = swarmctl("service", "create", "-d", *words)
        assert result.code == 0, result.err
        return as_json(script.only("CreateService").spec)

    return run


PLAIN = as_json(types.ServiceSpec(
    name="nginx",
    task=types.TaskSpec(container=types.ContainerSpec(image="nginx:1")),
    mode=types.ServiceMode(replicated=types.ReplicatedMode(replicas=1)),
))  # fmt: skip


def test_create_without_flags_sets_nothing_else(created: Callable[..., dict[str, Any]]) -> None:
    assert difference(PLAIN, created("nginx:1")) == {}


def test_each_flag_of_create_sets_its_own_words(created: Callable[..., dict[str, Any]]) -> None:
    for words, expected in CREATE:
        found = difference(PLAIN, created(*words, "nginx:1"))
        assert found == expected, words


def test_global_services_have_no_replicas(created: Callable[..., dict[str, Any]]) -> None:
    assert created("--mode", "global", "nginx:1")["mode"] == {"global": {}}


def test_every_flag_of_create_has_a_case() -> None:
    def command(*, options: CreateFlags) -> None: ...

    wrapped = takes(CreateFlags)(command)
    tested = {word for words, _ in CREATE for word in words}
    waiting = {"detach", "quiet", "wait_timeout", "env_file", "mode"}
    for name, hint in wrapped.__annotations__.items():
        option = hint.__metadata__[0]
        names = {part for one in (option.default, *(option.param_decls or ())) for part in str(one).split("/")}
        assert name in waiting or names & tested, f"no case for {name}"


def test_env_files_come_before_env(created: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=file\nB=file\n")
    spec = created("--env", "A=flag", "--env-file", str(file), "nginx:1")
    assert spec["task"]["container"]["env"] == ["A=flag", "B=file"]


@pytest.mark.parametrize(
    ("image", "name"),
    [("web", "web"), ("web:1.2", "web"), ("registry:5000/team/web", "web"), ("h:1/a/web:2@sha256:abc", "web")],
)
def test_the_name_comes_from_the_image(image: str, name: str) -> None:
    assert name_of_image(image) == name


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--mode", "global", "--replicas", "2"], "--replicas belongs to"),
        (["--mode", "daily"], "--mode 'daily' is not known; write replicated or global"),
        (["--mode", "replicated-job"], "a job is such a service with --restart-condition none"),
        (["--replicas", "-1"], "--replicas '-1'"),
        (["--replicas", "many"], "--replicas 'many'"),
        (["--no-healthcheck", "--health-cmd", "x"], "exclude each other"),
        (["--update-order", "both"], "stop-first, start-first"),
        (["--rollback-failure-action", "rollback"], "pause, continue"),
        (["--update-max-failure-ratio", "1.5"], "from 0 to 1"),
        (["--env-file", "/no/such/file"], "cannot be read"),
        (["--env-file", "/dev/zero"], "/dev/zero is longer than 4 MiB"),
        (["--entrypoint", "sh -c 'open"], "--entrypoint"),
        (["--stop-grace-period", "10"], "10s"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_flags_end_before_anything_is_called(
    script: Script, swarmctl: Run, words: list[str], complaint: str
) -> None:
    result = swarmctl("service", "create", *words, "nginx")
    assert result.code == 2
    assert complaint in result.err
    assert not script.requests


def existing() -> types.ServiceSpec:
    """A spec in which there is something to change everywhere."""
    spec = types.ServiceSpec(name="web", labels={"keep": "1", "old": "2"})
    spec.mode.replicated.replicas = 3
    box = spec.task.container
    box.image, box.image_digest = "nginx:1", "sha256:1"
    box.args.extend(["a", "b"])
    box.env.extend(["KEEP=1", "OLD=2"])
    box.labels.update({"keep": "1", "old": "2"})
    box.mounts.add(type=types.MOUNT_TYPE_VOLUME, source="v", target="/v")
    box.groups.append("g")
    box.hosts.extend(["10.0.0.1 db", "10.0.0.2 web"])
    box.dns.nameservers.append("1.1.1.1")
    box.dns.search.append("corp")
    box.dns.options.append("ndots:1")
    box.capabilities_add.append("CAP_NET_RAW")
    box.capabilities_drop.append("CAP_CHOWN")
    box.sysctls["a.b"] = "1"
    box.ulimits.add(name="nofile", soft=1, hard=2)
    box.health.test.extend(["NONE"])
    spec.task.placement.constraints.append("node.role == worker")
    spec.task.placement.spread.append("node.labels.z")
    spec.ports.add(
        target_port=80, published_port=8080, protocol=types.PORT_PROTOCOL_TCP, mode=types.PUBLISH_MODE_INGRESS
    )
    return spec


def volume(source: str, target: str) -> dict[str, Any]:
    return {
        "type": "volume",
        "source": source,
        "target": target,
        "read_only": False,
        "tmpfs_size_bytes": 0,
        "tmpfs_mode": 0,
    }


def tcp(published: int, target: int) -> dict[str, Any]:
    return {"name": "", "protocol": "tcp", "target_port": target, "published_port": published, "mode": "ingress"}


UPDATE: list[tuple[list[str], dict[str, Any]]] = [
    (["--image", "nginx:2"], {f"{BOX}.image": "nginx:2", f"{BOX}.image_digest": ""}),
    (["--args", "x 'y z'"], {f"{BOX}.args": ["x", "y z"]}),
    (["--args", ""], {f"{BOX}.args": []}),
    (["--force"], {f"{TASK}.force_update": 1}),
    (["--replicas", "5"], {"mode.replicated.replicas": 5}),
    (["--publish-add", "9090:90"], {"ports": [tcp(8080, 80), tcp(9090, 90)]}),
    (["--publish-rm", "80"], {"ports": []}),
    (["--publish-rm", "8080:80", "--publish-add", "81:80"], {"ports": [tcp(81, 80)]}),
    (["--env-add", "OLD=3", "--env-add", "NEW=4"], {f"{BOX}.env": ["KEEP=1", "OLD=3", "NEW=4"]}),
    (["--env-rm", "OLD"], {f"{BOX}.env": ["KEEP=1"]}),
    (["--label-add", "new=3"], {"labels.new": "3"}),
    (["--label-rm", "old"], {"labels.old": None}),
    (["--container-label-add", "old=9"], {f"{BOX}.labels.old": "9"}),
    (["--container-label-rm", "old"], {f"{BOX}.labels.old": None}),
    (["--constraint-add", "node.id==1"], {f"{TASK}.placement.constraints": ["node.role == worker", "node.id==1"]}),
    (["--constraint-rm", "node.role==worker"], {f"{TASK}.placement.constraints": []}),
    (["--placement-pref-add", "spread=node.labels.y"], {f"{TASK}.placement.spread": ["node.labels.z", "node.labels.y"]}),
    (["--placement-pref-rm", "spread=node.labels.z"], {f"{TASK}.placement.spread": []}),
    (["--mount-add", "source=w,target=/v"], {f"{BOX}.mounts": [volume("w", "/v")]}),
    (["--mount-add", "source=w,target=/w"], {f"{BOX}.mounts": [volume("v", "/v"), volume("w", "/w")]}),
    (["--mount-rm", "/v"], {f"{BOX}.mounts": []}),
    (["--group-add", "h"], {f"{BOX}.groups": ["g", "h"]}),
    (["--group-rm", "g"], {f"{BOX}.groups": []}),
    (["--host-add", "x:10.0.0.3"], {f"{BOX}.hosts": ["10.0.0.1 db", "10.0.0.2 web", "10.0.0.3 x"]}),
    (["--host-rm", "db"], {f"{BOX}.hosts": ["10.0.0.2 web"]}),
    (["--host-rm", "db:10.9.9.9"], {}),
    (["--dns-add", "2.2.2.2"], {f"{BOX}.dns.nameservers": ["1.1.1.1", "2.2.2.2"]}),
    (["--dns-rm", "1.1.1.1"], {f"{BOX}.dns.nameservers": []}),
    (["--dns-search-add", "x"], {f"{BOX}.dns.search": ["corp", "x"]}),
    (["--dns-search-rm", "corp"], {f"{BOX}.dns.search": []}),
    (["--dns-option-add", "x"], {f"{BOX}.dns.options": ["ndots:1", "x"]}),
    (["--dns-option-rm", "ndots:1"], {f"{BOX}.dns.options": []}),
    (["--cap-add", "CHOWN"], {f"{BOX}.capabilities_drop": []}),
    (["--cap-add", "SYS_TIME"], {f"{BOX}.capabilities_add": ["CAP_NET_RAW", "CAP_SYS_TIME"]}),
    (["--cap-drop", "NET_RAW"], {f"{BOX}.capabilities_add": []}),
    (["--sysctl-add", "ab=2"], {f"{BOX}.sysctls.ab": "2"}),
    (["--sysctl-rm", "a.b"], {f"{BOX}.sysctls.a.b": None}),
    (["--ulimit-add", "nofile=3"], {f"{BOX}.ulimits": [{"name": "nofile", "soft": 3, "hard": 3}]}),
    (["--ulimit-rm", "nofile"], {f"{BOX}.ulimits": []}),
    (["--health-cmd", "x"], {f"{BOX}.health.test": ["CMD-SHELL", "x"]}),
    (["--no-read-only"], {}),
    (["--network-add", "net"], {f"{TASK}.networks": [{"network": "id-of-net", "aliases": []}]}),
]  # fmt: skip


def test_each_flag_of_update_changes_its_own_words(script: Script, swarmctl: Run) -> None:
    before = existing()
    summary = control.ServiceSummary(service=types.Service(id="x", spec=before))
    for words, expected in UPDATE:
        script.requests.clear()
        script.answers["GetService"] = control.GetServiceResponse(summary=summary)
        script.answers["GetNetwork"] = control.GetNetworkResponse(network=types.Network(id="id-of-net"))
        script.answers["UpdateService"] = control.UpdateServiceResponse(service=types.Service(id="x"))
        result = swarmctl("service", "update", "-d", *words, "web")
        assert result.code == 0, result.err
        assert difference(as_json(before), as_json(script.only("UpdateService").spec)) == expected, words


def test_every_own_flag_of_update_has_a_case() -> None:
    tested = {word for words, _ in UPDATE for word in words}
    for name in UpdateFlags.__annotations__:
        flag = "--" + name.replace("_", "-")
        assert flag in tested or name in ("rollback", "network_rm"), f"no case for {flag}"


@pytest.mark.parametrize("words", [["--publish-rm", "81"], ["--publish-rm", "8080"], ["--network-rm", "net"]])
def test_removing_what_is_not_there_says_so(script: Script, swarmctl: Run, words: list[str]) -> None:
    summary = control.ServiceSummary(service=types.Service(id="x", spec=existing()))
    script.answers["GetService"] = control.GetServiceResponse(summary=summary)
    script.answers["GetNetwork"] = control.GetNetworkResponse(network=types.Network(id="id-of-net"))
    result = swarmctl("service", "update", *words, "web")
    assert result.code == 10
    assert words[0] in result.err
    assert words[0] != "--publish-rm" or "write one of 8080:80, or its target alone" in result.err
    assert not script.asked("UpdateService")
