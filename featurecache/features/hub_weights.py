"""Weights from the model hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from featurecache.errors import BackboneUnavailable
from featurecache.text import one_line


def download_network(model: str, config: Any, create: Callable[[], Any]) -> Any:
    """What `create` returns, which builds timm's network `model` with the hub's weights.

    `config` is timm's description of the weights. The hub's cache folder is used where it has them.
    Raises BackboneUnavailable.
    """
    try:
        _ask_hub(config)
        return create()
    except Exception as error:
        endpoint = os.environ.get("HF_ENDPOINT", "the model hub")
        raise BackboneUnavailable(
            f"backbone {model}: could not download its weights from {endpoint}, repository "
            f"{config.hf_hub_id or '(none known)'} ({type(error).__name__}: {one_line(error)}). "
            "Without a connection: copy the hub's cache folder from a machine that has it and set "
            "HF_HUB_CACHE; pass --weights FILE (.safetensors or .pth); or use efficientnet_lite0, "
            "whose weights are installed"
        ) from error


def _ask_hub(config: Any) -> None:
    """Request the weights once if they are not in the local cache.

    This avoids the retries of the hub client: timm requests several files, and each would be
    retried for half a minute or more.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils import EntryNotFoundError

    files = [config.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
    cached = [hub.try_to_load_from_cache(config.hf_hub_id, f) for f in files if config.hf_hub_id]
    if config.hf_hub_id and not any(isinstance(path, str) for path in cached):
        with contextlib.suppress(EntryNotFoundError):  # timm tries other file names
            hub.get_hf_file_metadata(hub.hf_hub_url(config.hf_hub_id, files[0]), timeout=10)
