"""Whether what people send is well formed: pure checks of a spec by itself, whatever the state of the cluster.

Each check raises InvalidArgument with one sentence: the field (as its path in the spec), what is wrong with it, and what
would be right. Checks against the cluster's state (names taken, ports published, networks there) are in `api`.
"""

from swarm.references import ImageReference, parse_image_reference

from orchestrator.api.validation.clusters import check_cluster_spec
from orchestrator.api.validation.networks import check_network_spec
from orchestrator.api.validation.nodes import check_node_spec
from orchestrator.api.validation.services import check_service_spec

__all__ = [
    "ImageReference",
    "check_cluster_spec",
    "check_network_spec",
    "check_node_spec",
    "check_service_spec",
    "parse_image_reference",
]
