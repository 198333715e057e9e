"""What of buildah's words is shown while it works, and what is made of them when a build fails."""

from __future__ import annotations

import pytest
from swarm.errors import InternalError, NotFound, ResourceExhausted, SwarmError, Unavailable

from agent.images.complaints import explain_build, progress_of, separated


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
        ('Resolving "x" using unqualified-search registries (/run/home/zzz-swarm.conf)', ""),
        ('time="2026-01-01T00:00:00Z" level=error msg="+(UNHANDLED LOGLEVEL) &imagebuilder.Step{}"', ""),
    ],
)
def test_progress_is_shown_bare_and_complaints_once(line: str, shown: str | None) -> None:
    assert progress_of(line) == (line if shown is None else shown)


def test_sentences_that_were_run_together_are_separated() -> None:
    line = (
        "process failed to start with error: fork/exec /bin/nosuch: no such file or directory"
        "process exited with error: exec: not startedsubprocess exited with status 1"
    )
    parts = list(separated(line))
    assert parts == [
        "process failed to start with error: fork/exec /bin/nosuch: no such file or directory",
        "process exited with error: exec: not started",
        "subprocess exited with status 1",
    ]
    assert [progress_of(part) for part in parts] == [parts[0], "", ""]
    assert list(separated("cat: /nope: No such file")) == ["cat: /nope: No such file"]


@pytest.mark.parametrize(
    ("complaint", "kind", "sentence"),
    [
        (
            "Trying to pull r/x...\nCopying blob sha256:a\nStoring signatures\n"
            "process failed to start with error: fork/exec /x: no such file or directory\n"
            "process exited with error: exec: not started\nsubprocess exited with status 1\n"
            'Error: building at STEP "RUN /x": exit status 1',
            InternalError,
            "building w: the step `RUN /x` failed: exit status 1; "
            "process failed to start with error: fork/exec /x: no such file or directory",
        ),
        (
            "one\ntwo\nthree\nfour: connection refused\nsubprocess exited with status 7\nsubprocess exited with status 7\n"
            'Error: building at STEP "RUN sh -c "false"": while running runtime: exit status 7',
            InternalError,
            'building w: the step `RUN sh -c "false"` failed: while running runtime: exit status 7; '
            "two; three; four: connection refused",
        ),
        (
            'noise\nError: building at STEP "COPY a b": checking on sources under "/c": copier: stat: '
            '"/a": no such file or directory',
            InternalError,
            'the step `COPY a b` failed: there is no "/a" in what it copies from',
        ),
        (
            'Error: building at STEP "FOO ": Build error: Unknown instruction: "FOO" &imagebuilder.Step{Env:[]string{}}',
            InternalError,
            'building w: the step `FOO` failed: Build error: Unknown instruction: "FOO"',
        ),
        (
            "Error: creating build container: initializing source docker://r:5000/base:1: reading manifest 1 in r:5000/base: "
            "manifest unknown",
            NotFound,
            "building w: the image r:5000/base:1 that it starts from was not found; push it to that registry first, or check "
            "its name; one of Docker Hub is called `docker.io/library/NAME`",
        ),
        (
            'Error: creating build container: initializing source docker://r:5000/base:1: pinging container registry: Get "h": '
            "dial tcp: connect: connection refused",
            Unavailable,
            "building w: the image r:5000/base:1 that it starts from: the registry cannot be reached: ",
        ),
        (
            "Trying to pull docker.io/library/base:latest...\n"
            "Error: creating build container: initializing source docker://base:latest: reading manifest: manifest unknown",
            NotFound,
            "building w: the image docker.io/library/base:latest that it starts from was not found; push it to that registry "
            "first, or check its name",
        ),
        (
            'Error: building at STEP "RUN skopeo copy docker://r/x dir:x": exit status 1',
            InternalError,
            "the step `RUN skopeo copy docker://r/x dir:x` failed: exit status 1 without a word on stderr (buildah loses",
        ),
        (
            'Error: building at STEP "COPY --from=r/x /a /b": initializing source docker://r/x:1: manifest unknown',
            NotFound,
            "the image r/x:1 that it starts from was not found",
        ),
        ('cp: x: No space left on device\nError: building at STEP "RUN cp": exit status 1', ResourceExhausted, "full"),
        ("", InternalError, "without a word"),
    ],
)
def test_a_failed_build_names_its_step_and_the_last_words(
    complaint: str, kind: type[SwarmError], sentence: str
) -> None:
    error = explain_build("building w", complaint)
    assert type(error) is kind and sentence in str(error)
