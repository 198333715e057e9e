"""The lab's registry: whose certificate it shows, and finding its process among whatever else runs on the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from swarm.identity import TlsFiles
from swarm.v1 import control_pb2, node_pb2

from orchestrator.lab import formation, hosts, registry
from orchestrator.lab.layout import plan


def test_it_is_found_beside_a_process_with_odd_arguments(tmp_path: Path) -> None:
    """`lab up`, `lab down` and `./dev quickstart` ended with a traceback (UnicodeDecodeError) while any program on the machine
    had an argument that is not UTF-8, such as the name of an old file."""
    configuration = str(tmp_path / "registry" / "registry.yml").encode()
    assert registry.running(tmp_path) is None
    with _with_argument(b"caf\xe9") as odd, _with_argument(configuration) as found:
        try:
            assert registry.running(tmp_path) == found.pid
        finally:
            odd.kill()
            found.kill()


def _with_argument(argument: bytes) -> subprocess.Popen[bytes]:
    """A program that runs, with an argument."""
    program = subprocess.Popen(
        [b"sh", b"-c", b"echo; read line", argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.readline()  # its arguments can be seen from now on
    return program


@pytest.mark.parametrize(("ca", "signed"), [(b"of the old swarm", 1), (b"of this swarm", 0)])
async def test_a_new_swarm_of_the_same_hosts_signs_the_registry_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca: bytes, signed: int
) -> None:
    """After `swarm leave --force` on every host, which `lab up` itself may ask for, `lab up` made a new swarm, whose hosts did
    not trust the registry any more: "certificate signed by unknown authority" for each push and pull until `lab down`."""
    monkeypatch.setattr("orchestrator.lab.layout.STATE_ROOT", tmp_path)
    layout = plan("t", 1, 0, [])
    TlsFiles(layout.state_directory / "registry").write(b"key", b"certificate", ca)
    ran: list[list[str]] = []
    ended: list[Path] = []
    cluster = control_pb2.GetClusterResponse()
    cluster.cluster.ca.certificate_pem = b"of this swarm"

    async def settled(*_: object) -> dict[str, node_pb2.LocalState]:
        return {"m1": node_pb2.LocalState(state="inactive")}

    async def answer(*_: object) -> control_pb2.GetClusterResponse:
        return cluster

    async def nothing(*_: object) -> None:
        return

    async def run(arguments: list[Any], **_: object) -> None:
        ran.append([str(word) for word in arguments])

    monkeypatch.setattr(formation, "_settled_states", settled)
    monkeypatch.setattr(formation, "ask_managers", answer)
    monkeypatch.setattr(hosts, "initialise", nothing)
    monkeypatch.setattr(registry, "start", nothing)
    monkeypatch.setattr(registry, "stop", ended.append)
    monkeypatch.setattr(registry.process, "run", run)
    await formation.form_swarm(layout, lambda line: None)
    assert len(ran) == len(ended) == signed
    assert all("--force" in words and f"unix://{layout.managers[0].control_socket}" in words for words in ran)
