from __future__ import annotations

import random

import pytest
from swarm.errors import InvalidArgument
from swarm.tokens import DIGEST_LENGTH, SECRET_LENGTH, JoinToken, new_secret, parse_token


@pytest.mark.parametrize("digest", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_a_token_is_read_back(digest: bytes) -> None:
    token = JoinToken(digest, new_secret(random.Random(1)))
    text = str(token)
    assert text.startswith("SWMTKN-1-")
    assert [len(part) for part in text.split("-")[2:]] == [DIGEST_LENGTH, SECRET_LENGTH]
    assert parse_token(f" {text}\n") == token


def test_a_token_hides_its_secret_in_logs() -> None:
    token = JoinToken(bytes(32), new_secret())
    assert token.secret not in repr(token)


_GOOD = str(JoinToken(bytes(32), "a" * SECRET_LENGTH))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "malformed: it reads SWMTKN-1"),
        ("hello", "malformed"),
        (_GOOD.replace("SWMTKN", "TOKEN"), "malformed"),
        (_GOOD.replace("-1-", "-2-"), "version '2'"),
        (_GOOD[:-1], "its secret must be 25 characters .* cut short"),
        (_GOOD + "-x", "malformed"),
        (_GOOD.replace("-0", "-Z", 1), "its digest must be 50 characters"),
        (f"SWMTKN-1-{'z' * DIGEST_LENGTH}-{'a' * SECRET_LENGTH}", "digest is too large"),
    ],
)
def test_a_malformed_token_says_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse_token(text)


def test_secrets_differ() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
