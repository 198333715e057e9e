"""Signals by the names and numbers that people write: what the managers admit, the agents understand."""

from __future__ import annotations

import re
import signal

from swarm.errors import InvalidArgument

_REAL_TIME = re.compile(r"(RTMIN\+|RTMAX-)([0-9]{1,2})")


def parse_signal(text: str) -> int:
    """ "SIGTERM", "TERM", "15", "SIGRTMIN+3", "SIGRTMAX-2" → number. Raises InvalidArgument for everything else."""
    name = text.strip().upper().removeprefix("SIG")
    number = 0
    if re.fullmatch("[0-9]{1,2}", name):
        number = int(name)
    elif real_time := _REAL_TIME.fullmatch(name):
        offset = int(real_time[2])
        number = signal.SIGRTMIN + offset if real_time[1] == "RTMIN+" else signal.SIGRTMAX - offset
        if number < signal.SIGRTMIN:
            number = 0
    elif f"SIG{name}" in signal.Signals.__members__:
        number = signal.Signals[f"SIG{name}"]
    if not 0 < number <= signal.SIGRTMAX:
        raise InvalidArgument(
            f"{text!r} is not a signal; write a name as SIGTERM or a number from 1 to {int(signal.SIGRTMAX)}"
        )
    return int(number)
