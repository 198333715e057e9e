"""The log, the term and the vote, on disk (removes defects E, F, G and J of docs/raft.md).

Rules it upholds:

1. The journal is append-only. A truncation is a record, not an overwrite; old segments are removed whole, oldest first. So
   a crash between any two writes leaves a readable journal.
2. Nothing counts before `sync` returned. `entries_synced` says what of the log is durable; the term and the vote are
   durable before any message that reveals them is sent (`hard_state_dirty`, looked at by the core on each send).
3. A tail that was never synced is cut off; anything else that is unreadable is refused with the file and the byte.
4. Space is allocated before it is used: `reserve` raises DiskFull while nothing has happened yet. A margin is kept for
   terms, votes and the first entry of a leader.

In memory it is what `pysyncobj` expects of a journal: a list of (command, index, term) whose first element is the *base*,
an entry that was applied long ago and of which only index and term matter.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, overload

from pysyncobj.journal import Journal as LibraryJournal
from swarm.errors import FailedPrecondition, InternalError, is_disk_full
from swarm.v1 import raft_pb2 as pb

from orchestrator.raft.disk import Directory, DiskFull, StoredFile
from orchestrator.raft.records import Damaged, Kind, Record, Scan, UnknownSchema, encode, encoded_size
from orchestrator.raft.sealing import OVERHEAD_BYTES, Sealed, Sealer, open_sealed

log = logging.getLogger(__name__)

Entry = tuple[bytes, int, int]  # command, index, term: the library's order

NO_OP = b"\x01"
FIRST_INDEX = 1
SEGMENT_BYTES = 8 << 20
ALLOCATION_STEP = 1 << 20
MARGIN_BYTES = 64 << 10
_SMALL_SEGMENT = 256 << 10  # a snapshot does not start a new segment for less than this
_SUFFIX = ".journal"


class JournalDamaged(InternalError):
    """The journal cannot be trusted; the member must not take part with it."""


@dataclass
class _Segment:
    name: str
    highest_index: int = 0  # of the entries in it


def _name(sequence: int) -> str:
    return f"{sequence:020d}{_SUFFIX}"


class Journal(LibraryJournal):  # type: ignore[misc]
    """See the module's description. Used by one thread."""

    def __init__(
        self, directory: Directory, configuration: pb.RaftConfiguration, *, sealer: Sealer | None = None
    ) -> None:
        """Reads what is there; founds the journal with `configuration` where nothing is. Raises JournalDamaged."""
        self._directory = directory
        self._sealer = sealer
        self._entries: list[Entry] = []
        self._term = 0
        self._voted_for: str | None = None
        self._commit_index = FIRST_INDEX
        self._stored_commit_index = FIRST_INDEX
        self.base_configuration = pb.RaftConfiguration()
        self._next_sequence = 1
        self._synced_sequence = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._hard_state_dirty = False
        self._segments: deque[_Segment] = deque()
        self._file: StoredFile | None = None
        self._offset = 0
        self._allocated = 0
        self.entries_synced = 0
        self.bytes_in_memory = 0
        self.founded = not self._load()
        if self.founded:
            self.base_configuration.CopyFrom(configuration)
            self._entries = [(NO_OP, FIRST_INDEX, 0)]
            self._open_segment(self._checkpoint(configuration))
        self.bytes_in_memory = sum(len(entry[0]) for entry in self._entries)
        self.entries_synced = self._entries[-1][1] if self._entries else 0

    # ---- what the library calls

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._entries and idx != self._entries[-1][1] + 1:
            raise InternalError(f"entry {idx} cannot follow entry {self._entries[-1][1]}")
        self._entries.append((command, idx, term))
        self.bytes_in_memory += len(command)
        self._record(Kind.ENTRY, command, idx, term)
        self._segments[-1].highest_index = max(self._segments[-1].highest_index, idx)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        if entryFrom >= len(self._entries):
            return
        if entryFrom < 1:
            raise InternalError("the base of the log cannot be truncated")
        index = self._entries[entryFrom][1]
        self.bytes_in_memory -= sum(len(entry[0]) for entry in self._entries[entryFrom:])
        del self._entries[entryFrom:]
        self.entries_synced = min(self.entries_synced, index - 1)
        self._record(Kind.TRUNCATE, b"", index, 0)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Forgets the first `entryTo` entries, which a synced snapshot covers, and removes segments that hold no others."""
        entryTo = min(entryTo, len(self._entries) - 1)
        if entryTo > 0:
            self.bytes_in_memory -= sum(len(entry[0]) for entry in self._entries[:entryTo])
            del self._entries[:entryTo]
        self._remove_segments()

    def clear(self) -> None:
        raise InternalError("the log is never cleared; a snapshot replaces it by `reset`")

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return max(FIRST_INDEX, min(self._commit_index, self._entries[-1][1]))

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        if (term, votedForNodeId) == (self._term, self._voted_for):
            return
        self._term, self._voted_for = term, votedForNodeId
        self._hard_state_dirty = True
        self._record(Kind.VOTE, (votedForNodeId or "").encode(), 0, term)

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._voted_for

    def onOneSecondTimer(self) -> None:
        """The commit index is a hint that spares work after a restart; it goes out with whatever is synced next."""
        if self._commit_index > self._stored_commit_index and self.has_margin():
            self._stored_commit_index = self._commit_index
            self._record(Kind.COMMIT, b"", self._commit_index, 0)

    def _destroy(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- what the core calls

    @property
    def dirty(self) -> bool:
        return bool(self._pending)

    @property
    def hard_state_dirty(self) -> bool:
        """A term or vote was set that a crash would forget."""
        return self._hard_state_dirty

    def sync(self) -> None:
        """Makes everything said so far durable (one write, one fdatasync). An error here is final: what the kernel did
        with the pages is unknown, so the member must stop."""
        if not self._pending:
            return
        self._write_pending()
        assert self._file is not None
        self._file.sync()
        self._synced_sequence = self._next_sequence - 1
        self._hard_state_dirty = False
        self.entries_synced = self._entries[-1][1]
        if self._offset >= SEGMENT_BYTES:
            self._roll()

    def reserve(self, payload_bytes: int, records: int = 1) -> None:
        """Makes room for so many records with so many payload bytes in all, and the margin. Raises DiskFull, and then
        nothing has changed."""
        self._ensure(payload_bytes + records * encoded_size(OVERHEAD_BYTES + 8) + MARGIN_BYTES)

    def has_margin(self) -> bool:
        """Whether a term, a vote and a leader's first entry can be stored."""
        try:
            self._ensure(4096)
        except DiskFull:
            return False
        return True

    def reset(self, index: int, term: int, configuration: pb.RaftConfiguration) -> None:
        """A synced snapshot replaces the whole log."""
        self._entries = [(NO_OP, index, term)]
        self.bytes_in_memory = 1
        self._commit_index = max(self._commit_index, index)
        self.base_configuration = configuration
        self._record(Kind.RESET, self._checkpoint(configuration).SerializeToString(), index, term)
        self.sync()
        self._roll()
        self._remove_segments()

    def align(self, index: int, term: int, configuration: pb.RaftConfiguration, keep: int) -> None:
        """At the start: fits the log to the newest snapshot. Raises JournalDamaged where entries between are missing.

        The snapshot may be newer than the log (a crash between installing it and `reset`), and the log may reach far
        behind it; both are normal. No log at all is not: the term and the vote, and what was acknowledged, are gone with it.
        """
        if self.founded:
            raise JournalDamaged(
                f"there is a snapshot of entry {index}, but no journal beside it; repeat the restore where one was "
                "interrupted, otherwise remove this manager from the swarm and let it join again"
            )
        first, last = self._entries[0][1], self._entries[-1][1]
        if index < first:
            raise JournalDamaged(
                f"the journal begins at entry {first}, but the newest snapshot ends at {index}; a snapshot file is "
                "missing: remove this manager and let it join again"
            )
        if index > last or self._entries[index - first][2] != term:
            self.reset(index, term, configuration)
            return
        self.base_configuration = configuration
        self._commit_index = max(self._commit_index, index)
        self.deleteEntriesTo(max(0, index - keep - first))

    def start_new_segment(self) -> None:
        """Called when a snapshot is stored, so that the current segment can be removed some day."""
        if self._offset > _SMALL_SEGMENT:
            self.sync()
            self._roll()

    # ---- writing

    def _record(self, kind: Kind, payload: bytes, index: int, term: int) -> None:
        data = self._encoded(Record(kind, self._next_sequence, self._synced_sequence, index, term, payload))
        self._next_sequence += 1
        self._pending.append(data)
        self._pending_bytes += len(data)

    def _encoded(self, record: Record) -> bytes:
        if self._sealer is not None:
            payload = self._sealer.seal(record.payload, record.context)
            # Written out: `dataclasses.replace` costs as much as the sealing.
            record = Record(
                record.kind, record.sequence, record.synced, record.index, record.term, payload, sealed=True
            )
        return encode(record)

    def _write_pending(self) -> None:
        assert self._file is not None
        self._ensure(0)
        data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        self._file.write(self._offset, data)
        self._offset += len(data)

    def _ensure(self, more: int) -> None:
        needed = self._offset + self._pending_bytes + more
        if needed > self._allocated:
            assert self._file is not None
            target = -(-needed // ALLOCATION_STEP) * ALLOCATION_STEP
            self._file.allocate(target)
            self._allocated = target

    def _checkpoint(self, configuration: pb.RaftConfiguration | None = None) -> pb.RaftJournalCheckpoint:
        _, index, term = self._entries[-1]
        return pb.RaftJournalCheckpoint(
            term=self._term,
            voted_for=self._voted_for or "",
            commit_index=self._commit_index,
            base_index=index,
            base_term=term,
            configuration=configuration,
        )

    def _open_segment(self, checkpoint: pb.RaftJournalCheckpoint) -> None:
        """Creates the next segment. Raises DiskFull, and then the current one stays."""
        name, sequence = _name(self._next_sequence), self._next_sequence
        data = self._encoded(
            Record(Kind.CHECKPOINT, sequence, sequence - 1, 0, checkpoint.term, checkpoint.SerializeToString())
        )
        file: StoredFile | None = None
        try:
            file = self._directory.open(name, create=True)
            file.allocate(ALLOCATION_STEP)
            file.write(0, data)
            file.sync()
            self._directory.sync()
        except (DiskFull, OSError) as error:
            if not isinstance(error, DiskFull) and not is_disk_full(error):
                raise
            # Also where only a sync found it out: nothing was said yet that depends on this file.
            if file is not None:
                file.close()
            self._directory.remove(name)
            # The current segment takes the records that this one was named for: were it back after a power loss, they would
            # seem to be missing.
            self._directory.sync()
            raise DiskFull("the disk that holds the journal is full; free some space") from error
        if self._file is not None:
            self._file.truncate(self._offset)  # zeros that were never used; harmless where a crash keeps them
            self._file.close()
        self._file, self._offset, self._allocated = file, len(data), ALLOCATION_STEP
        self._next_sequence, self._synced_sequence = sequence + 1, sequence
        self._segments.append(_Segment(name))

    def _roll(self) -> None:
        """Starts a new segment, where the disk has room for one; the old one gives back what it did not use."""
        assert self._file is not None and not self._pending
        try:
            self._open_segment(self._checkpoint())
        except DiskFull:
            log.warning("no room for a new journal segment; the current one goes on")

    def _remove_segments(self) -> None:
        """Removes leading segments whose entries the base of the log has left behind (the file shrinks: defect F, G)."""
        removed = False
        while len(self._segments) > 1 and self._segments[0].highest_index <= self._entries[0][1]:
            # The next one must hold the base itself, or know it from its checkpoint; both are read back by `_load`.
            self._directory.remove(self._segments[0].name)
            self._segments.popleft()
            removed = True
        if removed:
            self._directory.sync()

    # ---- reading back

    def _load(self) -> bool:
        """Reads all segments; False where there are none."""
        names = [name for name in self._directory.names() if name.endswith(_SUFFIX)]
        data = b""
        scan: Scan | None = None
        for position, name in enumerate(names):
            last = position == len(names) - 1
            first_sequence = int(name[: -len(_SUFFIX)])
            if scan is not None and first_sequence != scan.sequence:
                raise self._damaged(names[position - 1], f"record {scan.sequence} is missing")
            data = self._read(name)
            found = Scan(data, first_sequence)
            self._segments.append(_Segment(name))
            try:
                for record in found:
                    self._replay(record, name)
                found.check_tail()
            except Damaged as error:
                raise self._damaged(name, str(error)) from error
            except UnknownSchema as error:
                raise JournalDamaged(f"journal {name}: {error}; start this manager with the newer version") from error
            if found.end == 0:
                # Earlier segments are removed once a later one is safe: where none is left, this one was.
                if not last or (scan is None and first_sequence > 1):
                    raise self._damaged(name, "its first record is unreadable")
                # The segment was being created when the host stopped: nothing in it was ever relied upon.
                self._segments.pop()
                self._directory.remove(name)
                self._directory.sync()
                break
            scan = found
        if scan is None:
            return False
        self._reopen(scan)
        return True

    def _reopen(self, scan: Scan) -> None:
        name = self._segments[-1].name
        file = self._directory.open(name)
        size = file.size()
        if scan.data[scan.end :].strip(b"\0"):
            log.warning("journal %s: an unfinished tail of %d bytes was cut off", name, size - scan.end)
        # Zeros over the tail, synced before anything is appended: an old record must not come back behind new ones.
        file.truncate(scan.end)
        try:
            file.allocate(-(-scan.end // ALLOCATION_STEP) * ALLOCATION_STEP)
        except DiskFull as error:
            log.warning("%s", error)
        file.sync()
        self._file, self._offset, self._allocated = file, scan.end, file.size()
        self._next_sequence, self._synced_sequence = scan.sequence, scan.sequence - 1
        self._stored_commit_index = self._commit_index

    def _read(self, name: str) -> bytes:
        file = self._directory.open(name)
        try:
            return file.read(0, file.size())
        finally:
            file.close()

    def _replay(self, record: Record, name: str) -> None:
        if record.sealed:
            try:
                record = replace(record, payload=open_sealed(self._sealer, record.payload, record.context))
            except Sealed as error:
                raise FailedPrecondition(f"journal {name}: {error}") from error
        match record.kind:
            case Kind.ENTRY:
                if self._entries and record.index != self._entries[-1][1] + 1:
                    raise self._damaged(name, f"entry {record.index} follows entry {self._entries[-1][1]}")
                self._entries.append((record.payload, record.index, record.term))
                self._segments[-1].highest_index = max(self._segments[-1].highest_index, record.index)
            case Kind.TRUNCATE:
                first = self._entries[0][1] if self._entries else record.index
                # May reach below what the remaining segments hold; then the entries that follow start the log anew.
                del self._entries[max(0, record.index - first) :]
            case Kind.VOTE:
                self._term, self._voted_for = record.term, record.payload.decode() or None
            case Kind.COMMIT:
                self._commit_index = max(self._commit_index, record.index)
            case Kind.CHECKPOINT | Kind.RESET:
                checkpoint = pb.RaftJournalCheckpoint.FromString(record.payload)
                self._term, self._voted_for = checkpoint.term, checkpoint.voted_for or None
                self._commit_index = max(self._commit_index, checkpoint.commit_index)
                if record.kind is Kind.RESET or len(self._segments) == 1:
                    self._entries = [(NO_OP, checkpoint.base_index, checkpoint.base_term)]
                    self.base_configuration = checkpoint.configuration

    @staticmethod
    def _damaged(name: str, what: str) -> JournalDamaged:
        return JournalDamaged(
            f"journal {name}: {what}; this manager's state is damaged: remove it from the swarm and let it join again"
        )


def install_in_library(library: Any) -> None:
    """Lets `SyncObjConf.journalFile` carry a Journal; anything else goes to the library's own function."""
    original = library.createJournal
    if getattr(original, "takes_journals", False):
        return

    def create(journal: Any = None) -> Any:
        return journal if isinstance(journal, Journal) else original(journal)

    create.takes_journals = True  # type: ignore[attr-defined]
    library.createJournal = create
