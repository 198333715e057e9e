"""Certificates for tests: a CA, and TLS material of any member, as short-lived as a test needs."""

from __future__ import annotations

import time

from swarm.identity import Role, TlsMaterial
from swarm.keys import new_key_and_request
from swarm.v1 import types_pb2

from orchestrator.identity.authority import RootAuthority

MANAGER = types_pb2.NODE_ROLE_MANAGER
WORKER = types_pb2.NODE_ROLE_WORKER


class TestAuthority:
    """A CA of its own, with shorthands."""

    __test__ = False

    def __init__(self, cluster_id: str = "cluster1") -> None:
        self.root = RootAuthority.create(cluster_id, time.time())

    def node(
        self, node_id: str, role: types_pb2.NodeRole.ValueType = MANAGER, *, validity: float = 3600.0, age: float = 0.0
    ) -> TlsMaterial:
        keys = new_key_and_request(node_id)
        chain = self.root.issue_node(keys.csr_pem, node_id, role, now=time.time() - age, validity=validity)
        return TlsMaterial(keys.key_pem, chain, self.root.certificate_pem)

    def person(self, name: str, role: Role) -> TlsMaterial:
        keys = new_key_and_request(name)
        chain = self.root.issue_person(keys.csr_pem, name, role, now=time.time())
        return TlsMaterial(keys.key_pem, chain, self.root.certificate_pem)
