"""How long a deployment's sequences may be, and whether its limit of keys and values holds one of them.

A node's share of the limit goes by its layers, as what a sequence takes of it does: what holds one sequence
over all layers holds it under every placement, and what does not fails under every one.
"""

from __future__ import annotations

from orchestrator.errors import ImpossibleRequest
from orchestrator.inference.request import LEAST_CONTEXT_TOKENS, DeploymentRequest

_CONTEXT_TOKENS = 1024
"""Where the request does not say; fewer if the model's own maximum is less."""


def context_of(request: DeploymentRequest, own_tokens: int) -> int:
    """Return how many tokens prompt and answer have together, of a model that takes `own_tokens` at most."""
    return min(request.context_tokens or _CONTEXT_TOKENS, own_tokens)


def check_cache_limit(request: DeploymentRequest, *, own_tokens: int, kv_bytes_per_token: int) -> None:
    """Refuse a limit in which not even one sequence fits.

    `kv_bytes_per_token` is what a token leaves in the caches of all layers together.

    Raises:
        ImpossibleRequest: it does not fit; the text has what it takes and what would.
    """
    limit, context_tokens = request.kv_cache_bytes, context_of(request, own_tokens)
    needed = kv_bytes_per_token * context_tokens
    if limit is None or limit >= needed:
        return
    fitting = limit // kv_bytes_per_token
    shorten = f", or shorten context_tokens to {fitting} at most" if fitting >= LEAST_CONTEXT_TOKENS else ""
    raise ImpossibleRequest(
        f"kv_cache_bytes is {limit}, but one sequence of {context_tokens} tokens takes {needed} bytes "
        f"over all layers: raise it to that at least{shorten}",
        field="kv_cache_bytes",
    )
