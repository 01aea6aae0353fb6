"""xpeft keys: what the commands write and say."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from xpeft_server.api.auth import Role
from xpeft_server.api.key_file import read_keys
from xpeft_server.api.key_ring import KeyRing
from xpeft_server.cli.main import app

runner = CliRunner()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def keys(*arguments, path):
    return runner.invoke(app, ["keys", *arguments, "--file", str(path)])


def create(path, *arguments):
    return keys("create", "--tenant", "acme", "--role", "infer", *arguments, path=path)


def test_a_created_key_is_shown_once_and_opens_its_tenant(path):
    created = create(path)
    assert created.exit_code == 0
    secret = created.stdout.strip()
    assert secret.startswith("xp_")
    assert secret not in path.read_text()
    assert secret not in created.stderr
    assert KeyRing(path).find(secret.encode()) == ("acme", {Role.INFER})
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_get_ids_of_their_own(path):
    for _ in range(3):
        create(path)
    create(path, "--id", "laptop")
    assert [entry.id for entry in read_keys(path)] == ["acme-1", "acme-2", "acme-3", "laptop"]
    again = create(path, "--id", "laptop")
    assert again.exit_code == 1
    assert "laptop" in again.stderr
    assert len(read_keys(path)) == 4


def test_an_operator_needs_no_tenant_and_others_do(path):
    assert keys("create", "--role", "operator", path=path).exit_code == 0
    refused = keys("create", "--role", "admin", path=path)
    assert refused.exit_code == 1
    assert "needs a tenant" in refused.stderr
    assert [entry.role for entry in read_keys(path)] == [Role.OPERATOR]


def test_an_age_becomes_a_time(path):
    create(path, "--expires", "90d")
    (entry,) = read_keys(path)
    assert entry.expires_at == pytest.approx(time.time() + 90 * 86400, abs=60)
    create(path, "--expires", "2030-01-31T12:00Z")
    assert read_keys(path)[1].expires_at == datetime(2030, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("expires", ["soon", "90", "90y", "2030-01-31", "2030-01-31T12:00"])
def test_a_time_that_is_none_is_refused(path, expires):
    refused = create(path, "--expires", expires)
    assert refused.exit_code == 1
    assert expires in refused.stderr
    assert not path.exists()


def test_the_list_has_no_secrets(path):
    secret = create(path).stdout.strip()
    keys("create", "--role", "operator", path=path)
    (digest, _) = (entry.sha256 for entry in read_keys(path))
    shown = keys("list", path=path)
    assert "acme-1" in shown.stdout
    assert "operator-1" in shown.stdout
    assert secret not in shown.stdout
    assert digest not in shown.stdout
    lines = [json.loads(line) for line in keys("list", "--json", path=path).stdout.splitlines()]
    assert lines[0] == {"id": "acme-1", "tenant": "acme", "role": "infer", "expires": None}


def test_a_revoked_key_is_gone_and_the_others_stay(path):
    create(path)
    other = create(path).stdout.strip()
    assert keys("revoke", "acme-1", path=path).exit_code == 0
    assert [entry.id for entry in read_keys(path)] == ["acme-2"]
    assert KeyRing(path).find(other.encode()) is not None
    again = keys("revoke", "acme-1", path=path)
    assert again.exit_code == 1
    assert "acme-1" in again.stderr


@pytest.mark.parametrize("command", [["list"], ["revoke", "x"]])
def test_a_file_that_is_not_there_is_named(path, command):
    refused = keys(*command, path=path)
    assert refused.exit_code == 1
    assert "keys.json" in refused.stderr


def test_a_broken_file_is_not_overwritten(path):
    path.write_text("{")
    assert create(path).exit_code == 1
    assert path.read_text() == "{"


def test_the_variable_of_the_server_names_the_file(path):
    created = runner.invoke(
        app, ["keys", "create", "--tenant", "t", "--role", "admin"], env={"XPEFT_API_KEYS": str(path)}
    )
    assert created.exit_code == 0
    assert len(read_keys(path)) == 1
