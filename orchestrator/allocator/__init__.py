"""Addresses, virtual IPs, ports, subnets and VNIs: pure functions on the snapshot."""

from orchestrator.allocator.step import Rotation, step, waits

__all__ = ["Rotation", "step", "waits"]
