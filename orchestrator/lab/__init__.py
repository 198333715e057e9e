"""Whole clusters on one machine: each host a network namespace with its own daemons, state and links.

It drives `swarmd` as an operator of real hosts would and knows nothing of the orchestrator's inside.
"""
