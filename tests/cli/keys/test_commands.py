"""xpeft keys: what the commands write and say."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import read_keys
from xpeft_server.api.access.key_ring import KeyRing
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
    assert KeyRing(path).find(secret.encode()) == ("acme", {Role.INFER}, "acme-1")
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


@pytest.mark.parametrize("expires", ["0d", "0m", "2020-01-31T12:00Z", "2020-01-31T12:00+02:00"])
def test_a_key_that_would_be_dead_is_refused(path, expires):
    refused = create(path, "--expires", expires)
    assert refused.exit_code == 1
    assert f"expires = {expires!r} is not in the future" in refused.stderr
    assert not path.exists()
    create(path)
    before = path.read_text()
    assert "is not in the future" in keys("rotate", "acme-1", "--expires", expires, path=path).stderr
    assert path.read_text() == before


@pytest.mark.parametrize("expires", ["yesterday", "2030-01-31T12:00", ""])
def test_a_refused_expiry_says_both_of_its_forms(path, expires):
    said = create(path, "--expires", expires).stderr
    assert f"expires = {expires!r}" in said
    assert "an age such as 90d" in said
    assert "an ISO 8601 time with its zone such as 2030-01-31T12:00Z" in said


@pytest.mark.parametrize("tenant", ["a b", "", "-x", "t" * 129])
def test_a_tenant_that_is_no_name_is_blamed_itself(path, tenant):
    refused = keys("create", f"--tenant={tenant}", "--role", "admin", path=path)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"xpeft: tenant: '{tenant[:20]}")
    assert "-1" not in refused.stderr
    assert not path.exists()


def test_the_longest_tenant_has_keys_with_ids_of_their_own(path):
    for _ in range(2):
        assert keys("create", "--tenant", "t" * 128, "--role", "admin", path=path).exit_code == 0
    assert keys("rotate", "t" * 120 + "-1", path=path).exit_code == 0
    assert [entry.id for entry in read_keys(path)] == ["t" * 120 + f"-{number}" for number in (1, 2, 3)]


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
    assert lines[0] == {"id": "acme-1", "tenant": "acme", "role": "infer", "expires": None, "expired": False}


def test_the_list_marks_keys_that_have_expired(path):
    create(path, "--expires", "1d")
    create(path)
    document = json.loads(path.read_text())
    document["keys"][0]["expires"] = "2020-01-31T12:00:00+00:00"
    path.write_text(json.dumps(document))
    _, first, second = keys("list", path=path).stdout.splitlines()
    assert "2020-01-31T12:00:00+00:00 (expired)" in first
    assert "(expired)" not in second
    lines = [json.loads(line) for line in keys("list", "--json", path=path).stdout.splitlines()]
    assert [(line["expires"], line["expired"]) for line in lines] == [
        ("2020-01-31T12:00:00+00:00", True),
        (None, False),
    ]


def test_a_revoked_key_is_gone_and_the_others_stay(path):
    create(path)
    other = create(path).stdout.strip()
    assert keys("revoke", "acme-1", path=path).exit_code == 0
    assert [entry.id for entry in read_keys(path)] == ["acme-2"]
    assert KeyRing(path).find(other.encode()) is not None
    again = keys("revoke", "acme-1", path=path)
    assert again.exit_code == 1
    assert "acme-1" in again.stderr


def test_a_rotated_key_has_a_successor_and_opens_for_the_grace(path):
    old = create(path).stdout.strip()
    create(path, "--id", "laptop")
    rotated = keys("rotate", "acme-1", "--grace", "2h", path=path)
    assert rotated.exit_code == 0
    new = rotated.stdout.strip()
    assert new.startswith("xp_")
    assert new != old
    assert new not in path.read_text() + rotated.stderr
    first, _, third = read_keys(path)
    assert (third.id, third.tenant, third.role, third.expires) == ("acme-2", "acme", Role.INFER, None)
    assert first.expires_at == pytest.approx(time.time() + 7200, abs=60)
    assert first.expires in rotated.stderr
    later = time.time() + 7300
    assert KeyRing(path).find(old.encode()) == ("acme", {Role.INFER}, "acme-1")
    assert KeyRing(path, now=lambda: later).find(old.encode()) is None
    assert KeyRing(path, now=lambda: later).find(new.encode()) == ("acme", {Role.INFER}, "acme-2")


def test_the_grace_is_a_day_unless_it_is_said(path):
    create(path)
    keys("rotate", "acme-1", path=path)
    assert read_keys(path)[0].expires_at == pytest.approx(time.time() + 86400, abs=60)


def test_no_grace_revokes_the_old_key_at_once(path):
    old = create(path).stdout.strip()
    rotated = keys("rotate", "acme-1", "--grace", "0", "--expires", "90d", path=path)
    (entry,) = read_keys(path)
    assert entry.id == "acme-2"
    assert entry.expires_at == pytest.approx(time.time() + 90 * 86400, abs=60)
    assert "is revoked" in rotated.stderr
    assert KeyRing(path).find(old.encode()) is None
    assert KeyRing(path).find(rotated.stdout.strip().encode()) is not None


def test_a_grace_never_makes_a_key_live_longer(path):
    create(path, "--expires", "30m")
    expires = read_keys(path)[0].expires
    keys("rotate", "acme-1", "--grace", "7d", path=path)
    assert read_keys(path)[0].expires == expires


def test_a_key_with_a_live_successor_is_not_rotated_again(path):
    create(path)
    keys("rotate", "acme-1", path=path)
    before = path.read_text()
    expires = read_keys(path)[0].expires
    again = keys("rotate", "acme-1", path=path)
    assert again.exit_code == 1
    assert f"key 'acme-1' has the live successor 'acme-2' and expires at {expires} already" in again.stderr
    assert "xp_" not in again.output
    assert path.read_text() == before


def test_a_shorter_grace_is_taken_and_the_successor_is_said(path):
    create(path)
    assert "is live as well" not in keys("rotate", "acme-1", path=path).stderr
    again = keys("rotate", "acme-1", "--grace", "1h", path=path)
    assert again.exit_code == 0
    assert "Key acme-2, made after it for the same tenant and role, is live as well." in again.stderr
    assert read_keys(path)[0].expires_at == pytest.approx(time.time() + 3600, abs=60)


def test_a_key_whose_successor_is_gone_is_rotated_again(path):
    create(path)
    keys("rotate", "acme-1", path=path)
    keys("revoke", "acme-2", path=path)
    keys("create", "--tenant", "acme", "--role", "admin", path=path)
    create(path, "--id", "laptop")
    assert keys("rotate", "acme-1", path=path).exit_code == 0
    assert [entry.id for entry in read_keys(path)] == ["acme-1", "acme-2", "laptop", "acme-3"]


def test_an_operators_key_is_rotated_too(path):
    keys("create", "--role", "operator", "--id", "prometheus", path=path)
    assert keys("rotate", "prometheus", path=path).exit_code == 0
    assert [(entry.id, entry.tenant, entry.role) for entry in read_keys(path)] == [
        ("prometheus", None, Role.OPERATOR),
        ("prometheus-1", None, Role.OPERATOR),
    ]


@pytest.mark.parametrize("grace", ["soon", "-1h", "1y", "", "1.5h", "00"])
def test_a_grace_that_is_none_is_refused_and_nothing_is_changed(path, grace):
    create(path)
    before = path.read_text()
    refused = keys("rotate", "acme-1", f"--grace={grace}", path=path)
    assert refused.exit_code == 1
    assert f"grace = {grace!r}" in refused.stderr
    assert "xp_" not in refused.output
    assert path.read_text() == before


def test_a_key_that_is_not_there_cannot_be_rotated(path):
    create(path)
    refused = keys("rotate", "laptop", path=path)
    assert refused.exit_code == 1
    assert "'laptop'" in refused.stderr
    assert len(read_keys(path)) == 1


@pytest.mark.parametrize("command", [["list"], ["revoke", "x"], ["rotate", "x"]])
def test_a_file_that_is_not_there_is_named(path, command):
    refused = keys(*command, path=path)
    assert refused.exit_code == 1
    assert "keys.json" in refused.stderr


@pytest.mark.parametrize("command", [["create", "--role", "operator"], ["revoke", "x"], ["rotate", "x"]])
def test_a_file_that_cannot_be_written_is_named_with_the_reason(path, command):
    missing = path.parent / "no" / "keys.json"
    refused = keys(*command, path=missing)
    assert refused.exit_code == 1
    assert refused.stderr == f"xpeft: {missing} cannot be written: No such file or directory\n"


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
