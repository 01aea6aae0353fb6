from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import Profile, read_profile_file
from xpeft_server.cli.profiles.client import Answer, ClientError, ServerRefused
from xpeft_server.cli.tune import sinks as tune_sinks
from xpeft_server.cli.tune.sinks import FileSink, ServerSink, Sink, SinkFailed, SinkRefused, StoreSink, check_bank
from xpeft_server.client_tls import NO_FILES, ClientTls

MASK = np.eye(2, dtype=bool)
BANK = "sha256:" + "ab" * 32


def profile(description: str) -> Profile:
    return Profile(bank=BANK, mask_a=MASK, mask_b=MASK, shared_head="polar", description=description)


def refusal(status: int, code: str) -> ServerRefused:
    return ServerRefused(f"{status} ({code})", status=status, code=code, reason=code, retry_after=None)


class Client:
    """Stands for the client of a server."""

    def __init__(self, url: str, api_key: str | None, tls: ClientTls = NO_FILES) -> None:
        self.versions = {"zoe": "sha256:0"}
        self.prefixes: list[str] = []

    def bank(self) -> str:
        return BANK

    def list(self, *, prefix: str, limit: int | None) -> Iterator[dict[str, Any]]:
        self.prefixes.append(prefix)
        found = [{"name": name, "version": version} for name, version in sorted(self.versions.items())]
        yield from [each for each in found if each["name"].startswith(prefix)][:limit]

    def put(self, name: str, file: bytes, *, if_match: None, if_none_match: None) -> Answer:
        if name == "base":
            raise refusal(422, "reserved_name")
        status = 200 if name in self.versions else 201
        self.versions[name] = read_profile_file(file).version
        return Answer(status, {"etag": f'"{self.versions[name]}"'}, b"{}")

    def close(self) -> None:
        pass


@pytest.fixture(params=["file", "server", "sqlite", "redis"])
def sink(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", Client)
    with ExitStack() as stack:
        match request.param:
            case "file":
                yield FileSink(lambda name: tmp_path / f"{name}.safetensors", overwrite=True)
            case "server":
                yield stack.enter_context(closing(ServerSink("http://host", None)))
            case "sqlite":
                yield stack.enter_context(closing(StoreSink(f"sqlite:///{tmp_path / 's.db'}", "critics")))
            case "redis":
                url = request.getfixturevalue("redis_server").url
                yield stack.enter_context(closing(StoreSink(url, f"critics-{tmp_path.name}")))


def test_a_sink_has_what_was_put_in_the_version_that_was_put_last(sink: Sink) -> None:
    first, second = profile("first"), profile("second")
    assert sink.versions(["ann", "bob"]) == {}
    outcomes = [sink.put("ann", first), sink.put("ann", second), sink.put("bob", first)]
    assert sink.versions(["ann", "bob", "eve"]) == {"ann": second.version, "bob": first.version}
    assert sink.versions(["bob"]) == {"bob": first.version}
    assert sink.versions([]) == {}
    assert all("ann" in outcome for outcome in outcomes[:2])


def test_a_sink_works_in_a_thread_that_did_not_open_it(sink: Sink) -> None:
    thread = threading.Thread(target=sink.put, args=("ann", profile("")))
    thread.start()
    thread.join(60)
    assert sink.versions(["ann"]) == {"ann": profile("").version}


def test_a_store_takes_no_profile_with_the_bare_models_name(tmp_path: Path) -> None:
    with closing(StoreSink(f"sqlite:///{tmp_path / 's.db'}", "critics")) as sink:
        with pytest.raises(SinkFailed, match="name: 'base' stands for the bare model, no profile can have it"):
            sink.put("base", profile(""))
        assert sink.versions(["base"]) == {}


def test_a_server_is_asked_only_for_names_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("", None)
    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", lambda *_: client)
    sink = ServerSink("http://host", None)
    sink.versions(["critic-bob", "critic-ann", "critic-bea"])
    sink.versions(["critic-bob", "critic-bea"])
    sink.versions(["ann", "bob"])
    assert client.prefixes == ["critic-", "critic-b", ""]


def test_a_server_that_does_not_answer_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Client) -> str:
        raise ClientError("401 Unauthorized")

    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", Client)
    monkeypatch.setattr(Client, "bank", refuse)
    with pytest.raises(SinkFailed, match="401"):
        ServerSink("http://host", None)


def test_only_a_server_takes_profiles_of_one_bank_alone(sink: Sink) -> None:
    check_bank([sink], BANK)
    if isinstance(sink, ServerSink):
        with pytest.raises(SinkFailed, match=f"^bank is sha256:cd, the server has {BANK}: give its --plm and --bank$"):
            check_bank([sink], "sha256:cd")
    else:
        check_bank([sink], "sha256:cd")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(403, "forbidden", SinkRefused), (409, "bank_mismatch", SinkRefused), (503, "draining", SinkFailed)],
)
def test_what_is_refused_for_good_is_told_from_what_passes(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[SinkFailed]
) -> None:
    def refuse(*_: object, **__: object) -> Answer:
        raise refusal(status, code)

    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", Client)
    sink = ServerSink("http://host", None)
    monkeypatch.setattr(Client, "put", refuse)
    with pytest.raises(SinkFailed, match=code) as failed:
        sink.put("ann", profile(""))
    assert failed.type is kind


def test_a_store_that_is_down_is_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkFailed, match=r"127\.0\.0\.1:1"):
        StoreSink("redis://127.0.0.1:1/0", "critics")
    with pytest.raises(SinkFailed, match=r"there is no folder .*/no$"):
        StoreSink(f"sqlite:///{tmp_path}/no/s.db", "critics")


def test_a_damaged_file_is_not_there_and_one_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    sink = FileSink(lambda name: tmp_path / name, overwrite=True)
    (tmp_path / "ann").write_bytes(b"damaged")
    assert sink.versions(["ann"]) == {}
    (tmp_path / "bob").mkdir()
    with pytest.raises(SinkFailed, match="bob cannot be read: Is a directory"):
        sink.versions(["bob"])
    with pytest.raises(SinkFailed, match="bob cannot be written: Is a directory"):
        sink.put("bob", profile(""))
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".draft")] == []
