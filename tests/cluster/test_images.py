"""The image store with a real buildah, a real registry under mutual TLS, and real overlay mounts."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
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
from swarm.identity import TlsFiles

from agent.images import mounting
from agent.images.interface import ImageStore
from agent.images.store import BuildahImages
from tests.cluster import registry as registries
from tests.cluster.registry import Authority, Registry

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("buildah") is None, reason="needs root and buildah"),
]

DOCKERFILE = """FROM scratch
COPY busybox /bin/busybox
ENV GREETING=hello
ARG FLAVOUR=plain
LABEL flavour=$FLAVOUR
HEALTHCHECK --interval=5s CMD ["/bin/busybox", "true"]
RUN ["/bin/busybox", "mkdir", "/tmp"]
VOLUME /data
WORKDIR /srv
USER 5:6
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/busybox"]
CMD ["sleep", "1000"]
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path on a disk that can carry overlays, and nothing of it left mounted."""
    path = Path(f"/tmp/swimg-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    path.mkdir()
    yield path
    points = mounting.mount_points(Path("/proc/self/mountinfo").read_text(), path)
    for point in sorted(points, key=lambda point: len(point.parts), reverse=True):
        mounting.unmount(point)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def registry(base: Path, authority: Authority) -> Iterator[Registry]:
    found = registries.start(base / "registry", authority.issue(base / "registry-tls"))
    yield found
    found.stop()


def store(base: Path, name: str, authority: Authority, registry: Registry | None = None) -> BuildahImages:
    tls = authority.issue(base / name / "certificates")
    address = registry.address if registry is not None else ""
    return BuildahImages(base / name / "state", base / name / "run", tls, lambda: address)


def context(base: Path, text: str = DOCKERFILE) -> Path:
    directory = base / f"context-{uuid.uuid4().hex[:6]}"
    directory.mkdir()
    shutil.copy(shutil.which("busybox") or "/bin/busybox", directory / "busybox")
    (directory / "Dockerfile").write_text(text)
    return directory


async def lines(iterator: AsyncIterator[str]) -> list[str]:
    return [line async for line in iterator]


async def build(images: BuildahImages, directory: Path, tag: str, **build_args: str) -> str:
    done = await lines(images.build(directory, tags=[tag], file="", build_args=build_args, target="", no_cache=False))
    return done[-1]


def shell(words: list[str]) -> bytes:
    done = subprocess.run(words, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_an_image_goes_from_a_build_through_the_registry_into_root_filesystems(
    base: Path, authority: Authority, registry: Registry
) -> None:
    builder, node = store(base, "a", authority, registry), store(base, "b", authority, registry)
    contract: ImageStore = builder
    image_id = await build(builder, context(base), "web:1", FLAVOUR="sweet")
    local = await contract.ensure("web:1")
    assert local.id == image_id and local.reference == f"{registry.address}/web:1"
    assert local.config.entrypoint == ("/bin/busybox",) and local.config.command == ("sleep", "1000")
    assert "GREETING=hello" in local.config.environment and local.config.labels["flavour"] == "sweet"
    assert (local.config.directory, local.config.user, local.config.volumes) == ("/srv", "5:6", ("/data",))
    assert local.config.healthcheck is not None and local.config.healthcheck["Interval"] == 5_000_000_000

    digest = (await lines(builder.push("web:1")))[-1]
    assert await node.resolve("web:1") == (f"{registry.address}/web:1", digest)

    pulled = await asyncio.gather(*(node.ensure("web:1", digest) for _ in range(6)))
    assert {(image.id, image.digest) for image in pulled} == {(image_id, digest)}
    manifests = registry.count(f"GET /v2/web/manifests/{digest}")
    assert manifests == 1, "six concurrent calls must pull once"
    await node.ensure("web:1", digest)
    assert registry.count(f"GET /v2/web/manifests/{digest}") == manifests, "what is here is not pulled again"

    roots = await asyncio.gather(*(node.mount(f"c{number}", pulled[0]) for number in range(6)))
    for number, root in enumerate(roots):
        (root / "bin" / "busybox").unlink()
        (root / "mine").write_text(str(number))
    assert [(root / "mine").read_text() for root in roots] == [str(number) for number in range(6)]
    assert (root.stat().st_mode & 0o7777) == 0o755
    assert await node.mounted() == {f"c{number}" for number in range(6)}

    again = BuildahImages(base / "b/state", base / "b/run", base / "b/certificates", registry.address)
    assert await again.mount("c3", pulled[0]) == roots[3]
    assert (roots[3] / "mine").read_text() == "3", "an agent that starts again finds the same root filesystem"
    assert (await again.mount("c9", pulled[0]) / "bin" / "busybox").is_file(), "others' writes do not reach the image"
    for name in await again.mounted():
        await again.unmount(name)
        await again.unmount(name)
    assert await again.mounted() == set()
    assert list((base / "b/state/rootfs").iterdir()) == []


async def test_short_names_in_instructions_mean_the_clusters_registry(
    base: Path, authority: Authority, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`alpine` is an alias on Debian, `base` one of the user, whose registries would be asked as well."""
    configured = base / "home/.config/containers/registries.conf.d"
    configured.mkdir(parents=True)
    (configured / "mine.conf").write_text(
        'unqualified-search-registries = ["127.0.0.1:1"]\n[aliases]\n"base" = "127.0.0.1:1/elsewhere/base"\n'
    )
    monkeypatch.setenv("HOME", str(base / "home"))
    one, two = store(base, "a", authority, registry), store(base, "b", authority, registry)
    for name in ("base", "alpine", "team/base:7"):
        await build(one, context(base), name)
        await lines(one.push(name))
        directory = context(base, f'FROM {name}\nENV UPON="{name}"\n')
        await build(two, directory, "upon")
        assert f"UPON={name}" in (await two.ensure("upon")).config.environment
    with pytest.raises(
        NotFound, match=rf"building .*upon:latest: the image {registry.address}/nothing:latest .*docker.io/"
    ):
        await build(two, context(base, "FROM nothing\n"), "upon")


async def test_a_build_says_each_thing_once(base: Path, authority: Authority, registry: Registry) -> None:
    images = store(base, "a", authority, registry)
    image_id = await build(images, context(base), "web:1")
    said = await lines(images.build(context(base), tags=["web:2"], file="", build_args={}, target="", no_cache=False))
    assert [line for line in said if "tagged" in line] == [f"Successfully tagged {registry.address}/web:2"]
    assert [line for line in said if image_id.removeprefix("sha256:") in line and "cache" not in line] == [image_id]
    await lines(images.push("web:1"))
    assert [line for line in await lines(images.pull("web:1")) if image_id[7:] in line][1:] == [image_id]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ('["/bin/nosuch"]', "step `RUN /bin/nosuch` failed: exit status 1; .*/bin/nosuch: no such file or directory$"),
        ('["/bin/busybox", "cat", "/nope"]', "exit status 1; cat: can't open '/nope': No such file or directory$"),
    ],
)
async def test_a_step_that_fails_is_told_with_its_last_words(
    base: Path, authority: Authority, step: str, words: str
) -> None:
    images = store(base, "a", authority)
    directory = context(base, f"FROM scratch\nCOPY busybox /bin/busybox\nRUN {step}\n")
    for _ in range(5):  # buildah loses them at times, on a busy host
        with pytest.raises(InternalError, match="failed: exit status 1") as failure:
            await build(images, directory, "localhost/x")
        if "build again" not in str(failure.value):
            break
    assert re.search(words, str(failure.value))


async def test_layers_under_a_container_are_never_removed(base: Path, authority: Authority) -> None:
    images = store(base, "a", authority)
    image_id = await build(images, context(base), "localhost/web:1")
    image = await images.ensure("localhost/web:1")
    root = await images.mount("c1", image)
    with pytest.raises(InUse, match=r"in use by 1 container.*c1"):
        await images.remove("localhost/web:1", force=False)
    assert await images.remove("localhost/web:1", force=True) == image_id
    assert (root / "bin" / "busybox").read_bytes() == Path(shutil.which("busybox") or "").read_bytes()
    assert await images.images() == []
    assert (await images.mount("c2", image) / "bin" / "busybox").is_file(), "its container may still be replaced"
    await images.unmount("c2")
    with pytest.raises(NotFound):
        await images.remove("localhost/web:1", force=False)
    await images.unmount("c1")
    with pytest.raises(NotFound, match="not on this node any more"):
        await images.mount("c2", image)


async def test_pruning_leaves_what_is_tagged_or_stood_on_and_gives_space_back(base: Path, authority: Authority) -> None:
    images = store(base, "a", authority)
    directory = context(base)
    (directory / "ballast").write_bytes(os.urandom(300_000))
    (directory / "Dockerfile").write_text(f"{DOCKERFILE}COPY ballast /ballast\n")
    first = await build(images, directory, "localhost/web:1")
    root = await images.mount("c1", await images.ensure("localhost/web:1"))
    (directory / "ballast").write_bytes(os.urandom(300_000))
    second = await build(images, directory, "localhost/web:1")  # takes the name
    (directory / "ballast").write_bytes(os.urandom(300_000))
    third = await build(images, directory, "localhost/web:1")
    assert len({first, second, third}) == 3

    pruned = await images.prune(every=False)
    gone = {image.id for image in pruned.images}
    assert second in gone and not gone & {first, third}
    assert 300_000 < pruned.reclaimed_bytes < 600_000
    assert (root / "ballast").is_file() and (root / "bin/busybox").is_file()
    assert [image.id for image in await images.images()] == [third]
    assert (await images.prune(every=False)).reclaimed_bytes == 0

    pruned = await images.prune(every=True)
    assert [image.id for image in pruned.images] == [third] and pruned.reclaimed_bytes > 300_000
    assert (root / "ballast").is_file()
    await images.unmount("c1")
    assert first in {image.id for image in (await images.prune(every=False)).images}
    layers = base / "a/state/images"
    assert json.loads(next(layers.glob("*-layers/layers.json")).read_bytes() or b"[]") == []


async def test_an_image_that_comes_while_pruning_waits_is_kept_for_its_container(
    base: Path, authority: Authority, registry: Registry
) -> None:
    builder, node = store(base, "a", authority, registry), store(base, "b", authority, registry)
    await build(builder, context(base), "web:1")
    await lines(builder.push("web:1"))
    _, digest = await builder.resolve("web:1")
    async with node.holding():
        image = await node.ensure("web:1", digest)  # known by its digest only
        pruning = asyncio.ensure_future(node.prune(every=True))
        await asyncio.sleep(0)
        root = await node.mount("c1", image)
        assert not pruning.done()
    assert (await pruning).images == ()
    assert (root / "bin/busybox").is_file()
    await node.unmount("c1")
    assert [each.id for each in (await node.prune(every=False)).images] == [image.id]


async def test_a_name_goes_alone_while_the_image_has_others(base: Path, authority: Authority) -> None:
    images = store(base, "a", authority)
    directory = context(base)
    tags = ["localhost/web:1", "localhost/web:2"]
    await lines(images.build(directory, tags=tags, file="", build_args={}, target="", no_cache=False))
    (listed,) = await images.images()
    assert set(listed.names) == set(tags) and listed.size_bytes > 100_000 and listed.created_at > 1e9
    await images.remove(tags[0], force=False)
    assert [image.names for image in await images.images()] == [(tags[1],)]
    assert await images.ensure(tags[1])


async def test_an_image_gets_a_further_name_and_is_shown_in_full(
    base: Path, authority: Authority, registry: Registry
) -> None:
    images = store(base, "a", authority, registry)
    image_id = await build(images, context(base), "web:1")
    assert await images.tag("web:1", "team/web") == (image_id, f"{registry.address}/team/web:latest")
    assert await images.tag(image_id[7:19], "localhost/web:2") == (image_id, "localhost/web:2")
    details = await images.inspect("team/web")
    assert details == await images.inspect(image_id) == await images.inspect(image_id[7:])
    assert set(details.image.names) == {
        f"{registry.address}/web:1", f"{registry.address}/team/web:latest", "localhost/web:2",
    }  # fmt: skip
    assert details.architecture and details.system == "linux" and len(details.layers) >= 2
    assert all(layer.startswith("sha256:") for layer in details.layers)
    assert details.config["Entrypoint"] == ["/bin/busybox"] and details.config["StopSignal"] == "SIGINT"
    digest = (await lines(images.push("team/web")))[-1]
    assert await images.resolve("team/web") == (f"{registry.address}/team/web:latest", digest)

    other = await build(images, context(base, f"{DOCKERFILE}ENV OTHER=1\n"), "other")
    await images.tag("other", "web:1")
    assert (await images.inspect("web:1")).image.id == other, "a name means one image"
    for unknown in ("nothing", "sha256:" + "0" * 64, "0" * 64):
        with pytest.raises(NotFound, match=r"is not on this node|no image on this node has the id"):
            await images.inspect(unknown)
        with pytest.raises(NotFound, match="swarmctl image ls"):
            await images.tag(unknown, "web:3")
    for malformed in ("Web", "web:", f"web@{digest}"):
        with pytest.raises(InvalidArgument):
            await images.tag("web:1", malformed)


async def test_archives_carry_several_images_to_another_host(base: Path, authority: Authority) -> None:
    one, two = store(base, "a", authority), store(base, "b", authority)
    await build(one, context(base), "localhost/web:1")
    tree = base / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/sh")
    shell(["tar", "-C", str(tree), "-cf", str(base / "tree.tar"), "."])
    imported = await one.import_archive(base / "tree.tar", "localhost/base:7", ['CMD ["/bin/sh"]', "ENV A=b"])
    image = await one.ensure("localhost/base:7")
    assert image.id == imported and image.config.command == ("/bin/sh",) and image.config.environment[-1] == "A=b"
    await one.save(["localhost/web:1", "localhost/base:7"], base / "both.tar")
    assert await two.load(base / "both.tar") == ["localhost/web:1", "localhost/base:7"]
    root = await two.mount("c", await two.ensure("localhost/base:7"))
    assert (root / "bin/sh").is_file()
    await two.unmount("c")


async def test_an_archive_that_is_damaged_is_no_fault_of_a_registry(base: Path, authority: Authority) -> None:
    images = store(base, "a", authority)
    await build(images, context(base), "localhost/web:1")
    await images.save(["localhost/web:1"], base / "whole.tar")
    with tarfile.open(base / "whole.tar") as whole, tarfile.open(base / "lacking.tar", "w") as lacking:
        for member in whole:
            if member.name == "manifest.json":
                lacking.addfile(member, whole.extractfile(member))
    (base / "empty.tar").touch()
    (base / "cut.tar").write_bytes((base / "whole.tar").read_bytes()[:100_000])
    for name, reason in (("lacking", "damaged"), ("empty", "empty"), ("cut", "cut short")):
        with pytest.raises(InvalidArgument, match=f"no archive of images: it is {reason}"):
            await images.load(base / f"{name}.tar")
    assert await images.load(base / "whole.tar") == ["localhost/web:1"]


async def test_each_failure_has_its_error_and_names_the_registry(
    base: Path, authority: Authority, registry: Registry
) -> None:
    images = store(base, "a", authority, registry)
    nowhere = f"127.0.0.1:{registries.free_port()}"
    expected: list[tuple[str, type[SwarmError]]] = [("nothing:1", NotFound), (f"{nowhere}/web", Unavailable)]
    for reference, kind in expected:
        place = registry.address if "/" not in reference else nowhere
        with pytest.raises(kind, match=place):
            await images.ensure(reference)
        with pytest.raises(kind, match=place):
            await images.resolve(reference)
    # a node with a certificate of another cluster
    stranger = store(base, "b", Authority(), registry)
    with pytest.raises(Unavailable, match="certificate"):
        await stranger.ensure("web:1")
    with pytest.raises(Unavailable, match=r"(?i)certificate"):
        await stranger.resolve("web:1")
    with pytest.raises(NotFound, match="not on this node"):
        await lines(images.push("web:1"))


async def test_credentials_are_asked_for_and_used(base: Path, authority: Authority) -> None:
    if shutil.which("htpasswd") is not None:
        hashed = shell(["htpasswd", "-nbB", "u", "p"])
    else:
        crypt = pytest.importorskip("crypt", reason="no bcrypt on this host")
        hashed = f"u:{crypt.crypt('p', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))}\n".encode()
    (base / "passwords").write_bytes(hashed)
    plain = registries.start(base / "plain", None, password_file=base / "passwords")
    try:
        images = store(base, "a", authority)
        auth, wrong = base64.b64encode(b"u:p").decode(), base64.b64encode(b"u:q").decode()
        name = f"{plain.address}/team/web:1"
        await build(images, context(base), name)
        for refused in ("", wrong):
            with pytest.raises(PermissionDenied, match=plain.address):
                await lines(images.push(name, refused))
        digest = (await lines(images.push(name, auth)))[-1]
        with pytest.raises(PermissionDenied):
            await images.resolve(name, wrong)
        assert await images.resolve(name, auth) == (name, digest)
        other = store(base, "b", authority)
        with pytest.raises(PermissionDenied):
            await other.ensure(name, digest)
        assert (await other.ensure(name, digest, auth)).digest == digest
        assert not list((base / "b/run").rglob("auth-*")), "credentials must not stay on the disk"
    finally:
        plain.stop()


async def test_a_list_of_platforms_is_pinned_as_a_list(base: Path, authority: Authority, registry: Registry) -> None:
    images = store(base, "a", authority, registry)
    await build(images, context(base), "web:1")
    pushed = (await lines(images.push("web:1")))[-1]
    tls = TlsFiles(base / "a/certificates")
    certificates = base / "a/run/images-configuration/certificates"
    assert (certificates / "client.key").read_bytes() == tls.key.read_bytes()
    buildah = ["buildah", "--root", str(base / "m/root"), "--runroot", str(base / "m/run"), "--storage-driver", "vfs"]
    for words in (
        ["manifest", "create", "list"],
        ["manifest", "add", "--cert-dir", str(certificates), "list", f"docker://{registry.address}/web@{pushed}"],
        ["manifest", "push", "--all", "--cert-dir", str(certificates), "list", f"docker://{registry.address}/multi:1"],
    ):
        shell([*buildah, *words])
    _, digest = await images.resolve("multi:1")
    assert digest != pushed
    node = store(base, "b", authority, registry)
    image = await node.ensure("multi:1", digest)
    assert image.digest == digest and image.config.entrypoint == ("/bin/busybox",)
    before = registry.count("GET ")
    assert (await node.ensure("multi:1", digest)).id == image.id
    assert registry.count("GET ") == before


async def test_a_cancelled_build_leaves_no_process_and_no_files(base: Path, authority: Authority) -> None:
    images = store(base, "a", authority)
    text = DOCKERFILE.replace('RUN ["/bin/busybox", "mkdir", "/tmp"]', 'RUN ["/bin/busybox", "sleep", "987"]')
    started = asyncio.Event()

    async def run() -> None:
        async for line in images.build(
            context(base, text), tags=["localhost/x"], file="", build_args={}, target="", no_cache=False
        ):
            if "sleep" in line:
                started.set()

    building = asyncio.create_task(run())
    async with asyncio.timeout(60):
        await started.wait()
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    mine = [line for line in _command_lines() if str(base) in line]
    assert mine == []
    assert mounting.mount_points(Path("/proc/self/mountinfo").read_text(), base) == set()
    assert list((base / "a/state/images-temporary").iterdir()) == []


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


async def test_a_full_disk_says_which(base: Path, authority: Authority) -> None:
    small = base / "small"
    small.mkdir()
    shell(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)])
    try:
        images = BuildahImages(small / "state", base / "run", authority.issue(base / "tls"))
        with pytest.raises(ResourceExhausted, match="full"):
            await build(images, context(base), "localhost/x")
    finally:
        shell(["umount", "-l", str(small)])


async def test_very_many_layers_are_mounted_where_the_path_is_long(base: Path) -> None:
    """With absolute paths their names would not fit into the options of a mount."""
    store_directory = base / ("a" * 100) / "overlay"
    names = [f"l/{number:026d}" for number in range(120)]
    for name in names:
        (store_directory / name).mkdir(parents=True)
        (store_directory / name / f"file-{name[-3:]}").touch()
    places = [base / name for name in ("upper", "work", "merged")]
    for place in places:
        place.mkdir()
    before = Path.cwd()
    await mounting.OverlayMounter(store_directory).mount(names, *places)
    assert len(list(places[2].iterdir())) == 120
    assert Path.cwd() == before
    mounting.unmount(places[2])
    mounting.unmount(places[2])


async def test_a_host_without_overlay_copies(base: Path, authority: Authority) -> None:
    (base / "a/state/images/vfs-images").mkdir(parents=True)
    images = store(base, "a", authority)
    await build(images, context(base), "localhost/web")
    image = await images.ensure("localhost/web")
    roots = [await images.mount(name, image) for name in ("c1", "c2")]
    (roots[0] / "bin/busybox").unlink()
    assert (roots[1] / "bin/busybox").is_file()
    assert await images.mounted() == {"c1", "c2"}
    await images.unmount("c1")
    assert await images.mounted() == {"c2"}


async def test_five_hosts_on_one_machine_pull_at_once(base: Path, authority: Authority, registry: Registry) -> None:
    builder = store(base, "a", authority, registry)
    await build(builder, context(base), "web")
    await lines(builder.push("web"))
    nodes = [store(base, f"n{number}", authority, registry) for number in range(5)]
    pulled = await asyncio.gather(*(node.ensure("web") for node in nodes))
    assert len({image.id for image in pulled}) == 1


async def test_a_missing_buildah_is_named(base: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    images = store(base, "a", authority)
    monkeypatch.setenv("PATH", str(base))
    with pytest.raises(FailedPrecondition, match=r"buildah.*not installed"):
        await images.ensure("localhost/x")
