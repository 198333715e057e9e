"""References as people write them."""

from __future__ import annotations

import pytest
from swarm.errors import InvalidArgument

from agent.images.reference import image_id, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "default", "full", "pullable"),
    [
        ("web", "", "docker.io/library/web:latest", "docker.io/library/web:latest"),
        ("web", "reg:5000", "reg:5000/web:latest", "reg:5000/web:latest"),
        ("team/web:1.0", "", "docker.io/team/web:1.0", "docker.io/team/web:1.0"),
        ("team/web", "10.0.0.1:5000", "10.0.0.1:5000/team/web:latest", "10.0.0.1:5000/team/web:latest"),
        ("docker.io/web", "reg:5000", "docker.io/library/web:latest", "docker.io/library/web:latest"),
        ("index.docker.io/a/b:c", "reg:5000", "docker.io/a/b:c", "docker.io/a/b:c"),
        ("localhost/web", "reg:5000", "localhost/web:latest", "localhost/web:latest"),
        ("quay.io/a/b/c__d-e.f", "reg:5000", "quay.io/a/b/c__d-e.f:latest", "quay.io/a/b/c__d-e.f:latest"),
        ("[::1]:5000/web", "", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
        (f"web@{DIGEST}", "reg:5000", f"reg:5000/web@{DIGEST}", f"reg:5000/web@{DIGEST}"),
        (f"web:1@{DIGEST}", "reg:5000", f"reg:5000/web:1@{DIGEST}", f"reg:5000/web@{DIGEST}"),
    ],
)
def test_what_a_reference_stands_for(text: str, default: str, full: str, pullable: str) -> None:
    found = parse(text, default)
    assert (str(found), found.pullable) == (full, pullable)
    assert parse(str(found), "other:1") == found, "a fully qualified reference stands for itself"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":1",
            "Web",
            "web:",
            "web:a b",
            "we b",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a..b",
            "web@sha256:12",
            "web@",
            "-x.y/web",
        ),
        *("web:" + "a" * 129, "a" * 256, "reg:port/web", "--help", "web;rm", "../web", "a@b@c", "reg:5000/web:1:2"),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text, "reg:5000")


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:5000/web", True),
        ("localhost/web", True),
        ("localhost:5000/web", True),
        ("[::1]:5000/web", True),
        ("10.0.0.1:5000/web", False),
        ("web", False),
    ],
)
def test_registries_on_this_host(text: str, loopback: bool) -> None:
    assert parse(text).is_loopback is loopback


def test_what_may_be_an_image_id() -> None:
    assert image_id(DIGEST) == DIGEST.removeprefix("sha256:")
    assert image_id("0123456789ab") == "0123456789ab"
    assert image_id("web") == image_id("0123") == ""
