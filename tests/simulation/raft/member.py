"""A member as a process of its own: `python -m tests.simulation.raft.member DIRECTORY NAME FOUNDERS`.

Reads one JSON request a line ({id, kind, key, value, timeout}) and answers each with one line. Registers as in `world.Machine`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from swarm.errors import OutcomeUnknown, SwarmError
from swarm.identity import TlsFiles
from swarm.servers import RpcServer

from orchestrator.consensus import Member
from orchestrator.raft import RaftConfig, RaftNode
from orchestrator.raft.config import CompactionPolicy
from tests.support.json_lines import serve


class Registers:
    """Keys and values."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, index: int, command: bytes) -> bytes:
        key, _, value = command.decode().partition(" ")
        self.values[key] = value
        return b""

    def capture(self) -> Callable[[], Iterable[bytes]]:
        copy = dict(self.values)

        def produce() -> Iterator[bytes]:
            yield json.dumps(copy).encode()

        return produce

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        self.values = json.loads(b"".join(chunks))


async def answer(node: RaftNode, registers: Registers, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["kind"] == "write":
            await node.propose(f"{request['key']} {request['value']}".encode(), timeout=request["timeout"])
            return {"outcome": "done"}
        await node.read_barrier(timeout=request["timeout"])
        return {"outcome": "done", "value": registers.values.get(request["key"])}
    except OutcomeUnknown:
        return {"outcome": "unknown"}
    except SwarmError as error:
        return {"outcome": "refused", "why": str(error)}


async def main(directory: Path, name: str, founders: dict[str, str]) -> None:
    tls = TlsFiles(directory / "certificates" / name)
    members = tuple(Member(node_id, address) for node_id, address in founders.items())
    registers = Registers()
    node = RaftNode(
        RaftConfig(
            directory / name,
            Member(name, founders[name]),
            tls.read,
            initial_members=members,
            compaction=CompactionPolicy(entries=200, keep_entries=20),
            data_key=directory / "certificates" / name / "data.key",
        ),
        registers,
    )
    server = RpcServer()
    node.register(server)
    server.listen_tls(founders[name], tls.read)
    await server.start()
    await node.start()
    await serve(lambda request: answer(node, registers, request))
    await node.stop(transfer=False)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
