"""The replicated state of the cluster: tables, snapshots, transactions and watches, fed by committed entries only.

See docs/architecture.md, "The store".
"""

from orchestrator.store.changes import (
    Change,
    Create,
    Remove,
    SetDesiredState,
    SetTaskStatus,
    Update,
    merge_changes,
    split_changes,
)
from orchestrator.store.decisions import Decision, earliest
from orchestrator.store.objects import Key, Kind, StoreObject, copy_of, key_of, kind_of
from orchestrator.store.snapshot import ObjectChange, Snapshot
from orchestrator.store.store import Store
from orchestrator.store.transactions import MAX_ENTRY_BYTES, Result, Transactions
from orchestrator.store.watch import Events, Watch

__all__ = [
    "MAX_ENTRY_BYTES",
    "Change",
    "Create",
    "Decision",
    "Events",
    "Key",
    "Kind",
    "ObjectChange",
    "Remove",
    "Result",
    "SetDesiredState",
    "SetTaskStatus",
    "Snapshot",
    "Store",
    "StoreObject",
    "Transactions",
    "Update",
    "Watch",
    "copy_of",
    "earliest",
    "key_of",
    "kind_of",
    "merge_changes",
    "split_changes",
]
