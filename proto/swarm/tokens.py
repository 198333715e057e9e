"""Join tokens: what a host needs to know to become a member, in one word.

`SWMTKN-1-<digest>-<secret>`, as Docker Swarm writes them: the SHA-256 of the cluster's CA certificate (DER) and a secret
that says which role one may join as, both in base 36. The digest lets the joining host recognise the cluster before it
shows the secret. Nothing here needs a network or a key.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from swarm.errors import InvalidArgument

PREFIX = "SWMTKN"
VERSION = "1"
DIGEST_LENGTH = 50  # 36**50 > 2**256
SECRET_LENGTH = 25  # 36**25 > 2**128
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class JoinToken:
    """`digest` is the SHA-256 of the CA certificate in DER; `secret` is what the managers compare."""

    digest: bytes
    secret: str

    def __str__(self) -> str:
        return f"{PREFIX}-{VERSION}-{_base36(int.from_bytes(self.digest), DIGEST_LENGTH)}-{self.secret}"

    def __repr__(self) -> str:  # tokens reach logs by accident
        return f"JoinToken(digest={self.digest.hex()[:12]}…)"


def parse_token(text: str) -> JoinToken:
    """Raises InvalidArgument, saying what is wrong, where `text` is not of the form."""
    parts = text.strip().split("-")
    if len(parts) != 4 or parts[0] != PREFIX:
        raise InvalidArgument(
            f"the join token is malformed: it reads {PREFIX}-{VERSION}-<digest>-<secret>; "
            "`swarmctl swarm join-token worker` on a manager prints the whole of it"
        )
    if parts[1] != VERSION:
        raise InvalidArgument(f"the join token is of version {parts[1]!r}, which this program does not know")
    for name, part, length in (("digest", parts[2], DIGEST_LENGTH), ("secret", parts[3], SECRET_LENGTH)):
        if len(part) != length or not set(part) <= set(_ALPHABET):
            raise InvalidArgument(
                f"the join token is malformed: its {name} must be {length} characters of 0-9 and a-z; was it cut short?"
            )
    number = int(parts[2], 36)
    if number >= 1 << 256:
        raise InvalidArgument("the join token is malformed: its digest is too large")
    return JoinToken(number.to_bytes(32), parts[3])


def ca_digest(ca_der: bytes) -> bytes:
    """The digest by which tokens name a cluster, of its CA certificate in DER."""
    return hashlib.sha256(ca_der).digest()


def new_secret(rng: random.Random | None = None) -> str:
    """A secret of 128 random bits; from the system's randomness where no generator is given."""
    generator = rng if rng is not None else random.SystemRandom()
    return _base36(generator.getrandbits(128), SECRET_LENGTH)


def _base36(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
