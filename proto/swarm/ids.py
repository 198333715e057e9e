"""Object ids: 25 characters of base 36, as Docker Swarm shows them, from 128 random bits.

Randomness is handed in, so that a simulation draws the same ids from the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

ID_LENGTH = 25
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

IdSource = Callable[[], str]


def format_id(number: int) -> str:
    """128 bits as 25 characters; 36**25 > 2**128."""
    digits = []
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def id_source(rng: random.Random | None = None) -> IdSource:
    """A function that draws a new id at each call; from the system's randomness where no generator is given."""
    generator = rng if rng is not None else random.SystemRandom()
    return lambda: format_id(generator.getrandbits(128))
