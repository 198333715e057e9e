"""What an image reference means in the registry, asked once when a service is created or updated.

The digest goes into the spec, so that all tasks of a revision run the same image whatever happens to the tag. An image that
does not exist is an error; a registry that cannot be asked is a warning: the nodes may be able to reach it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from swarm.errors import DeadlineExceeded, NotFound, SwarmError
from swarm.v1 import types_pb2

from orchestrator.api.validation import parse_image_reference

Resolver = Callable[[str], Awaitable[str]]  # reference → digest (sha256:…); raises as the Images service

RESOLVE_TIMEOUT = 5.0  # seconds
PUBLIC_REGISTRY = "docker.io"


async def pin_image(
    container: types_pb2.ContainerSpec,
    current: types_pb2.ContainerSpec | None,
    resolve: Resolver | None,
    *,
    default_registry: str,
) -> list[str]:
    """Sets `container.image_digest` (of a copy that may be changed); returns warnings.

    A digest that came with the request stays. One that the service has already stays while the image's name does, where the
    registry cannot be asked. Where `resolve` is None nobody is asked. Raises NotFound, naming the registry.
    """
    reference = parse_image_reference(container.image)
    if reference.digest:
        container.image_digest = reference.digest
        return []
    if container.image_digest and current is not None and current.image == container.image:
        return []
    if resolve is None:
        return []
    registry = reference.domain or default_registry or PUBLIC_REGISTRY
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            container.image_digest = await resolve(container.image)
    except NotFound as error:
        raise NotFound(
            f'image "{container.image}" was not found in the registry {registry}; push it there first, or check its name'
        ) from error
    except (SwarmError, TimeoutError) as error:
        reason = error if isinstance(error, SwarmError) else DeadlineExceeded(f"no answer in {RESOLVE_TIMEOUT:g} s")
        same_image = current is not None and current.image == container.image
        container.image_digest = current.image_digest if current is not None and same_image else ""
        return [
            f'image "{container.image}" could not be looked up in the registry {registry} ({reason}); '
            "each node will try by itself, and nodes may run different versions"
        ]
    return []
