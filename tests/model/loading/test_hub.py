"""A model of a hub that does not answer is refused at once, with what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.loading import hub
from xpeft_server.model.loading.hub import check_hub


class Deaf:
    """A hub that reads what it is asked and hangs up."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._hang_up, daemon=True).start()

    def _hang_up(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with caller:
                caller.settimeout(30)
                self.asked.append(caller.recv(1000).decode().partition(" HTTP/")[0])

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    found = Deaf()
    yield found
    found.close()


def test_a_hub_that_does_not_answer_is_asked_once_and_it_is_said_what_to_do(deaf: Deaf, tmp_path: Path) -> None:
    told = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    told |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": deaf.url, "HF_HOME": str(tmp_path)}
    words = ["serve", "--store", "memory://", "--port", "0", "--plm", "nobody-here/no-model"]
    program = Path(sys.executable).with_name("xpeft")
    done = subprocess.run([program, *words], env=told, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "'nobody-here/no-model' cannot be loaded: there is no such folder" in done.stderr
    assert f"{deaf.url} does not answer" in done.stderr
    assert "give the path of a model's folder" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert "Traceback" not in done.stderr
    # The client asks for other things as well, of its own accord.
    assert [each for each in deaf.asked if "no-model" in each] == [
        "HEAD /nobody-here/no-model/resolve/main/config.json"
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are asked for, of a hub that nobody reaches."""
    urls: list[str] = []

    def ask(url: str) -> None:
        urls.append(url)
        raise httpx.ConnectError("no way")

    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return urls


def test_only_what_is_nowhere_here_is_asked_for(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelUnusable, match=r"does not answer \(no way\): give the path"):
        check_hub("some/model")
    assert [url.rpartition("/some/")[2] for url in asked] == ["model/resolve/main/config.json"]
    check_hub(str(tmp_path))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    check_hub("some/model")
    monkeypatch.undo()
    assert constants.HF_HUB_OFFLINE
    check_hub("some/model")
    assert len(asked) == 1


def test_a_name_that_no_hub_can_have_is_left_to_the_loader(asked: list[str]) -> None:
    check_hub("/no/such/folder")
    assert asked == []


def test_a_hub_that_refuses_has_answered(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    def refuse(url: str) -> None:
        asked.append(url)
        raise HfHubHTTPError("404", response=httpx.Response(404, request=httpx.Request("HEAD", url)))

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    check_hub("some/model")
    assert len(asked) == 1
