"""The infinity embedding server (PyPI ``infinity_emb``) from an environment of its own, on the same model's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..processes.server_client import http_request
from ..processes.server_process import ServerFailed, ServerProcess, free_port

_MODEL: Final = "plm"


def infinity_program(python: Path) -> Path:
    """The server's program beside the interpreter of its environment. Raises: ServerFailed if it is not there."""
    program = python.with_name("infinity_emb")
    if not program.exists():
        raise ServerFailed(f"{program} is not there: --infinity-python names the python of an environment with it")
    return program


def infinity_process(program: Path, folder: str, *, device: str, dtype: str, batch: int) -> ServerProcess:
    """Not started yet; serves the model in ``folder``."""
    port = free_port()
    options = {
        "--model-id": folder,
        "--served-model-name": _MODEL,
        "--engine": "torch",
        "--device": device,
        "--dtype": dtype,
        "--batch-size": str(batch),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--log-level": "error",
    }
    command = [str(program), "v2", "--no-bettertransformer", "--no-model-warmup"]
    command += [word for option in options.items() for word in option]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return ServerProcess(command, port=port, ready="/health", environment=environment)


def infinity_requests(texts: Sequence[str], process: ServerProcess) -> list[str]:
    """An embedding of one text each, in base64, which costs that server less than a list of numbers."""
    return [
        http_request(
            "/embeddings",
            {"model": _MODEL, "input": text, "encoding_format": "base64"},
            host=process.host,
            port=process.port,
            key=None,
        )
        for text in texts
    ]
