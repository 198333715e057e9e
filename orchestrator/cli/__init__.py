"""The program `swarmctl`. Whatever part of it is imported first, typer comes in without what it rarely needs."""

from swarm.footprint import postponed

# What libraries import for a part of theirs that a command rarely or never uses: 25 ms.
RARELY_USED = (
    "asyncio", "grpc.aio", "google.protobuf.internal.python_message",  # calls here are blocking; C code makes messages
    "bz2", "calendar", "csv", "ipaddress", "locale", "lzma", "pkgutil", "shellingham", "subprocess", "textwrap", "tokenize",
)  # fmt: skip

with postponed(*RARELY_USED):
    import typer  # noqa: F401 – what it imports is postponed for the modules that import it after us
