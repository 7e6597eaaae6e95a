"""Files from the model hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from featurecache.errors import BackboneUnavailable
from featurecache.text import one_line


def download(
    model: str, part: str, repository: str | None, files: Sequence[str], load: Callable[[], Any]
) -> Any:
    """What `load` returns, which downloads a part of backbone `model`, its weights for example,
    from a repository of the hub. The part is in one of `files`.

    The hub's cache folder is used where it has them. Raises BackboneUnavailable.
    """
    try:
        if repository:
            _ask_hub(repository, files)
        return load()
    except Exception as error:
        endpoint = os.environ.get("HF_ENDPOINT", "the model hub")
        raise BackboneUnavailable(
            f"backbone {model}: could not download its {part} from {endpoint}, repository "
            f"{repository or '(none known)'} ({type(error).__name__}: {one_line(error)}). "
            "Without a connection: copy the hub's cache folder from a machine that has it and set "
            "HF_HUB_CACHE; pass --weights FILE (.safetensors or .pth); or use efficientnet_lite0, "
            "whose weights are installed"
        ) from error


def download_file(model: str, repository: str, file: str) -> str:
    """The path of a file of a repository, OWNER/NAME or OWNER/NAME@REVISION, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")

    def load() -> str:
        return str(hf_hub_download(name, file, revision=revision or None))

    path: str = download(model, file, repository, [file], load)
    return path


def _ask_hub(repository: str, files: Sequence[str]) -> None:
    """Request the first file once if none is in the local cache.

    This avoids the retries of the hub client: timm requests several files, and each would be
    retried for half a minute or more.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils import EntryNotFoundError

    name, _, revision = repository.partition("@")
    version = {"revision": revision or None}
    if not any(
        isinstance(hub.try_to_load_from_cache(name, file, **version), str) for file in files
    ):
        with contextlib.suppress(EntryNotFoundError):  # timm tries other file names
            hub.get_hf_file_metadata(hub.hf_hub_url(name, files[0], **version), timeout=10)
