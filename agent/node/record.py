"""node.json: what a node knows of its membership, so that it takes it up again after a restart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from swarm.errors import FailedPrecondition, ResourceExhausted
from swarm.identity import write_atomically
from swarm.names import AGENT_PORT
from swarm.v1 import types_pb2 as types

SCHEMA_VERSION = 1
FILE_NAME = "node.json"


@dataclass(frozen=True)
class NodeRecord:
    """One membership. Addresses are as advertised; `managers` are cluster ports, as the managers last named them."""

    node_id: str
    cluster_id: str
    address: str
    listen_address: str = "0.0.0.0"  # every call is authenticated
    agent_port: int = AGENT_PORT
    number: int = 0  # Node.number; 0 until the first session
    managers: tuple[str, ...] = ()
    default_registry: str = ""
    boot_counter: int = 0
    availability: int = types.AVAILABILITY_ACTIVE

    def with_boot(self) -> NodeRecord:
        return replace(self, boot_counter=self.boot_counter + 1)

    def with_settings(self, number: int, managers: Sequence[str], default_registry: str) -> NodeRecord:
        """As the managers say; an empty list of managers is not believed, a node would lose its way back."""
        return replace(
            self,
            number=number or self.number,
            managers=tuple(managers) or self.managers,
            default_registry=default_registry,
        )


class NodeFile:
    """STATE/node.json. There is one exactly while the node is a member."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE_NAME

    def load(self) -> NodeRecord | None:
        """None where the node is not a member. Raises FailedPrecondition where the file cannot be understood."""
        try:
            value = json.loads(self.path.read_bytes())
            if value.pop("schema") != SCHEMA_VERSION:
                raise ValueError("it was written by another version of this program")
            value["managers"] = tuple(value["managers"])
            return NodeRecord(**value)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise FailedPrecondition(f"{self.path} cannot be read: {error}") from error

    def write(self, record: NodeRecord) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = json.dumps({"schema": SCHEMA_VERSION, **asdict(record)}, indent=1).encode()
        try:
            write_atomically(self.path, data)
        except OSError as error:
            raise ResourceExhausted(f"{self.path} cannot be written: {error}") from error

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
