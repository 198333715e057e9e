"""What a container is made of, and whether it is healthy."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from swarm.clock import ManualClock, duration
from swarm.errors import DeadlineExceeded, InvalidArgument
from swarm.signals import parse_signal
from swarm.v1 import types_pb2 as types

from agent.images.interface import ImageConfig
from agent.runtime.interface import BindMount, TmpfsMount
from agent.tasks import health, settings
from agent.tasks.health import HealthTracker, ProbeResult
from agent.tasks.settings import HealthCheck, Places
from tests.unit.agent.fakes import make_task

IMAGE = ImageConfig(entrypoint=("/entry",), command=("run",), environment=("A=1", "B=2"), user="web", directory="/srv")
PLACES = Places(Path("/v"), Path("/e"), Path("/l"), Path("/r"), Path("/n"))


def spec(**container: object) -> types.ServiceSpec:
    return types.ServiceSpec(task=types.TaskSpec(container=types.ContainerSpec(image="web", **container)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({}, ("/entry", "run")),
        ({"args": ["x"]}, ("/entry", "x")),
        ({"command": ["/bin/sh"]}, ("/bin/sh",)),
        ({"command": ["/bin/sh"], "args": ["-c", "y"]}, ("/bin/sh", "-c", "y")),
    ],
)
def test_commands_and_args_override_as_with_docker(container: dict[str, object], expected: tuple[str, ...]) -> None:
    assert settings.container_settings(make_task(), spec(**container), IMAGE, PLACES).arguments == expected


def test_an_image_without_command_needs_one() -> None:
    with pytest.raises(InvalidArgument, match="names no command"):
        settings.container_settings(make_task(), spec(), ImageConfig(), PLACES)


def test_the_environment_is_merged_and_the_service_has_the_last_word() -> None:
    made = settings.container_settings(make_task("abcdefghijklmnop"), spec(env=["B=3", "C"]), IMAGE, PLACES)
    assert dict(pair.partition("=")[::2] for pair in made.environment) == {
        "PATH": settings.DEFAULT_PATH,
        "HOSTNAME": "abcdefghijkl",
        "A": "1",
        "B": "3",
        "C": "",
    }
    assert (made.user, made.directory, made.hostname) == ("web", "/srv", "abcdefghijkl")


def test_mounts_of_all_kinds_outer_ones_first() -> None:
    mounts = [
        types.Mount(type=types.MOUNT_TYPE_VOLUME, source="data", target="/data/inner"),
        types.Mount(type=types.MOUNT_TYPE_BIND, source="/host", target="/data", read_only=True),
        types.Mount(type=types.MOUNT_TYPE_TMPFS, target="/tmp", tmpfs_size_bytes=7),
        types.Mount(type=types.MOUNT_TYPE_VOLUME, target="/anon"),
    ]
    image = ImageConfig(command=("x",), volumes=("/anon", "/cache"))
    made = settings.container_settings(make_task(), spec(mounts=mounts), image, PLACES).mounts
    assert BindMount(Path("/host"), "/data", True) in made
    assert TmpfsMount("/tmp", 7) in made
    assert BindMount(Path("/v/anonymous.t1.3"), "/anon") in made
    assert BindMount(Path("/v/anonymous.t1.5"), "/cache") in made
    assert BindMount(Path("/e/hosts"), "/etc/hosts") in made
    targets = [mount.target for mount in made]
    assert targets.index("/data") < targets.index("/data/inner")


def test_a_mounted_hosts_file_is_the_users() -> None:
    mounts = [types.Mount(type=types.MOUNT_TYPE_BIND, source="/my/hosts", target="/etc/hosts")]
    made = settings.container_settings(make_task(), spec(mounts=mounts), IMAGE, PLACES).mounts
    assert [mount for mount in made if mount.target == "/etc/hosts"] == [BindMount(Path("/my/hosts"), "/etc/hosts")]


@pytest.mark.parametrize(
    ("text", "number"), [("SIGTERM", 15), ("kill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("rtmax-2", 62)]
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["SIGNOPE", "0", "1000", "", "SIGTERM+x"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_signal(text)


def test_the_services_health_check_overrides_the_images() -> None:
    image = ImageConfig(healthcheck={"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 7})
    found = settings.health_check(types.ContainerSpec(), image)
    assert found is not None
    assert (found.arguments, found.interval, found.retries) == (("/bin/sh", "-c", "true"), 5.0, 7)
    own = types.HealthConfig(test=["CMD", "check"], interval=duration(2))
    found = settings.health_check(types.ContainerSpec(health=own), image)
    assert found is not None
    assert (found.arguments, found.interval, found.retries, found.timeout) == (("check",), 2.0, 7, 30.0)
    assert settings.health_check(types.ContainerSpec(health=types.HealthConfig(test=["NONE"])), image) is None


def test_a_malformed_check_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        settings.health_check(types.ContainerSpec(health=types.HealthConfig(test=["true"])), ImageConfig())


# ----------------------------------------------------------------------------------------------------------- verdicts

CHECK = HealthCheck(("check",), interval=10.0, start_period=0.0, retries=3)
GOOD, BAD = ProbeResult(True), ProbeResult(False, "no")


def test_early_failures_count_for_nothing_and_an_early_success_counts() -> None:
    tracker = HealthTracker(CHECK, 0.0)
    for at in (0.1, 0.3, 0.7):
        tracker = tracker.after(BAD, at)
    assert (tracker.healthy, tracker.failures) == (None, 0)
    assert tracker.after(GOOD, 1.5).healthy is True


def test_failures_in_a_row_after_the_first_interval_are_unhealthy() -> None:
    tracker = HealthTracker(CHECK, 0.0)
    for at in (10.0, 20.0):
        tracker = tracker.after(BAD, at)
    assert tracker.healthy is None
    assert tracker.after(BAD, 30.0).healthy is False


def test_one_success_forgives_the_failures_before() -> None:
    tracker = HealthTracker(CHECK, 0.0, healthy=True)
    for result in (BAD, BAD, GOOD, BAD, BAD):
        tracker = tracker.after(result, 50.0)
    assert tracker.healthy is True


def test_a_healthy_container_gets_no_grace_of_the_start_period() -> None:
    check = HealthCheck(("check",), interval=1.0, start_period=100.0, retries=1)
    assert HealthTracker(check, 0.0, healthy=True).after(BAD, 5.0).healthy is False


def test_probes_are_frequent_at_first_and_then_at_the_interval() -> None:
    tracker = HealthTracker(CHECK, 0.0)
    assert tracker.wait(0.0) < 0.2
    assert HealthTracker(CHECK, 0.0, healthy=True).wait(1.0) == 10.0
    assert HealthTracker(CHECK, 0.0).wait(99.0) == 10.0


async def test_the_watch_tells_changes_and_ends_when_unhealthy() -> None:
    clock, results, told = ManualClock(), [GOOD, GOOD, BAD, BAD, BAD], []

    async def probe() -> ProbeResult:
        return results.pop(0)

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    await health.watch(CHECK, probe, clock, lambda healthy, text: told.append((healthy, text)), sleep=sleep)
    assert told == [(True, ""), (False, "no")]


async def test_a_check_that_cannot_be_run_is_a_failure_that_says_so() -> None:
    async def late(arguments: tuple[str, ...], timeout: float) -> tuple[int, bytes]:
        raise DeadlineExceeded("late")

    result = await health.probe_container(late, CHECK)
    assert not result.healthy and "did not end within 30 s" in result.output

    async def impossible(arguments: tuple[str, ...], timeout: float) -> tuple[int, bytes]:
        raise OSError(errno.EMFILE, "Too many open files")

    result = await health.probe_container(impossible, CHECK)
    assert not result.healthy and result.output == "the check could not be run: [Errno 24] Too many open files"

    async def silent(arguments: tuple[str, ...], timeout: float) -> tuple[int, bytes]:
        return 4, b""

    assert (await health.probe_container(silent, CHECK)).output == "the check ended with exit code 4"
