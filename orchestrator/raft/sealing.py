"""What a member stores is sealed with a key of its own (AES-256-GCM), kept beside the node's private key.

So a copied state directory alone reveals nothing, and cannot be altered unnoticed. Each record and each block of a snapshot is
sealed by itself, bound to its place (`context`). Members have different keys: what travels is opened first and sealed again
where it arrives, TLS protects it between. Files written before a key existed stay readable.
"""

from __future__ import annotations

import os
from pathlib import Path

from swarm.errors import FailedPrecondition, InternalError
from swarm.identity import write_atomically

KEY_BYTES = 32
_NONCE_BYTES = 12
OVERHEAD_BYTES = _NONCE_BYTES + 16


class Sealed(InternalError):
    """Something is sealed with a key that this member does not have."""


class Sealer:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(key)

    def seal(self, data: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, context)

    def open(self, data: bytes, context: bytes) -> bytes:
        """Raises Sealed where the key or the context is another one."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise Sealed(
                "it was sealed with another data key than this manager has; put the right key file back (certificates/raft.key)"
            ) from error


def open_sealed(sealer: Sealer | None, data: bytes, context: bytes) -> bytes:
    """Opens what is known to be sealed. Raises Sealed also where there is no key at all."""
    if sealer is None:
        raise Sealed("it is sealed, and this manager has no data key; put the key file back (certificates/raft.key)")
    return sealer.open(data, context)


def sealer_from(path: Path | None) -> Sealer | None:
    """The sealer of the key in `path`, which is made where it is missing; None without a path."""
    if path is None:
        return None
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, os.urandom(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise FailedPrecondition(f"{path} is not a data key of {KEY_BYTES} bytes; put the right file back")
    return Sealer(key)
