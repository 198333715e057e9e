"""The manager's small parts: its certificate, its lock, its options."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from swarm.errors import AlreadyExists
from swarm.identity import TlsFiles
from swarm.keys import new_key_and_request
from swarm.v1 import types_pb2 as types

from orchestrator.identity.authority import RootAuthority
from orchestrator.manager.certificates import CertificateSource
from orchestrator.manager.options import InitOptions, RunOptions, parse
from orchestrator.manager.pidfile import locked, running


def test_a_renewed_certificate_is_used_at_once_and_a_missing_one_not_at_all(tmp_path: Path) -> None:
    authority = RootAuthority.create("c1", time.time())
    files = TlsFiles(tmp_path / "certificates")

    def issue() -> bytes:
        keys = new_key_and_request("n1")
        chain = authority.issue_node(keys.csr_pem, "n1", types.NODE_ROLE_MANAGER, now=time.time())
        files.write(keys.key_pem, chain, authority.certificate_pem)
        return chain

    first = issue()
    source = CertificateSource(files)
    assert source().certificate == first
    assert source() is source()
    second = issue()
    assert source().certificate == second
    files.certificate.unlink()
    assert source().certificate == second


def test_one_process_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run" / "manager.pid"
    assert running(path) is None
    with locked(path):
        assert running(path) == os.getpid()
        with pytest.raises(AlreadyExists, match=str(os.getpid())), locked(path):
            pass
    assert running(path) is None
    with locked(path):
        pass


def test_options() -> None:
    chosen = parse(["run", "--advertise", "192.0.2.1", "--join", "a:1,b:2,", "--state-dir", "/s"])
    assert isinstance(chosen, RunOptions)
    assert chosen.join == ("a:1", "b:2")
    assert str(chosen.agent_socket) == "/run/swarm/swarmd.sock"
    assert chosen.metrics == "127.0.0.1:9323"
    begun = parse(["init", "--advertise", "192.0.2.1", "--hostname", "h", "--state-dir", "/s"])
    assert isinstance(begun, InitOptions)
    assert str(begun.places.bootstrap) == "/s/manager/bootstrap"


def test_wrong_options_end_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["run"])
    assert ended.value.code == 2
    assert "--advertise" in capsys.readouterr().err
