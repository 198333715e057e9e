"""Calls in the helper process."""

from __future__ import annotations

import asyncio
import os

import pytest
from swarm.apart import apart
from swarm.errors import InternalError, InvalidArgument
from swarm.keys import check_issued, der_of, new_key_and_request


async def test_a_call_is_made_in_another_process_and_the_next_one_in_the_same() -> None:
    first, second = await asyncio.gather(apart(os.getpid), apart(os.getpid))
    assert first == second != os.getpid()


async def test_results_and_errors_come_back() -> None:
    keys = await apart(new_key_and_request, "n1")
    assert b"PRIVATE KEY" in keys.key_pem
    with pytest.raises(InternalError, match="did not sign"):
        await apart(check_issued, keys.key_pem, b"", b"")
    with pytest.raises(InvalidArgument, match="PEM"):
        await apart(der_of, b"")


async def test_a_helper_that_dies_is_an_error_and_the_next_call_works() -> None:
    with pytest.raises(InternalError, match="ended unexpectedly"):
        await apart(os._exit, 3)
    assert await apart(os.getpid) != os.getpid()
