"""The files of a member: replaced together, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition
from swarm.identity import TlsFiles, TlsMaterial


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "certificates")
    assert not files.exists()
    files.write(b"key", b"certificate", b"ca")
    assert files.exists()
    assert files.read() == TlsMaterial(b"key", b"certificate", b"ca")
    assert (tmp_path / "certificates" / "node.pem").read_bytes() == b"certificate"
    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert files.key.resolve().stat().st_mode & 0o777 == 0o600


def test_a_crash_before_the_last_step_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = TlsFiles(tmp_path)
    files.write(b"key1", b"certificate1", b"ca1")
    replaced = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target).name == "current":
            raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        files.write(b"key2", b"certificate2", b"ca2")
    monkeypatch.undo()
    assert files.read() == TlsMaterial(b"key1", b"certificate1", b"ca1")
    assert files.key.read_bytes() == b"key1"
    files.write(b"key3", b"certificate3", b"ca3")
    assert files.read() == TlsMaterial(b"key3", b"certificate3", b"ca3")


def test_old_generations_do_not_pile_up(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path)
    for number in range(5):
        files.write(b"%d" % number, b"c", b"a")
    assert len(list(tmp_path.glob("generation-*"))) == 2
    assert files.read().key == b"4"


def test_plain_files_of_an_earlier_layout_are_read_and_replaced(tmp_path: Path) -> None:
    for name in ("node.key", "node.pem", "ca.pem"):
        (tmp_path / name).write_bytes(b"old")
    files = TlsFiles(tmp_path)
    assert files.read().key == b"old"
    files.write(b"new", b"new", b"new")
    assert files.key.read_bytes() == b"new"


def test_missing_files_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="certificate cannot be read"):
        TlsFiles(tmp_path).read()
