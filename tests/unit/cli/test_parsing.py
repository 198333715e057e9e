"""What flags accept, and the sentences for what they do not."""

from __future__ import annotations

from typing import Any

import pytest
from swarm.errors import InvalidArgument
from swarm.v1 import types_pb2 as types

from orchestrator.cli import output, words
from orchestrator.cli.parsing import fields, ports, quantities

TCP, UDP = types.PORT_PROTOCOL_TCP, types.PORT_PROTOCOL_UDP
INGRESS, HOST = types.PUBLISH_MODE_INGRESS, types.PUBLISH_MODE_HOST


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400), ("90d", 90 * 86400), ("0", 0), ("0s", 0), (".5s", 0.5),
        ("1m30s", 90), ("250us", 0.00025), ("1h0m0.5s", 3600.5),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    found = quantities.duration(text, "--x")
    assert found.seconds + found.nanos / 1e9 == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10", "-1s", "1s ago", "1 h", "1h-3m", "9999999d", "1x", "１s"])
def test_what_is_no_duration_names_the_flag(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--stop-grace-period"):
        quantities.duration(text, "--stop-grace-period")


def test_a_number_without_a_unit_gets_a_hint() -> None:
    with pytest.raises(InvalidArgument, match="10s"):
        quantities.duration("10", "--x")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1024", 1024),
        ("64k", 65536),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2 g", 2 << 30),
        ("0", 0),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert quantities.byte_count(text, "--x") == count


@pytest.mark.parametrize("text", ["", "m", "-1", "1.2.3m", "5 apples", "99999999p"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--limit-memory"):
        quantities.byte_count(text, "--limit-memory")


@pytest.mark.parametrize(("text", "nano"), [("2", 2 * 10**9), ("0.5", 5 * 10**8), ("0.000000001", 1), ("0", 0)])
def test_cpus(text: str, nano: int) -> None:
    assert quantities.nano_cpus(text, "--x") == nano


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "0.0000000001", "1e30"])
def test_what_is_no_number_of_cpus(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--limit-cpu"):
        quantities.nano_cpus(text, "--limit-cpu")


def port(target: int, published: int = 0, protocol: Any = TCP, mode: Any = INGRESS, name: str = "") -> types.PortConfig:
    return types.PortConfig(target_port=target, published_port=published, protocol=protocol, mode=mode, name=name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", [port(80, 8080)]),
        ("80", [port(80)]),
        ("0:80", [port(80)]),
        ("53:53/udp", [port(53, 53, UDP)]),
        ("8000-8002:80-82", [port(80, 8000), port(81, 8001), port(82, 8002)]),
        ("80-81", [port(80), port(81)]),
        ("published=8080,target=80", [port(80, 8080)]),
        ("target=80", [port(80)]),
        ("published=8080,target=80,protocol=udp,mode=host", [port(80, 8080, UDP, HOST)]),
        ("name=web,published=8080,target=80", [port(80, 8080, name="web")]),
        ("published=8000-8001,target=80-81", [port(80, 8000), port(81, 8001)]),
    ],
)
def test_ports(text: str, expected: list[types.PortConfig]) -> None:
    assert ports.published(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a port"), ("x", "not a port"), ("0", "not a port"), ("65536:80", "65536"), ("8080:80/sctp", "tcp or udp"),
        (":80", "lacks the published port"), ("127.0.0.1:8080:80", "names an address; write 8080:80|names an address"),
        ("8000-8001:80", "same length"), ("8001-8000:80-81", "ends before"), ("published=80", "target=PORT"),
        ("target=80,mode=vip", "ingress or host"), ("target=80,port=1", "'port' is not known"), ("target", "not a port"),
        ("target=80,mode", "needs a value"), ('"target=80', "quote"),
    ],
)  # fmt: skip
def test_what_is_no_port(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        ports.published(text)
    assert str(caught.value).startswith("--publish")


def test_published_ports_as_they_are_listed() -> None:
    assert ports.describe([port(80, 8080), port(53, 0, UDP)]) == "*:8080->80/tcp, *:?->53/udp"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "type=volume,source=data,target=/data",
            types.Mount(type=types.MOUNT_TYPE_VOLUME, source="data", target="/data"),
        ),
        ("src=data,dst=/d,ro", types.Mount(type=types.MOUNT_TYPE_VOLUME, source="data", target="/d", read_only=True)),
        (
            "type=bind,source=/a,destination=/b,readonly=false",
            types.Mount(type=types.MOUNT_TYPE_BIND, source="/a", target="/b"),
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1777",
            types.Mount(type=types.MOUNT_TYPE_TMPFS, target="/t", tmpfs_size_bytes=64 << 20, tmpfs_mode=0o1777),
        ),
        ('type=bind,"source=/a,b",target=/b', types.Mount(type=types.MOUNT_TYPE_BIND, source="/a,b", target="/b")),
    ],
)
def test_mounts(text: str, expected: types.Mount) -> None:
    assert fields.mount(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "target=data", "type=nfs,target=/a", "type=bind,source=a,target=/a", "type=tmpfs,source=/a,target=/a",
        "type=volume,target=/a,tmpfs-size=1m", "target=/a,readonly=maybe", "type=tmpfs,target=/a,tmpfs-mode=9", "target=/a,x=1",
    ],
)  # fmt: skip
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--mount"):
        fields.mount(text)


def test_networks() -> None:
    assert fields.network("a") == types.NetworkAttachmentConfig(network="a")
    assert fields.network("name=a,alias=b,alias=c") == types.NetworkAttachmentConfig(network="a", aliases=["b", "c"])
    for text in ("", "alias=b", "name=a,x=1"):
        with pytest.raises(InvalidArgument, match="--network"):
            fields.network(text)


def test_environment_takes_ours_and_the_last_of_a_name() -> None:
    ours = {"HOME": "/root"}
    assert fields.environment(["A=1", "HOME", "NONE", "A=2", "E="], ours) == ["A=2", "HOME=/root", "E="]
    for text in ("=x", "A B=1", ""):
        with pytest.raises(InvalidArgument, match="--env"):
            fields.environment([text], ours)


def test_environment_files_skip_comments() -> None:
    assert fields.environment_file("# note\n\nA=1\n  B=2 # kept\nC\n", "f") == ["A=1", "B=2 # kept", "C"]
    with pytest.raises(InvalidArgument, match="--env-file f"):
        fields.environment_file("=x\n", "f")


def test_small_flags() -> None:
    assert fields.spread("spread=node.labels.zone") == "node.labels.zone"
    assert fields.host("db:10.0.0.1") == "10.0.0.1 db"
    assert fields.host("db:::1") == "::1 db"
    assert fields.ulimit("nofile=1024:2048") == types.Ulimit(name="nofile", soft=1024, hard=2048)
    assert fields.ulimit("core=-1") == types.Ulimit(name="core", soft=-1, hard=-1)
    assert fields.capability("net_admin", "--cap-add") == "CAP_NET_ADMIN"
    assert fields.capability("ALL", "--cap-add") == "ALL"
    assert fields.labels(["a=1", "b"], "--label") == {"a": "1", "b": ""}


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (fields.spread, "zone"), (fields.spread, "binpack=x"), (fields.host, "db"), (fields.host, ":1"),
        (fields.ulimit, "nofile"), (fields.ulimit, "nofile=2:1"), (fields.ulimit, "nofile=x"), (fields.ulimit, "nofile=-1:5"),
    ],
)  # fmt: skip
def test_what_small_flags_refuse(parse: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^--"):
        parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "less than a second"), (1, "1 second"), (5, "5 seconds"), (59.9, "59 seconds"), (60, "about a minute"),
        (150, "2 minutes"), (3700, "about an hour"), (7300, "2 hours"), (86400 * 3, "3 days"), (86400 * 20, "2 weeks"),
        (86400 * 100, "3 months"), (86400 * 1000, "2 years"),
    ],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert words.about(seconds) == text


@pytest.mark.parametrize("text", ["1h30m", "10s", "500ms", "0s", "1m0.5s", "2h", "250us"])
def test_durations_are_shown_as_flags_take_them(text: str) -> None:
    span = quantities.duration(text, "--x")
    shown = words.duration(span.seconds + span.nanos / 1e9)
    assert quantities.duration(shown, "--x") == span


def test_sizes_and_enums_as_words() -> None:
    assert [words.size(count) for count in (0, 999, 1234, 5_000_000)] == ["0B", "999B", "1.23kB", "5MB"]
    assert words.memory(512 << 20) == "512MiB"
    assert words.enum_word(types.RestartCondition.DESCRIPTOR, types.RESTART_CONDITION_ON_FAILURE) == "on-failure"
    assert words.enum_word(types.RestartCondition.DESCRIPTOR, 0) == ""
    assert words.enum_word(types.RestartCondition.DESCRIPTOR, 99) == "99"


def test_what_a_terminal_would_obey_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Hosts' names and containers' last words are strangers' text: they must not move the cursor or set a title."""
    evil = "\x1b]0;owned\x07\x1b[2Jweb\r\u202e\x9b1m"
    assert words.visible(evil) == "\\x1b]0;owned\\x07\\x1b[2Jweb\\r\\u202e\\x9b1m"
    assert words.visible("exit 1: naïve 日本 – …") == "exit 1: naïve 日本 – …"
    output.table(["NAME"], [[evil], [output.Cell(evil, "red")]])
    output.note(evil)
    printed = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in printed.out + printed.err)
