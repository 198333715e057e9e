"""The node daemon, `swarmd`: runs the tasks that managers assign to this host. Knows only `swarm`, never `orchestrator`."""
