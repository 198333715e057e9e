"""What buildah is told of short names in build instructions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agent.images.short_names import drop_in, prepare_home, user_home

OURS = ".config/containers/registries.conf.d/zzz-swarm.conf"


def test_one_registry_serves_short_names_and_the_hosts_aliases_are_taken_back() -> None:
    texts = [
        '[aliases]\n"alpine" = "docker.io/library/alpine"\n',
        'aliases = "odd"',
        "not toml [",
        '[aliases]\n"opensuse/leap" = "r.opensuse.org/leap"\n',
    ]
    assert tomllib.loads(drop_in("reg:5000", texts)) == {
        "unqualified-search-registries": ["reg:5000"],
        "short-name-mode": "disabled",
        "aliases": {"alpine": "", "opensuse/leap": ""},
    }


def test_the_home_of_builds_has_what_the_user_configured_and_our_file_last(tmp_path: Path) -> None:
    user, home = tmp_path / "user", tmp_path / "home"
    (user / ".docker").mkdir(parents=True)
    (user / ".docker/config.json").write_text("{}")
    configured = user / ".config/containers"
    (configured / "registries.conf.d").mkdir(parents=True)
    (configured / "auth.json").write_text("login")
    (configured / "registries.conf.d/mirror.conf").write_text("mirror")
    prepare_home(home, "one", [], user)
    prepare_home(home, "two", [], user)
    assert (home / ".docker/config.json").read_text() == "{}"
    assert (home / ".config/containers/auth.json").read_text() == "login"
    assert sorted(path.name for path in (home / OURS).parent.iterdir()) == ["mirror.conf", "zzz-swarm.conf"]
    assert '"two"' in (home / OURS).read_text()
    assert [path.name for path in (configured / "registries.conf.d").iterdir()] == ["mirror.conf"]

    (configured / "registries.conf.d/mirror.conf").unlink()
    prepare_home(home, "two", [], user)
    assert [path.name for path in (home / OURS).parent.iterdir()] == ["zzz-swarm.conf"], "buildah fails at a dead link"


def test_a_user_without_a_home_has_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(unknown))
    assert user_home() == Path("/")
    prepare_home(tmp_path / "home", "one", [], tmp_path / "none")
    assert (tmp_path / "home" / OURS).is_file()
