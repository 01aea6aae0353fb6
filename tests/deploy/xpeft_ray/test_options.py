"""What the application may be told, and what it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_ray.options import check_reach, read_options
from xpeft_server.settings import Settings, SettingsInvalid

GOOD = {"store": "sqlite:////var/lib/xpeft.db", "device": "cpu"}


def test_settings_and_scale_are_told_apart_and_may_be_words() -> None:
    settings, scale = read_options({**GOOD, "min_replicas": "2", "max_replicas": "4", "queue_limit": "512"}, {})
    assert (scale.min_replicas, scale.max_replicas, scale.ingress_replicas) == (2, 4, 1)
    assert (settings.queue_limit, settings.device) == (512, "cpu")


def test_what_is_not_told_comes_from_the_environment() -> None:
    environ = {"XPEFT_STORE": "redis://:secret@db/0", "XPEFT_DEVICE": "cuda", "XPEFT_API_KEYS": "/keys/keys.json"}
    settings, _ = read_options({}, environ)
    assert (settings.store, settings.device, settings.api_keys) == (
        "redis://:secret@db/0",
        "cuda",
        Path("/keys/keys.json"),
    )


def test_where_an_image_says_that_xpeft_serve_shall_listen_is_left_aside() -> None:
    settings, _ = read_options(GOOD, {"XPEFT_HOST": "0.0.0.0", "XPEFT_PORT": "9000"})  # noqa: S104
    assert settings.host == "127.0.0.1"


def test_no_tuning_is_promised() -> None:
    settings, _ = read_options(GOOD, {})
    assert settings.tuning_jobs_per_tenant == 0


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"port": "8001"}, "port = '8001' is for Ray Serve's proxies to know"),
        ({"tls_key": "/key.pem"}, "tls_key = '/key.pem' is for Ray Serve's proxies"),
        ({"store": "memory://"}, "store = 'memory://' is one process's own"),
        ({"store": "sqlite:///xpeft.db"}, "store = 'sqlite:///xpeft.db' is relative"),
        ({"device": "auto"}, "device = 'auto' cannot be used: give cpu or cuda"),
        ({"bank": "bank.safetensors"}, "bank = 'bank.safetensors' is relative"),
        ({"api_keys": "keys.json"}, "api_keys = 'keys.json' is relative"),
        ({"profile_trace": "/trace.json"}, "profile_trace = '/trace.json' is one process's file"),
        ({"tuning_jobs_per_tenant": "4"}, "tuning_jobs_per_tenant = 4 cannot be used"),
        ({"min_replicas": "3", "max_replicas": "2"}, "min_replicas = 3 is more than max_replicas = 2"),
        ({"max_replicas": "many"}, "max_replicas = 'many' cannot be used"),
        ({"queue_limit": "-1"}, "queue_limit = '-1' cannot be used"),
        ({"replicas": "2"}, "replicas = '2' cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name_and_value(told: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        read_options(GOOD | told, {})
    assert words in str(refused.value)


def test_a_password_in_the_stores_url_is_not_repeated() -> None:
    with pytest.raises(SettingsInvalid) as refused:
        read_options({"store": "redis://:secret@db/0", "device": "auto"}, {})
    assert "secret" not in str(refused.value)


def test_sqlite_is_refused_once_there_is_a_second_machine() -> None:
    check_reach(Settings(store="sqlite:////x.db"), nodes=1)
    check_reach(Settings(store="redis://db"), nodes=9)
    with pytest.raises(SettingsInvalid, match="Ray has 2 nodes"):
        check_reach(Settings(store="sqlite:////x.db"), nodes=2)
