"""Placement: pure functions from a snapshot to assignments, or to the reason why there is none."""

from orchestrator.scheduler.constraints import check_key, parse_constraint
from orchestrator.scheduler.step import step

__all__ = ["check_key", "parse_constraint", "step"]
