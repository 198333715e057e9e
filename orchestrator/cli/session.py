"""What a command talks through: the managers or the node daemon of a host, and what to say where there is neither."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from swarm import labs
from swarm.errors import FailedPrecondition, SwarmError, Unavailable

from orchestrator.cli.caller import PATIENCE, Caller, Shell
from orchestrator.cli.target import Endpoint, Places

if TYPE_CHECKING:
    from swarm.v1.control_pb2_grpc import ControlStub
    from swarm.v1.node_pb2 import LocalState
    from swarm.v1.node_pb2_grpc import ImagesStub, LocalNodeStub


class Session:
    """The callers of one command, made as they are asked for. `close` when done."""

    def __init__(self, places: Places, *, patience: float = PATIENCE, shell: Shell | None = None) -> None:
        self._places = places
        self._patience = patience
        self._shell = shell
        self._callers: list[Caller[Any]] = []

    def control(self, *, stale: bool = False) -> Caller[ControlStub]:
        """The managers; `stale`: any replica will do for reads. Raises FailedPrecondition where this host is no manager, or
        in no swarm."""
        from swarm.v1.control_pb2_grpc import ControlStub

        if not self._places.control:
            raise self._no_manager()
        return self._made(Caller[ControlStub](self._places.control, ControlStub, stale=stale, **self._how("manager")))

    def local(self) -> Caller[LocalNodeStub]:
        """The node daemon of one host: which one must not be a guess."""
        from swarm.v1.node_pb2_grpc import LocalNodeStub

        daemons = self._daemons()
        if len(daemons) > 1:
            names = ", ".join(daemon.name for daemon in daemons)
            raise FailedPrecondition(f"the lab {self._places.lab!r} has several hosts; say which with --node: {names}")
        return self._made(Caller[LocalNodeStub](daemons, LocalNodeStub, **self._how("node daemon", final=True)))

    def images(self) -> Caller[ImagesStub]:
        """The images of this host, or of the lab's first host that answers."""
        from swarm.v1.node_pb2_grpc import ImagesStub

        return self._made(Caller[ImagesStub](self._daemons(), ImagesStub, **self._how("node daemon", final=True)))

    def states(self) -> list[LocalState]:
        """The `LocalState` of each daemon that answers."""
        from swarm.v1.node_pb2 import GetStateRequest
        from swarm.v1.node_pb2_grpc import LocalNodeStub

        found = []
        for daemon in self._places.daemons:
            caller = self._made(Caller[LocalNodeStub]((daemon,), LocalNodeStub, **self._how("node daemon")))
            with suppress(Unavailable):
                found.append(caller.call(lambda node: node.GetState, GetStateRequest(), timeout=3.0))
        return found

    def close(self) -> None:
        for caller in self._callers:
            caller.close()

    def _how(self, what: str, final: bool = False) -> dict[str, Any]:
        how: dict[str, Any] = {"what": what, "final": final, "patience": self._patience, "shell": self._shell}
        if self._places.lab:
            how["hint"] = f"`{labs.up_command(self._places.lab)}` starts again what is dead of the lab"
        return how

    def _made(self, caller: Caller[Any]) -> Caller[Any]:
        self._callers.append(caller)
        return caller

    def _daemons(self) -> tuple[Endpoint, ...]:
        if self._places.daemons:
            return self._places.daemons
        if self._places.remote:
            raise FailedPrecondition(
                "this command works with the node daemon of a host, which has no network port for people; "
                "run it on that host"
            )
        if self._places.lab:
            raise self._no_lab_host()
        raise FailedPrecondition("swarmd does not run on this host; start it, or try a lab with `swarmctl lab up`")

    def _no_lab_host(self) -> SwarmError:
        """Neither a manager nor a daemon is where the lab's should be."""
        lab, host = self._places.lab, self._places.host
        if host:
            return labs.not_running(lab, host)
        return Unavailable(f"no host of the lab {lab!r} is running; `{labs.up_command(lab)}` starts what is dead")

    def _no_manager(self) -> SwarmError:
        if self._places.lab and not self._places.daemons:
            return self._no_lab_host()
        states = self.states()
        if not states:
            if self._places.daemons:
                return Unavailable("swarmd of this host does not answer, and no manager runs here; is swarmd running?")
            return FailedPrecondition(
                "there is no swarm on this host: swarmd does not run here. Start it, name a manager with --host, "
                "or try a lab with `swarmctl lab up`"
            )
        if self._places.lab and not self._places.host and any(one.state == "active" for one in states):
            # Not the word of one host: nobody asked for that one.
            starting = any(one.control_socket for one in states)
            return Unavailable(
                f"no manager of the lab {self._places.lab!r} is running"
                + (
                    " yet; repeat in a moment"
                    if starting
                    else f"; `{labs.up_command(self._places.lab)}` starts what is dead"
                )
            )
        return _membership(next((one for one in states if one.state != "inactive"), states[0]))


def _membership(state: LocalState) -> SwarmError:
    """Why the host of this state is no place to send a command to."""
    managers = ", ".join(state.managers) or "none known"
    if state.state == "inactive":
        return FailedPrecondition(
            "this host is not part of a swarm; found one with `swarmctl swarm init` or join one with `swarmctl swarm join`"
        )
    if state.state != "active":
        message = f": {state.message}" if state.message else ""
        return Unavailable(f"this host's membership is {state.state}{message}; managers: {managers}")
    if not state.control_socket:
        return FailedPrecondition(f"this host is a worker; run this command on a manager ({managers})")
    return Unavailable(f"the manager of this host is not running yet, or no more; other managers: {managers}")
