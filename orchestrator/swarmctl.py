"""The program `swarmctl`, as it is installed: imports it, and begins.

Importing takes longer than some commands. Ctrl-C ends the process meanwhile as it ends any program, without a traceback; once
all is there, commands end it themselves (and say what goes on in the background).
"""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where whoever started us has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator.cli.main import main as swarmctl

    signal.signal(signal.SIGINT, handler)
    swarmctl()
