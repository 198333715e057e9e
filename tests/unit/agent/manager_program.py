"""A program that stands for the manager's: it takes the lock, tells that it is ready, and waits."""

from __future__ import annotations

LOCKED_MANAGER = """
import fcntl, os, signal, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write(str(os.getpid())); file.flush()
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"ready\\n")
signal.pause()
"""
