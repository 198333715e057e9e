"""Images, their configuration and layers, from the files of a store; what buildah says; archives; mount points."""

from __future__ import annotations

import base64
import errno
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from swarm.errors import (
    FailedPrecondition,
    InternalError,
    InUse,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
    Unavailable,
)

from agent.images import archives, mounting
from agent.images.commands import check_auth
from agent.images.complaints import explain
from agent.images.layers import KEPT, Layers, parse_configuration
from agent.images.rootfs import RootFilesystems
from agent.images.store import BuildahImages, _instructions

IMAGE = "ab" * 32
LIST, MANIFEST = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def fill(root: Path, names: list[str]) -> None:
    images = root / "overlay-images"
    (images / IMAGE).mkdir(parents=True, exist_ok=True)
    entry = {
        "id": IMAGE,
        "digest": MANIFEST,
        "names": names,
        "layer": "top",
        "created": "2026-01-01T00:00:00.123456789Z",
        "big-data-digests": {"manifest": LIST, f"manifest-{LIST}": LIST, f"sha256:{IMAGE}": f"sha256:{IMAGE}"},
    }
    new = images / "images.json.new"
    new.write_text(json.dumps([entry]))
    new.rename(images / "images.json")
    key = base64.b64encode(f"sha256:{IMAGE}".encode()).decode()
    (images / IMAGE / f"={key}").write_text(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["x"], "Env": None, "Volumes": {"/b": {}, "/a": {}}},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:1", "sha256:2"]},
            }
        )
    )
    for layer, link, lower in (("top", "TTT", "l/BBB"), ("base", "BBB", None)):
        directory = root / "overlay" / layer
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "link").write_text(link)
        if lower:
            (directory / "lower").write_text(lower)
    (root / "overlay-layers").mkdir(exist_ok=True)
    layers = [{"id": "base", "diff-size": 100}, {"id": "top", "parent": "base", "diff-size": 11}]
    (root / "overlay-layers/layers.json").write_text(json.dumps(layers))


def test_an_image_is_found_by_name_id_and_every_digest(tmp_path: Path) -> None:
    layers = Layers(tmp_path, "overlay")
    assert layers.records() == [] and layers.stored() == [] and not layers.working_containers()
    fill(tmp_path, ["reg:5000/web:1"])
    record = layers.by_name("reg:5000/web:1")
    assert record is not None and record.id == IMAGE
    assert layers.by_digest(LIST) == layers.by_digest(MANIFEST) == layers.by_id("abab") == record
    assert layers.by_digest(f"sha256:{IMAGE}") is None, "the configuration's digest is not a manifest's"
    image = layers.image(record, "web", LIST)
    assert (image.id, image.digest) == (f"sha256:{IMAGE}", LIST)
    assert image.config.command == ("x",) and image.config.volumes == ("/a", "/b") and image.config.directory == "/"
    assert layers.lower_directories("top") == ["l/TTT", "l/BBB"] and layers.lower_directories("base") == ["l/BBB"]
    assert layers.lower_directories("") == []
    assert [(entry.size_bytes, entry.names) for entry in layers.stored()] == [(111, ("reg:5000/web:1",))]


def test_the_details_are_those_of_the_configuration(tmp_path: Path) -> None:
    fill(tmp_path, ["reg/web:1"])
    layers = Layers(tmp_path, "overlay")
    (record,) = layers.records()
    details = layers.details(record)
    assert details.image == layers.stored()[0]
    assert (details.architecture, details.system, details.layers) == ("amd64", "linux", ("sha256:1", "sha256:2"))
    assert details.config["Cmd"] == ["x"]
    (file,) = (tmp_path / "overlay-images" / IMAGE).glob("=*")
    file.write_text("[]")
    with pytest.raises(InternalError, match="damaged"):
        layers.details(record)
    file.write_text("{}")
    assert layers.details(record).config == {} and layers.details(record).layers == ()


def test_a_store_that_changed_is_read_again(tmp_path: Path) -> None:
    layers = Layers(tmp_path, "overlay")
    fill(tmp_path, ["reg/web:1"])
    assert layers.by_name("reg/web:1") is not None
    fill(tmp_path, ["reg/web:2"])
    assert layers.by_name("reg/web:1") is None and layers.by_name("reg/web:2") is not None


def images_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BuildahImages, list[list[str]]]:
    """An image store over what `fill` wrote, and the words of each run of buildah, which is not there."""
    layers = Layers(tmp_path, "overlay")
    images = BuildahImages(tmp_path / "state", tmp_path / "run", tmp_path)
    images._store = layers, RootFilesystems(tmp_path / "rootfs", layers)
    ran: list[list[str]] = []

    async def run(driver: str, words: list[str], subject: str) -> str:
        ran.append(words)
        return ""

    monkeypatch.setattr(images._buildah, "run", run)
    return images, ran


async def test_the_name_that_keeps_a_removed_image_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image was removed by force under a container, and pulled again: `image ls` showed a name that nobody had given it, for
    ever, and `image rm ID` refused to remove an image of "several names"."""
    kept = f"{KEPT}{IMAGE}:latest"
    fill(tmp_path, ["reg/web:1", kept])
    images, ran = images_of(tmp_path, monkeypatch)
    assert [image.names for image in await images.images()] == [("reg/web:1",)]
    assert (await images.inspect(IMAGE)).image.names == ("reg/web:1",)
    assert await images.remove(IMAGE, force=False) == f"sha256:{IMAGE}"
    assert ran == [["rmi", "--force", IMAGE]]
    fill(tmp_path, [kept])
    assert await images.images() == []
    with pytest.raises(NotFound):
        await images.inspect(IMAGE)


async def test_a_digest_that_is_no_name_removes_no_image_under_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`image rm NAME@DIGEST` of an image that was pulled or built by a tag: its layers went while containers ran on it, without
    --force; and with two tags it ended with "tag not known"."""
    images, ran = images_of(tmp_path, monkeypatch)
    container = tmp_path / "rootfs" / "t1"
    container.mkdir(parents=True)
    (container / "image").write_text(IMAGE)
    fill(tmp_path, ["reg.test/web:1"])
    with pytest.raises(InUse, match="in use by 1 container"):
        await images.remove(f"reg.test/web@{MANIFEST}", force=False)
    with pytest.raises(NotFound):
        await images.remove(f"reg.test/other@{MANIFEST}", force=False)
    assert ran == []
    (container / "image").unlink()
    await images.remove(f"reg.test/web@{MANIFEST}", force=False)
    assert ran.pop() == ["rmi", "--force", IMAGE]
    fill(tmp_path, ["reg.test/web:1", "reg.test/web:2", "reg.test/other:1"])
    with pytest.raises(InUse, match=r"several names: reg\.test/web:1, reg\.test/web:2; remove"):
        await images.remove(f"reg.test/web@{MANIFEST}", force=False)
    await images.remove(f"reg.test/web:2@{MANIFEST}", force=False)
    await images.remove(f"reg.test/web@{MANIFEST}", force=True)
    assert ran == [["rmi", "reg.test/web:2"], ["rmi", "reg.test/web:1", "reg.test/web:2"]]


def test_damage_is_told(tmp_path: Path) -> None:
    fill(tmp_path, ["a"])
    layers = Layers(tmp_path, "overlay")
    (tmp_path / "overlay/top/link").unlink()
    with pytest.raises(InternalError, match="damaged"):
        layers.lower_directories("top")
    (tmp_path / "overlay-images/images.json").write_text("{")
    with pytest.raises(InternalError, match="cannot be understood"):
        layers.records()


@pytest.mark.parametrize("config", ['"x"', '{"Env": 5}', '{"Labels": ["a"]}', '{"Volumes": [{}, {}]}'])
def test_an_odd_configuration_is_told_in_a_sentence(config: str, tmp_path: Path) -> None:
    """A task of an image that an odd program made failed because "the node daemon failed unexpectedly"."""
    fill(tmp_path, ["docker.io/library/web:1"])
    layers = Layers(tmp_path, "overlay")
    (record,) = layers.records()
    key = base64.b64encode(f"sha256:{IMAGE}".encode()).decode()
    (tmp_path / "overlay-images" / IMAGE / f"={key}").write_text(f'{{"config": {config}}}')
    with pytest.raises(InternalError, match="is damaged; remove and pull it again"):
        layers.image(record, "web:1")


def test_a_store_that_cannot_be_read_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, where swarmd lacked descriptors."""
    fill(tmp_path, ["docker.io/library/web:1"])
    layers = Layers(tmp_path, "overlay")
    containers = tmp_path / "overlay-containers"
    containers.mkdir()
    (containers / "containers.json").write_text("[]")

    def refused(_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", refused)
    for look in (layers.records, layers.parents, layers.working_containers):
        with pytest.raises(InternalError, match="cannot be read: Too many open files"):
            look()


def test_an_empty_configuration_has_defaults() -> None:
    assert parse_configuration({}).directory == "/"
    assert parse_configuration({"config": {"Healthcheck": {"Test": ["NONE"]}}}).healthcheck == {"Test": ["NONE"]}


@pytest.mark.parametrize(
    ("complaint", "kind", "sentence"),
    [
        ("Error: reading manifest 1 in reg:5000/web: manifest unknown: manifest unknown", NotFound, "was not found"),
        (
            "Error: initializing source: reading manifest: name unknown: repository name not known",
            NotFound,
            "not found",
        ),
        ("Error: unauthorized: authentication required", PermissionDenied, "credentials"),
        ("Error: requested access to the resource is denied", PermissionDenied, "credentials"),
        (
            'Error: pinging: Get "https://reg": dial tcp 1.2.3.4:5000: connect: connection refused',
            Unavailable,
            "refused",
        ),
        ("Error: dial tcp: lookup reg: no such host", Unavailable, "cannot be reached"),
        ("Error: tls: failed to verify certificate: x509: certificate signed by unknown", Unavailable, "x509"),
        ("Error: write /v/images/tmp/x: no space left on device", ResourceExhausted, "/v/images/tmp/x is full"),
        ("Error: no image found in manifest list for architecture s390x", FailedPrecondition, "architecture"),
        ('time="x" level=warning msg="odd"\nError: something else', InternalError, "image w: something else"),
        ("", InternalError, "without a word"),
    ],
)
def test_what_buildah_says_becomes_an_error(complaint: str, kind: type[SwarmError], sentence: str) -> None:
    error = explain("image w", complaint)
    assert type(error) is kind and sentence in str(error) and str(error).startswith("image w")


def test_a_name_is_not_taken_for_a_complaint() -> None:
    """`docker.io/acme/geofence` has no variant for this host: "the registry cannot be reached", of which the letters eof in the
    name were the only sign."""
    complaint = "Error: choosing image docker://acme/geofence: no image found in manifest list for architecture x"
    assert type(explain("image w", complaint)) is FailedPrecondition
    for complaint in (
        'Error: pinging: Get "https://reg/v2/": EOF',
        "Error: reading blob sha256:1: unexpected EOF",
        "Error: EOF",
    ):
        assert type(explain("image w", complaint)) is Unavailable


@pytest.mark.parametrize("auth", ["???", base64.b64encode(b"user").decode(), base64.b64encode(b":p").decode()])
def test_credentials_that_are_none(auth: str) -> None:
    with pytest.raises(InvalidArgument, match="user:password"):
        check_auth(auth)


def test_credentials() -> None:
    assert check_auth(base64.b64encode(b"u:p:q").decode()) == ("u", "p:q")


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_archives_are_joined_and_shared_files_stay_single(tmp_path: Path) -> None:
    for name in ("a", "b"):
        manifest = json.dumps([{"RepoTags": [f"reg/{name}:1"], "Layers": ["shared.tar"]}]).encode()
        old = json.dumps({f"reg/{name}": {"1": name}}).encode()
        write_archive(tmp_path / name, {"shared.tar": b"layer", "manifest.json": manifest, "repositories": old})
    archives.join([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    with tarfile.open(tmp_path / "both") as archive:
        assert sorted(archive.getnames()) == ["manifest.json", "repositories", "shared.tar"]
        shared = archive.extractfile("shared.tar")
        assert shared is not None and shared.read() == b"layer"
    assert archives.names(tmp_path / "both") == ["reg/a:1", "reg/b:1"]
    write_archive(tmp_path / "oci", {"index.json": b"{}"})
    assert archives.names(tmp_path / "oci") is None
    write_archive(tmp_path / "oci", {"blobs/x": b"", "./index.json": b"{}"})
    assert archives.names(tmp_path / "oci") is None


def test_archives_of_strangers_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.dumps([{"RepoTags": ["a:1"]}]).encode()
    write_archive(tmp_path / "a", {"1": b"", "2": b"", "manifest.json": manifest})
    assert archives.names(tmp_path / "a") == ["a:1"]
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(InvalidArgument, match="more than 2 files"):
        archives.names(tmp_path / "a")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    monkeypatch.setattr(archives, "MAX_LIST_BYTES", len(manifest) - 1)
    with pytest.raises(InvalidArgument, match=r"manifest.json is larger"):
        archives.names(tmp_path / "a")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "it is not a tar file"),
        (b"\x1f\x8b" + b"x" * 50, "it is not a tar file"),
        (b"BZh9" + b"x" * 50, "it is not a tar file"),
        (b"\xfd7zXZ\0" + b"x" * 50, "it is not a tar file"),
        (gzip.compress(b"x" * 10_000, mtime=0)[:-20], "it is "),
    ],
)
def test_what_is_no_archive_of_images_is_told(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InvalidArgument, match=rf"no archive of images: {reason}.*image save"):
        archives.names(tmp_path / "file")


def test_cut_off_and_foreign_tar_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "tar"
    write_archive(path, {"layer.tar": os.urandom(30_000), "manifest.json": b"[]"})
    whole = path.read_bytes()
    for cut in (whole[:20_000], gzip.compress(whole)[:20_000]):
        path.write_bytes(cut)
        with pytest.raises(InvalidArgument, match="it is cut short"):
            archives.names(path)
    for value in (1, [1], {"a": 1}, [{"RepoTags": 5}]):
        write_archive(path, {"manifest.json": json.dumps(value).encode()})
        with pytest.raises(InvalidArgument, match="is no list of images"):
            archives.names(path)
    write_archive(path, {"etc/passwd": b""})
    with pytest.raises(InvalidArgument, match=r"neither manifest.json nor index.json; .*image import"):
        archives.names(path)


def test_a_list_of_lists_of_lists_is_told(tmp_path: Path) -> None:
    """`image load` of such an archive: "the node daemon failed unexpectedly"."""
    write_archive(tmp_path / "tar", {"manifest.json": b"[" * 100_000})
    with pytest.raises(InvalidArgument, match="is no list of images"):
        archives.names(tmp_path / "tar")


@pytest.mark.parametrize(("data", "reason"), [(b"", "it is empty"), (b"hello", "it is not a tar file")])
def test_what_is_no_root_filesystem_becomes_no_image(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "root").write_bytes(data)
    with pytest.raises(InvalidArgument, match=f"no root filesystem: {reason}"):
        archives.check_root(tmp_path / "root")


def test_root_filesystems_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "root"
    write_archive(path, {"bin/sh": b"x"})
    archives.check_root(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    archives.check_root(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 50)
    archives.check_root(path)


def test_instructions_come_from_inside_the_context(tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("FROM scratch")
    (context / "sub" / "File").write_text("FROM scratch")
    (context / "link").symlink_to("sub/File")
    (context / "leak").symlink_to(tmp_path / "secret")
    assert _instructions(context, "sub/File") == _instructions(context, "link") == context / "sub" / "File"
    for name in ("../secret", str(tmp_path / "secret"), "leak", "sub/../../secret"):
        with pytest.raises(InvalidArgument, match="outside of the build context"):
            _instructions(context, name)


def test_mount_points_below_a_directory() -> None:
    text = (
        "30 23 0:26 / /s/rootfs/a/merged rw - overlay overlay rw\n"
        "31 23 0:26 / /s/rootfs\\040b/x rw - overlay overlay rw\n"
        "32 23 0:26 / /s/rootfs2/x rw - overlay overlay rw\n"
    )
    assert mounting.mount_points(text, Path("/s/rootfs")) == {Path("/s/rootfs/a/merged")}
    assert mounting.mount_points(text, Path("/s/rootfs b")) == {Path("/s/rootfs b/x")}


@pytest.mark.parametrize(("number", "kind"), [(28, ResourceExhausted), (22, FailedPrecondition), (5, InternalError)])
def test_failed_mounts_name_the_place(number: int, kind: type[SwarmError]) -> None:
    error = mounting.mount_error(OSError(number, os.strerror(number)), Path("/state/rootfs/x"))
    assert type(error) is kind and "/state/rootfs/x" in str(error)
