"""Whether a hub can be asked for a model, found out at once: its own client would try for 23 seconds."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..errors import ModelUnusable

_CONFIG = "config.json"


def check_hub(name: str) -> None:
    """Nothing is asked for a folder that is there, for what the cache has, or where HF_HUB_OFFLINE is set.

    Raises: ModelUnusable if ``name`` is a hub's id and the hub does not answer; what it answers is for the loader.
    """
    if constants.HF_HUB_OFFLINE or Path(name).exists():
        return
    try:
        if not isinstance(try_to_load_from_cache(name, _CONFIG), str):
            get_hf_file_metadata(hf_hub_url(name, _CONFIG))
    except (HfHubHTTPError, HFValidationError):
        return
    except Exception as error:  # of the HTTP client, which is another one from release to release
        raise ModelUnusable(
            f"plm: {name!r} cannot be loaded: there is no such folder, HF_HOME has nothing of it, and"
            f" {constants.ENDPOINT} does not answer ({str(error) or type(error).__name__}): give the path of a model's"
            " folder, or an HF_HOME with the model in it (with HF_HUB_OFFLINE=1 nobody is asked)"
        ) from error
