"""Users are looked up in the image, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm.errors import FailedPrecondition, InvalidArgument

from agent.runtime.users import Identity, identity, path_in_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    etc = tmp_path / "root/etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("# comment\nroot:x:0:0::/root:/bin/sh\nbroken\nbob:x:1000:100::/home/bob:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\nusers:x:100:\nextra:x:7:alice,bob\nempty:x:9\n")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), Identity(0, 0, (), "/root")),
        ("bob", (), Identity(1000, 100, (7,), "/home/bob")),
        ("1000", (), Identity(1000, 100, (7,), "/home/bob")),
        ("bob:users", (), Identity(1000, 100, (), "/home/bob")),
        ("bob:55", ("extra", "44"), Identity(1000, 55, (7, 44), "/home/bob")),
        ("4242", (), Identity(4242, 0, (), "/")),
        ("4242:empty", (), Identity(4242, 9, (), "/")),
    ],
)
def test_users_and_groups(root: Path, user: str, groups: tuple[str, ...], expected: Identity) -> None:
    assert identity(root, user, groups) == expected


@pytest.mark.parametrize(("user", "groups"), [("eve", ()), ("bob:nobody", ()), ("", ("nobody",)), ("4294967295", ())])
def test_an_unknown_name_is_refused(root: Path, user: str, groups: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="not in the image"):
        identity(root, user, groups)


def test_an_image_without_any_files_knows_numbers(tmp_path: Path) -> None:
    assert identity(tmp_path, "") == Identity(0, 0, (), "/")
    assert identity(tmp_path, "5:6") == Identity(5, 6, (), "/")


def test_links_of_the_image_do_not_lead_out_of_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("../../../passwd")
    with pytest.raises(InvalidArgument):
        identity(root, "evil")
    (root / "real").write_text("good:x:5:5::/:/bin/sh\n")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/real")
    assert identity(root, "good").uid == 5
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert path_in_root(root, "/a/etc/passwd") is None


def test_odd_files_of_an_image_are_told_in_a_sentence(root: Path) -> None:
    """A task of an image with an account number of thousands of digits, or a link to a name that is too long, failed because
    "the node daemon failed unexpectedly"."""
    with (root / "etc/passwd").open("a") as stream:
        stream.write(f"odd:x:{'9' * 5000}:0::/:/bin/sh\n")
    assert identity(root, "bob").uid == 1000
    with pytest.raises(InvalidArgument):
        identity(root, "9" * 5000)
    (root / "etc/group").unlink()
    (root / "etc/group").symlink_to("/" + "x" * 300)
    with pytest.raises(FailedPrecondition, match="image's /etc/group cannot be read: File name too long"):
        identity(root, "bob")
