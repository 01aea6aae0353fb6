"""xpeft serve: the help, and starts that are refused."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from xpeft_server.cli.main import app
from xpeft_server.cli.serve.server_socket import address_of, bind
from xpeft_server.settings_source import describe_settings

runner = CliRunner()


def serve(*arguments, **env):
    return runner.invoke(app, ["serve", *arguments], env=env)


def test_the_help_has_every_setting_with_its_default_and_variable():
    shown = " ".join(serve("--help", COLUMNS="200", TERMINAL_WIDTH="200").stdout.replace("│", " ").split())
    for setting in describe_settings():
        assert f"{setting.option} " in shown
        assert f"Variable: {setting.variable}." in shown
        if setting.default:
            assert f"Default: {setting.default}." in shown


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--port", "65536"], {}, ["port = '65536'", "--port"]),
        ([], {"XPEFT_PORT": "http"}, ["port = 'http'", "XPEFT_PORT"]),
        ([], {"XPEFT_PROT": "1"}, ["XPEFT_PROT", "XPEFT_PORT"]),
        (["--host", "0.0.0.0"], {}, ["host = '0.0.0.0'", "--api-keys"]),  # noqa: S104
        (["--api-keys", "nowhere.json"], {}, ["api_keys: nowhere.json: No such file", "--api-keys"]),
        (["--tenant-limits", "nowhere.json"], {}, ["tenant_limits: nowhere.json: No such file", "--tenant-limits"]),
        (["--store", "ftp://x"], {}, ["ftp://x"]),
        (["--host", "256.0.0.1", "--api-keys", "KEYS"], {}, ["256.0.0.1"]),
        (["--profile-trace", "nowhere/trace.json"], {}, ["profile_trace = 'nowhere/trace.json'", "No such file"]),
        (["--profile-trace", "."], {}, ["profile_trace = '.'", "is a folder"]),
        (["--profile-trace", "/proc/trace.json"], {}, ["profile_trace = '/proc/trace.json'", "cannot be written"]),
        (["--otlp-endpoint", "collector"], {}, ["otlp_endpoint = 'collector'", "http://HOST:4318"]),
        (["--otlp-endpoint", "http://c:4318"], {"OTEL_EXPORTER_OTLP_HEADERS": "x"}, ["HEADERS: item 1 is not NAME"]),
        (["--otlp-endpoint", "http://c:4318"], {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9999"}, ["OTEL_ variable", "max_"]),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_code_2_and_key_and_value(tmp_path, arguments, env, words):
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": []}')
    given = [str(keys) if argument == "KEYS" else argument for argument in arguments]
    refused = serve("--store", "memory://", *given, **env) if "--store" not in given else serve(*given, **env)
    assert refused.exit_code == 2
    for word in words:
        assert word in refused.stderr
    assert "Traceback" not in refused.output


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = serve("--store", "memory://", "--port", str(port))
    assert refused.exit_code == 2
    assert f"port = {port}" in refused.stderr


def test_a_bound_address_is_told_as_it_is_typed():
    with bind("localhost", 0) as taken:
        assert address_of(taken).startswith("http://")
    with bind("127.0.0.1", 0) as taken:
        assert address_of(taken) == f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(taken.getsockname())


def test_the_help_and_the_keys_need_neither_torch_nor_fastapi():
    code = (
        "import sys; import xpeft_server.cli.main;"
        "print(sorted({'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
