"""Operations in a process of their own: a fixed table of them, text in and out."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from swarm import apart, keys, operations
from swarm.errors import DeadlineExceeded, InternalError, InvalidArgument, SwarmError, Unavailable
from swarm.process import CommandFailed
from swarm.v1 import types_pb2

from orchestrator.identity.authority import RootAuthority


async def test_a_key_is_made_and_a_certificate_for_it_checked() -> None:
    made = await apart.new_key_and_request("n1")
    authority = RootAuthority.create("c", time.time())
    chain = authority.issue_node(made.csr_pem, "n1", types_pb2.NODE_ROLE_WORKER, now=time.time())
    await apart.check_issued(made.key_pem, chain, authority.certificate_pem)
    other = keys.new_key_and_request("n1")
    with pytest.raises(InternalError, match="for another key"):
        await apart.check_issued(other.key_pem, chain, authority.certificate_pem)
    with pytest.raises(InternalError, match="not PEM"):
        await apart.check_issued(made.key_pem, b"\xff", authority.certificate_pem)


async def test_errors_keep_their_kind_and_their_sentence() -> None:
    with pytest.raises(Unavailable, match=r"manager 127\.0\.0\.1:1 is not reachable"):
        await apart.shown_chain("127.0.0.1", 1)


async def test_what_can_be_no_hosts_name_is_refused() -> None:
    """`swarm join a..b` answered with the traceback of the program that looks at the manager."""
    with pytest.raises(InvalidArgument, match=r"'a\.\.b' is not the name or address of a host"):
        await apart.shown_chain("a..b", 1)


def test_only_the_operations_of_the_table_are_done() -> None:
    for operation in ("os.getpid", "", "builtins.eval", "__class__"):
        with pytest.raises(KeyError):
            operations.serve(apart.OPERATIONS, operation, io.BytesIO(b"{}"), io.BytesIO())


def test_what_travels_is_json() -> None:
    answers = io.BytesIO()
    operations.serve(apart.OPERATIONS, "new-key", io.BytesIO(b'{"common_name": "x"}'), answers)
    assert set(json.loads(answers.getvalue())) == {"key", "csr"}


@pytest.mark.parametrize(
    ("program", "raised"),
    [
        ("#!/bin/sh\nexit 3\n", CommandFailed),
        ("#!/bin/sh\necho nonsense\n", InternalError),
        ("#!/bin/sh\necho '[]'\n", InternalError),
        ("#!/bin/sh\nexec sleep 60\n", DeadlineExceeded),
    ],
)
async def test_a_process_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, raised: type[SwarmError]
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(program)
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(operations, "TIMEOUT", 1.0)
    with pytest.raises(raised):
        await apart.new_key_and_request("n1")
