"""The manager's small parts: its certificate, its lock, its options."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from swarm.errors import AlreadyExists, FailedPrecondition, HistoryCut, ResourceExhausted
from swarm.identity import TlsFiles, TlsMaterial
from swarm.keys import new_key_and_request
from swarm.v1 import types_pb2 as types

from orchestrator.consensus import Leadership, Member
from orchestrator.identity.authority import RootAuthority
from orchestrator.manager import bootstrap, process
from orchestrator.manager.__main__ import main
from orchestrator.manager.backups import Backups
from orchestrator.manager.certificates import CertificateSource
from orchestrator.manager.options import InitOptions, RunOptions, parse
from orchestrator.manager.pidfile import locked, running
from orchestrator.store import features


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/s/manager"), 8),
        (PermissionError(errno.EACCES, "No", "/s"), 1),
    ],
)
def test_a_disk_that_cannot_be_written_to_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, code: int
) -> None:
    """`swarm init` on a host whose disk is full showed the end of a traceback."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bootstrap, "write_bootstrap", fail)
    words = ["--advertise", "192.0.2.1", "--hostname", "h", "--state-dir", str(tmp_path), "--run-dir", str(tmp_path)]
    assert main(["init", *words]) == code
    assert capsys.readouterr().err == f"error: {error.filename}: {error.strerror}\n"


def test_a_host_without_an_identity_is_no_defect(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"the certificate cannot be read: .*No such file"):
        CertificateSource(TlsFiles(tmp_path))


def test_a_certificate_that_is_renewed_while_the_manager_starts_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager went on with the old one, until it expired or was renewed once more: the new one was taken for the one that
    it had read."""
    authority = RootAuthority.create("c1", time.time())
    files = TlsFiles(tmp_path / "certificates")
    read = TlsFiles.read

    def issue() -> bytes:
        keys = new_key_and_request("n1")
        chain = authority.issue_node(keys.csr_pem, "n1", types.NODE_ROLE_MANAGER, now=time.time())
        files.write(keys.key_pem, chain, authority.certificate_pem)
        return chain

    def renewed_meanwhile(files: TlsFiles) -> TlsMaterial:
        found = read(files)
        if found.certificate == first:
            issue()
        return found

    first = issue()
    with monkeypatch.context() as patched:
        patched.setattr(TlsFiles, "read", renewed_meanwhile)
        source = CertificateSource(files)
    assert source().certificate == read(files).certificate != first


async def test_a_manager_that_asks_to_be_a_member_again_says_what_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that had been removed without noticing was refused for ever ("supports up to 1; update it") in a swarm at a
    higher feature level than the first, which its program did support."""
    asked: asyncio.Queue[int] = asyncio.Queue()

    async def ask(*_: object, feature_level: int = features.FIRST) -> None:
        asked.put_nowait(feature_level)

    monkeypatch.setattr(process, "join_cluster", ask)
    monkeypatch.setattr(process, "LEADERLESS_TIMEOUT", 0.01)
    monkeypatch.setattr(features, "SUPPORTED", 2)
    manager: Any = SimpleNamespace(
        consensus=SimpleNamespace(
            leadership=lambda: Leadership(1, "", False, False),
            members=lambda: (Member("m2", "192.0.2.2:2378"),),
            on_leadership=lambda _: None,
        ),
        _member=Member("m1", "192.0.2.1:2378"),
        _options=SimpleNamespace(join=()),
        _tls=lambda: None,
    )
    staying = asyncio.create_task(process.Manager._stay_member(manager))
    try:
        assert await asyncio.wait_for(asked.get(), 10.0) == 2
    finally:
        staying.cancel()


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


def test_a_manager_that_history_went_on_without_stops_also_on_a_full_disk(tmp_path: Path) -> None:
    """It could not write down why, and went on for ever as a process that served nobody."""
    stop = asyncio.Event()
    places = SimpleNamespace(
        superseded=tmp_path / "nowhere" / "superseded"
    )  # as little to be written as on a full disk
    manager: Any = SimpleNamespace(_options=SimpleNamespace(places=places), _stop=stop, _failure=None)
    failure = HistoryCut("the swarm was recovered without this manager")
    process.Manager._fail(manager, failure)
    assert stop.is_set() and manager._failure is failure


async def test_a_snapshot_on_a_full_disk_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swarm snapshot save` said that the call failed unexpectedly, and the manager's log had a traceback."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    consensus: Any = SimpleNamespace()
    with pytest.raises(ResourceExhausted, match="disk of this manager is full"):
        await anext(Backups(consensus, tmp_path).chunks())
