"""The table of who may call what names every method that exists, and no other."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import swarm.v1
from swarm.authorization import ALLOWED, authorize
from swarm.errors import PermissionDenied, Unauthenticated
from swarm.identity import ANONYMOUS_PEER, LOCAL_PEER, Peer, Role


def all_methods() -> set[str]:
    found: set[str] = set()
    for module in pkgutil.iter_modules(swarm.v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"swarm.v1.{module.name}").DESCRIPTOR
            for service in descriptor.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def test_every_method_has_its_row_and_every_row_its_method() -> None:
    assert set(ALLOWED) == all_methods()


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ANONYMOUS])
def test_only_a_host_without_a_certificate_may_join(role: Role) -> None:
    with pytest.raises(PermissionDenied):
        authorize("/swarm.v1.Enrolment/Join", Peer("x", role, "c"))
    authorize("/swarm.v1.Enrolment/Join", ANONYMOUS_PEER)


@pytest.mark.parametrize("method", sorted(set(ALLOWED) - {"/swarm.v1.Enrolment/Join"}))
def test_nothing_else_is_open_to_a_host_without_one(method: str) -> None:
    with pytest.raises(Unauthenticated, match="needs a certificate"):
        authorize(method, ANONYMOUS_PEER)


@pytest.mark.parametrize("method", sorted(ALLOWED))
def test_servers_may_call_nothing(method: str) -> None:
    with pytest.raises(PermissionDenied):
        authorize(method, Peer("registry", Role.SERVER, "c"))


def test_viewers_only_look_and_workers_only_speak_for_themselves() -> None:
    viewer, worker = Peer("v", Role.VIEWER, "c"), Peer("w", Role.WORKER, "c")
    authorize("/swarm.v1.Control/ListServices", viewer)
    authorize("/swarm.v1.Certificates/Renew", worker)
    for method, peer in (
        ("/swarm.v1.Control/CreateService", viewer),
        ("/swarm.v1.Control/GetJoinTokens", viewer),
        ("/swarm.v1.Control/IssueCertificate", viewer),
        ("/swarm.v1.Control/GetJoinTokens", worker),
        ("/swarm.v1.NodeAgent/TaskLogs", worker),
        ("/swarm.v1.LocalNode/Leave", Peer("m", Role.MANAGER, "c")),
        ("/swarm.v1.Unknown/Method", LOCAL_PEER),
    ):
        with pytest.raises(PermissionDenied):
            authorize(method, peer)


def test_a_viewer_is_told_what_would_help() -> None:
    with pytest.raises(
        PermissionDenied, match=r"'v' is a viewer, who may look .*CreateService.*cert issue --role admin"
    ):
        authorize("/swarm.v1.Control/CreateService", Peer("v", Role.VIEWER, "c"))
