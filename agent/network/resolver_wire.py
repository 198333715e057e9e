"""What the agent and the resolver say to each other over `RUN/resolver.sock`: JSON messages behind their length.

A request is {"op": "ping" | "update" | "stop"}. An update carries `networks` and `containers` by id (null removes); the kinds
that `complete` names are replaced as a whole. Saying a thing twice changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

SOCKET = "resolver.sock"
STATE = "resolver.json"
PID = "resolver.pid"
VERSION = 2  # a resolver of another version is replaced
MAX_MESSAGE_BYTES = 64 << 20

Message = dict[str, Any]


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the stream. Raises ValueError where it is malformed."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
        message = json.loads(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message


async def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    data = json.dumps(message).encode()
    writer.write(len(data).to_bytes(4, "big") + data)
    await writer.drain()


def socket_path(run_dir: Path) -> Path:
    return run_dir / SOCKET
