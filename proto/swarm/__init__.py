"""What the node daemon and the manager share, and nothing else.

The messages and services (``swarm.v1``), how an authenticated channel or server is opened (``channels``, ``servers``,
``identity``, ``authorization``), the one error hierarchy (``errors``), the one retry policy (``retry``), the one runner
of subprocesses (``process``), and the small vocabulary of ids, clocks and well-known names (``ids``, ``clock``, ``names``).
"""
