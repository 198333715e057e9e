"""Reconcilers: pure functions from a snapshot to changes, one file each, and the shell that runs them on the leader."""

from orchestrator.controllers.core import ControlCore
from orchestrator.controllers.loop import ControlLoop

__all__ = ["ControlCore", "ControlLoop"]
