"""Images through the node daemon: what is sent, what is printed, and what of a directory is packed."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from swarm.errors import InvalidArgument, NotFound
from swarm.v1 import control_pb2 as control
from swarm.v1 import node_pb2 as node
from swarm.v1 import types_pb2 as types

from orchestrator.cli.commands import image_build
from orchestrator.cli.commands.image_build import build_file, packed
from orchestrator.cli.commands.images import registry_auth, split_name
from orchestrator.cli.parsing.ignore import Ignored
from tests.unit.cli.conftest import Result, Script

Run = Callable[..., Result]
DONE = node.ImageProgress(image_id="sha256:abc", digest="sha256:def", reference="r:5000/web:latest")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "src").mkdir(parents=True)
    (root / "node_modules" / "big").mkdir(parents=True)
    (root / "Dockerfile").write_text("FROM scratch\n")
    (root / "src" / "main.py").write_text("print()\n")
    (root / "src" / "main.pyc").write_text("x")
    (root / "node_modules" / "big" / "file").write_text("x" * 1000)
    (root / "link").symlink_to("src")
    (root / ".dockerignore").write_text("# comment\nnode_modules\n**/*.pyc\nDockerfile\n")
    return root


def names_in(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def test_a_build_sends_options_then_the_directory(script: Script, swarmctl: Run, directory: Path) -> None:
    cluster = types.Cluster(spec=types.ClusterSpec(default_registry="r:5000"))
    script.answers["GetCluster"] = control.GetClusterResponse(cluster=cluster)
    script.answers["Build"] = [node.ImageProgress(line="STEP 1"), DONE]
    result = swarmctl("image", "build", "-t", "web", "--build-arg", "A=1", "--no-cache", str(directory))
    assert (result.code, result.out, result.err) == (0, "sha256:abc\n", "STEP 1\n")
    (parts,) = script.asked("Build")
    options = parts[0].options
    assert list(options.tags) == ["web"]
    assert (options.file, dict(options.build_args), options.no_cache) == ("Dockerfile", {"A": "1"}, True)
    assert options.push  # the swarm has a registry of its own
    sent = names_in(b"".join(part.context for part in parts[1:]))
    assert sent == [".dockerignore", "Dockerfile", "link", "src", "src/main.py"]


@pytest.mark.parametrize(("words", "pushed"), [([], False), (["--push"], True)])
def test_a_build_stays_here_without_a_registry(
    script: Script, swarmctl: Run, directory: Path, words: list[str], pushed: bool
) -> None:
    script.answers["GetCluster"] = NotFound("this is a worker")
    script.answers["Build"] = [DONE]
    assert swarmctl("image", "build", "-t", "web", *words, str(directory)).code == 0
    assert script.asked("Build")[0][0].options.push is pushed


def test_a_file_that_cannot_be_packed_is_named_and_nothing_is_built(
    script: Script, swarmctl: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that went while the directory was packed, or may not be read: a traceback, and "Exception iterating requests!"."""
    script.answers["Build"] = [node.ImageProgress(image_id="sha256:1")]
    monkeypatch.setattr(image_build, "contents", lambda root, keep: iter(["Dockerfile", "gone"]))
    result = swarmctl("image", "build", str(directory))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"Error: {directory} cannot be packed") and "gone" in result.err
    assert "Traceback" not in caplog.text


def test_a_pattern_of_an_ignore_file_that_makes_no_sense_is_named() -> None:
    """`image build` "failed unexpectedly (error: bad character range z-a …)", and did not say where that stood."""
    with pytest.raises(InvalidArgument, match=r"the pattern '\[z-a\]' of the ignore file"):
        Ignored(["[z-a]"])


def test_build_complaints(script: Script, swarmctl: Run, directory: Path, tmp_path: Path) -> None:
    assert swarmctl("image", "build", str(tmp_path / "none")).code == 2
    assert swarmctl("image", "build", "--push", str(directory)).code == 2
    with pytest.raises(InvalidArgument, match="neither a Containerfile nor a Dockerfile"):
        build_file(tmp_path, None)
    with pytest.raises(InvalidArgument, match="outside"):
        (tmp_path / "Elsewhere").touch()
        build_file(directory, str(tmp_path / "Elsewhere"))
    assert not script.asked("Build")


def test_a_reader_that_stops_leaves_no_packer_behind(directory: Path) -> None:
    import threading

    (directory / "large").write_bytes(b"x" * (4 << 20))
    chunks = packed(directory, keep=set())
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "pack":
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        (["*.log"], "a.log", True), (["*.log"], "d/a.log", False), (["**/*.log"], "d/e/a.log", True),
        (["**/*.log"], "a.log", True), (["d"], "d/e/f", True), (["d/"], "d/e", True), (["/d"], "d", True),
        (["d/**"], "d/e", True), (["d/**"], "d", False),
        (["d", "!d/keep"], "d/keep", False), (["!d/keep", "d"], "d/keep", True),
        (["a?c"], "abc", True), (["a?c"], "a/c", False), (["a[0-9]"], "a5", True), (["a[!0-9]"], "a5", False),
        (["a[0"], "a[0", True), (["a.c"], "abc", False), (["d/*/f"], "d/e/f", True), (["d/*/f"], "d/e/e/f", False),
        (["./d"], "d", True), (["*"], "anything/below", True), ([r"\*"], "a", False), ([r"\*"], "*", True),
    ],
)  # fmt: skip
def test_ignore_patterns(patterns: list[str], path: str, ignored: bool) -> None:
    assert Ignored(patterns).covers(path) is ignored


def test_images_are_listed_by_name(script: Script, swarmctl: Run) -> None:
    image = node.ImageInfo(
        id="sha256:0123456789abcdef",
        names=["r:5000/web@sha256:aa", "r:5000/web:1", "localhost/x:latest"],  # a push leaves the digest as a name, too
        size_bytes=1_500_000,
    )
    untagged = node.ImageInfo(id="sha256:eeee", names=["r:5000/old@sha256:bb", "r:5000/old@sha256:cc"])
    script.answers["List"] = node.ListImagesResponse(images=[image, node.ImageInfo(id="sha256:ffff"), untagged])
    assert swarmctl("image", "ls").lines == [
        "REPOSITORY    TAG      IMAGE ID       CREATED   SIZE",
        "<none>        <none>   ffff                     0B",
        "localhost/x   latest   0123456789ab             1.5MB",
        "r:5000/old    <none>   eeee                     0B",
        "r:5000/web    1        0123456789ab             1.5MB",
    ]
    assert swarmctl("image", "ls", "-q").lines == ["0123456789ab", "ffff", "eeee"]


def test_pull_push_rm(script: Script, swarmctl: Run) -> None:
    script.answers["Pull"] = script.answers["Push"] = [node.ImageProgress(line="copying"), DONE]
    assert swarmctl("image", "pull", "--creds", "u:p", "web").out == "r:5000/web:latest@sha256:def\n"
    assert base64.b64decode(script.only("Pull").registry_auth) == b"u:p"
    assert swarmctl("image", "push", "-q", "web").err == ""
    script.answers["Remove"] = [NotFound('image "a" not found'), node.RemoveImageResponse(image_id="sha256:b")]
    result = swarmctl("image", "rm", "a", "b")
    assert (result.code, result.out) == (3, "sha256:b\n")


def test_a_pull_by_digest_names_it_once(script: Script, swarmctl: Run) -> None:
    script.answers["Pull"] = [node.ImageProgress(image_id="sha256:a", digest="sha256:d", reference="r/web@sha256:d")]
    assert swarmctl("image", "pull", "web@sha256:d").out == "r/web@sha256:d\n"


def test_import_load_save(script: Script, swarmctl: Run, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(b"x" * (3 << 20))
    script.answers["GetCluster"] = NotFound("none")
    script.answers["Import"] = script.answers["Load"] = [DONE]
    script.answers["Save"] = [node.ImageChunk(data=b"one"), node.ImageChunk(data=b"two")]
    assert swarmctl("image", "import", "-c", 'CMD ["sh"]', str(archive), "base").out == "sha256:abc\n"
    (parts,) = script.asked("Import")
    assert (parts[0].options.reference, list(parts[0].options.changes)) == ("base", ['CMD ["sh"]'])
    assert sum(len(part.archive) for part in parts[1:]) == 3 << 20
    script.answers["Load"] = [node.ImageProgress(line=f"loaded {name}", reference=name) for name in ("a:1", "b:2")]
    loaded = swarmctl("image", "load", "-i", str(archive))
    assert (loaded.lines, loaded.err) == (["Loaded image: a:1", "Loaded image: b:2"], "")
    target = tmp_path / "saved.tar"
    assert swarmctl("image", "save", "-o", str(target), "web").code == 0
    assert target.read_bytes() == b"onetwo"
    assert swarmctl("image", "load", "-i", str(tmp_path / "none")).code == 2


def test_a_broken_save_leaves_no_file(script: Script, swarmctl: Run, tmp_path: Path) -> None:
    script.answers["Save"] = [node.ImageChunk(data=b"one"), NotFound("gone")]
    assert swarmctl("image", "save", "-o", str(tmp_path / "saved.tar"), "web").code == 3
    assert list(tmp_path.glob("saved*")) == []


def test_logins_come_from_dockers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    (tmp_path / ".docker").mkdir()
    auths = {"r:5000": {"auth": "one"}, "https://index.docker.io/v1/": {"auth": "hub"}}
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": auths}))
    assert registry_auth("r:5000/a/b:1", None, tmp_path) == "one"
    assert registry_auth("nginx", None, tmp_path) == "hub"
    assert registry_auth("other.example/x", None, tmp_path) == ""
    assert registry_auth("nginx", None, tmp_path / "none") == ""
    with pytest.raises(InvalidArgument):
        registry_auth("nginx", "nobody")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("r:5000/web:1", ("r:5000/web", "1")), ("r:5000/web", ("r:5000/web", "<none>")), ("", ("<none>", "<none>")),
        ("web:1@sha256:a", ("web", "1")),
    ],
)  # fmt: skip
def test_names_split(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_pruning_prints_what_went_and_what_it_brought(script: Script, swarmctl: Run) -> None:
    removed = [node.ImageInfo(id="sha256:a", names=["r/web@sha256:1"]), node.ImageInfo(id="sha256:b")]
    script.answers["Prune"] = node.PruneImagesResponse(removed=removed, reclaimed_bytes=1_230_000)
    result = swarmctl("image", "prune", "--force")
    said = "untagged: r/web@sha256:1\ndeleted: sha256:a\ndeleted: sha256:b\nTotal reclaimed space: 1.23MB\n"
    assert (result.code, result.out) == (0, said)
    assert not script.only("Prune").all
    swarmctl("image", "prune", "--all", "--force")
    assert script.asked("Prune")[-1].all


def test_inspecting_shows_what_an_image_is_made_of(script: Script, swarmctl: Run) -> None:
    image = node.ImageInfo(id="sha256:abc", names=["r/web:1"], digest="sha256:def", size_bytes=5)
    answer = node.InspectImageResponse(
        image=image, architecture="amd64", os="linux", layers=["sha256:l"], config='{"Cmd": ["sh"]}'
    )
    script.answers["Inspect"] = [NotFound('image "a" is not on this node'), answer]
    result = swarmctl("image", "inspect", "a", "web:1")
    assert result.code == 3
    (shown,) = json.loads(result.out)
    assert (shown["id"], shown["names"], shown["digest"]) == ("sha256:abc", ["r/web:1"], "sha256:def")
    assert (shown["architecture"], shown["os"], shown["layers"]) == ("amd64", "linux", ["sha256:l"])
    assert (shown["size_bytes"], shown["config"]) == (5, {"Cmd": ["sh"]})
    assert script.asked("Inspect")[1].reference == "web:1"
    assert swarmctl("image", "inspect", "--format", "table", "web").code == 2


def test_tagging_prints_the_whole_name(script: Script, swarmctl: Run) -> None:
    script.answers["Tag"] = node.TagImageResponse(image_id="sha256:abc", reference="r/web:2")
    assert swarmctl("image", "tag", "web", "web:2").out == "r/web:2\n"
    assert (script.only("Tag").source, script.only("Tag").target) == ("web", "web:2")
    script.answers["Tag"] = InvalidArgument("image reference 'A' is malformed")
    assert swarmctl("image", "tag", "web", "A").code == 2
    assert swarmctl("image", "tag", "web").code == 2
