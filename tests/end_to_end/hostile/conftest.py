"""Two real servers under everything that follows: an encoder with keys, and a decoder that lets everybody in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

SECRETS = {"acme-admin": ("acme", "admin"), "neighbour-admin": ("neighbour", "admin"), "ops": (None, "operator")}
CHAT = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key for each of ``SECRETS``, whose names are the secrets too."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        {"id": secret, "tenant": tenant, "role": role, "sha256": sha256(secret.encode()).hexdigest(), "expires": None}
        for secret, (tenant, role) in SECRETS.items()
    ]
    path.write_text(json.dumps({"keys": entries}))
    return path


@pytest.fixture(scope="session")
def encoder(tiny_bert: Path, key_file: Path, server_of: Callable[..., Any]) -> Iterator[Any]:
    """Its ``client`` is acme's administrator, who has the profile ``mine``."""
    server = server_of("--plm", str(tiny_bert), "--store", "memory://", "--api-keys", str(key_file))
    server.client.headers["authorization"] = "Bearer acme-admin"
    server.wait_until_ready()
    assert server.put("mine", server.profile(1)).status_code == 201
    yield server
    _end(server, "ops")


@pytest.fixture(scope="session")
def decoder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, server_of: Callable[..., Any]) -> Iterator[Any]:
    """Chats, too, and has the profile ``mine``."""
    folder = tmp_path_factory.mktemp("chatty-llama") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    server = server_of("--plm", str(folder), "--store", "memory://", "--kv-tokens", "800")
    server.wait_until_ready()
    assert server.put("mine", server.profile(1)).status_code == 201
    yield server
    _end(server, "nobody")


def _end(server: Any, operator: str) -> None:
    """Whatever was sent: it lives, no request was its own fault, and it ends as it should."""
    lines = server.client.get("/metrics", headers={"authorization": f"Bearer {operator}"}).text.splitlines()
    outcomes = [line for line in lines if line.startswith("xpeft_requests_total{") and "server_error" in line]
    assert outcomes
    assert [line for line in outcomes if not line.endswith(" 0.0")] == []
    assert server.stop() == 0


@pytest.fixture(scope="session")
def neighbour(encoder: Any) -> Iterator[httpx.Client]:
    """The administrator of another tenant of the encoder, with a profile ``mine`` too."""
    headers = {"authorization": "Bearer neighbour-admin"}
    with httpx.Client(base_url=encoder.client.base_url, headers=headers, timeout=30) as client:
        body, kind = encoder.profile(2), {"content-type": "application/octet-stream"}
        assert client.put("/v1/profiles/mine", content=body, headers=kind).status_code == 201
        yield client


@pytest.fixture(scope="session")
def refused() -> Callable[[httpx.Response], None]:
    """Asserts that an answer is an error of the client's, in the envelope, and tells nothing of the server's inside."""

    def check(answer: httpx.Response) -> None:
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(answer.content) < 2000
        for word in ("Traceback", "xpeft_", "site-packages", ".py"):
            assert word not in answer.text, answer.text

    return check
