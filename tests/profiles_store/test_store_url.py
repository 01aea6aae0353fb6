from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_profiles import ProfileKey, StoreUnavailable, StoreUrlInvalid, open_store


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("memory://", "memory"),
        ("sqlite:///profiles.db", "sqlite"),
        ("sqlite:////var/lib/profiles.db", "sqlite"),
        ("redis://localhost", "redis"),
        ("redis://user:secret@example.org:6380/3?socket_timeout=0.5", "redis"),
        ("rediss://example.org/0?ssl_cert_reqs=required", "redis"),
        ("unix:///run/redis.sock?db=1", "redis"),
    ],
)
def test_a_url_builds_its_store_without_connecting(url: str, scheme: str) -> None:
    assert open_store(url).scheme == scheme


@pytest.mark.parametrize(
    "url",
    [
        "",
        "profiles.db",
        "memory://x",
        "postgres://localhost/db",
        "sqlite://",
        "sqlite:///",
        "sqlite://profiles.db",
        "sqlite:///folder/",
        "sqlite:///:memory:",
        "sqlite:///profiles.db?mode=ro",
        "redis://localhost:port/0",
        "redis://localhost:99999/0",
        "redis://localhost/abc",
        "redis://localhost/0?socket_timeout=soon",
        "redis://localhost/0?retry=yes",
        "redis://localhost/0?max_connections=0",
        "redis://localhost/0?socket_timeout=0",
        "redis://localhost/0?socket_timeout=inf",
        "redis://localhost/0?socket_connect_timeout=nan",
        "redis://localhost/0?db=x",
        "unix://",
    ],
)
def test_a_url_that_names_no_store_is_refused_with_its_value(url: str) -> None:
    with pytest.raises(StoreUrlInvalid) as refused:
        open_store(url)
    assert repr(url) in refused.value.message


def test_a_refused_url_keeps_its_password() -> None:
    with pytest.raises(StoreUrlInvalid) as refused:
        open_store("redis://user:s3/cr@et@localhost:6379/abc")
    assert "s3" not in refused.value.message
    assert "et@" not in refused.value.message
    assert "localhost:6379/abc" in refused.value.message


async def test_a_relative_file_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///profiles.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await store.open()
    await store.close()
    assert (tmp_path / "profiles.db").exists()


async def test_the_urls_time_limit_is_the_stores(tmp_path: Path) -> None:
    store = open_store(f"unix://{tmp_path}/nobody.sock?socket_connect_timeout=0.1")
    with pytest.raises(StoreUnavailable, match=r"nobody\.sock"):
        await store.versions([ProfileKey("acme", "support")])
    await store.close()
