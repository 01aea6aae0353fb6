"""The settings object: what is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from xpeft_server.settings import Settings, SettingsInvalid, is_loopback
from xpeft_server.settings_source import load_settings


def test_the_defaults_serve_this_machine_only():
    settings = load_settings({}, {})
    assert settings == Settings()
    assert is_loopback(settings.host)
    assert settings.api_keys is None


def test_settings_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError):
        Settings().port = 1


def test_values_are_parsed_to_their_types():
    values = {"drain_seconds": "2.5", "metrics_open": "true", "api_keys": "keys.json", "host": "0.0.0.0"}  # noqa: S104
    settings = load_settings(values, {})
    assert (settings.drain_seconds, settings.metrics_open, settings.api_keys) == (2.5, True, Path("keys.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "http"),
        ("device", "tpu"),
        ("dtype", "float16"),
        ("slots", "0"),
        ("slots", "many"),
        ("max_batch_tokens", "1"),
        ("queue_limit", "0"),
        ("queue_token_limit", "0"),
        ("host_cache_bytes", "-1"),
        ("max_body_bytes", "8MiB"),
        ("max_profile_bytes", "0"),
        ("max_inputs", "0"),
        ("send_seconds", "0"),
        ("idle_seconds", "nan"),
        ("connections", "0"),
        ("connections", "many"),
        ("tuning_jobs_per_tenant", "-1"),
        ("max_tuning_rows", "1"),
        ("tuning_share", "0"),
        ("tuning_share", "1.01"),
        ("drain_seconds", "-1"),
        ("drain_seconds", "nan"),
        ("drain_seconds", "inf"),
        ("metrics_open", "perhaps"),
        ("metrics_top_profiles", "-1"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("access_log", "perhaps"),
        ("trace_sample_ratio", "1.01"),
        ("trace_sample_ratio", "-0.1"),
        ("profile_batches", "0"),
        ("otlp_endpoint", "collector:4318"),
        ("otlp_endpoint", "grpc://collector:4317"),
        ("otlp_endpoint", "http://"),
        ("otlp_endpoint", "http://collector:4318/?a=b"),
    ],
)
@pytest.mark.parametrize("by_variable", [True, False])
def test_a_bad_value_is_refused_by_key_and_value(name, value, by_variable):
    options, environ = ({}, {f"XPEFT_{name.upper()}": value}) if by_variable else ({name: value}, {})
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(options, environ)
    assert f"{name} = {value!r}" in str(refused.value)
    assert "--" + name.replace("_", "-") in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", "localhost.example.com"])  # noqa: S104
def test_a_host_that_others_reach_needs_keys(host):
    with pytest.raises(SettingsInvalid, match=r"host = .*api_keys"):
        load_settings({"host": host}, {})
    assert load_settings({"host": host, "api_keys": "keys.json"}, {}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_keys(host):
    assert load_settings({"host": host}, {}).host == host


@pytest.mark.parametrize(
    "values",
    [
        {"max_profile_bytes": "4096", "max_body_bytes": "2048"},
        {"max_inputs": "100", "queue_limit": "99"},
        {"max_batch_tokens": "4096", "queue_token_limit": "1024"},
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_both_values(values):
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(values, {})
    for name, value in values.items():
        assert f"{name} = {value}" in str(refused.value)


def test_processes_need_a_store_that_they_share():
    with pytest.raises(SettingsInvalid, match=r"^http_processes = 2 needs .* store = 'memory://' .* sqlite:///FILE"):
        load_settings({"http_processes": "2", "store": "memory://"}, {})
    assert load_settings({"http_processes": "0", "store": "memory://"}, {}).http_processes == 0


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("memory://", "memory://"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:hush@redis:6379/0", "redis://user:***@redis:6379/0"),
        ("rediss://:hush@redis/0", "rediss://:***@redis/0"),
        ("redis://redis/0?password=hush&db=1", "redis://redis/0?password=***&db=1"),
    ],
)
def test_the_password_of_the_store_is_not_shown(store, shown):
    assert Settings(store=store).store_shown == shown


def test_a_collectors_credentials_are_refused_without_being_shown():
    with pytest.raises(SettingsInvalid, match="OTEL_EXPORTER_OTLP_HEADERS") as refused:
        load_settings({"otlp_endpoint": "https://user:hush@collector:4318"}, {})
    assert "hush" not in str(refused.value)
