"""torch.compile for a prior's networks."""

import torch

from ldd.errors import UserError
from ldd.priors.base import Prior


def compile_networks(prior: Prior, backend: str) -> None:
    """Let torch.compile take each of the prior's networks as one graph, when it is first called.

    Raises:
        UserError: no such backend, or no networks.
    """
    backends = torch.compiler.list_backends(exclude_tags=None)
    if backend not in backends:
        raise UserError(f"compile ({backend}) is no backend; choose from {', '.join(backends)}, or null")
    networks = list(prior.networks())
    if not networks:
        raise UserError(f"compile ({backend}): {type(prior).__name__} has no network to compile; set null")
    for network in networks:
        network.compile(fullgraph=True, backend=backend)
