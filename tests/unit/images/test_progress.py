"""What of buildah's words is shown while it works."""

from __future__ import annotations

import pytest

from agent.images.commands import progress_of


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Trying to pull r:5000/x:latest...", "Trying to pull r:5000/x:latest..."),
        ("Error: initializing source docker://r:5000/x", ""),  # the call fails with a sentence of ours
        (
            'time="2026-01-01T00:00:00Z" level=warning msg="Failed, retrying in 500ms ... (1/2). Get \\"https://r\\": refused"',
            'Failed, retrying in 500ms ... (1/2). Get "https://r": refused',
        ),
        ('time="2026-01-01T00:00:00Z" level=warning msg="bad \\x escape"', None),
    ],
)
def test_progress_is_shown_bare_and_complaints_once(line: str, shown: str | None) -> None:
    assert progress_of(line) == (line if shown is None else shown)
