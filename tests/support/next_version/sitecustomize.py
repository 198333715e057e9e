"""On PYTHONPATH, makes the manager program the version after this one: it supports, and so in the end writes, one feature
level more. To the program under test, its entries are those of a version that it does not know."""

import sys

if "orchestrator.manager" in sys.orig_argv:
    from orchestrator.store import features

    features.SUPPORTED += 1
