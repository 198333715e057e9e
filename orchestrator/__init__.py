"""The manager and `swarmctl`. Knows only `swarm`, never `agent`."""
