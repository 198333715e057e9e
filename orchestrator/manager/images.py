"""What a registry says about an image, asked through this host's agent: it has the tools, the credentials and the mirrors."""

from __future__ import annotations

from pathlib import Path

import grpc
from swarm.channels import open_local
from swarm.errors import from_rpc
from swarm.v1 import node_pb2
from swarm.v1.node_pb2_grpc import ImagesStub

RESOLVE_TIMEOUT = 15.0  # seconds; the API waits less, and then goes on with a warning


class AgentImages:
    """`socket` is the agent's."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: grpc.aio.Channel | None = None

    async def resolve(self, reference: str) -> str:
        """The digest (sha256:…) of an image in its registry. Raises NotFound, Unavailable and what else the agent says."""
        if self._channel is None:
            self._channel = open_local(self._socket)
        try:
            answer = await ImagesStub(self._channel).Resolve(
                node_pb2.ImageRequest(reference=reference), timeout=RESOLVE_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, "the agent of this manager's host") from error
        return str(answer.digest)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
