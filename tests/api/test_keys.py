"""The file of keys and the ring that keeps up with it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import KeyEntry, KeysInvalid, locked, new_key, parse_keys, read_keys, write_keys
from xpeft_server.api.access.key_ring import KeyRing


def entry(secret: str, **changes) -> dict:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"id": secret, "tenant": "acme", "role": "infer", "sha256": digest, "expires": None, **changes}


def write(path, *entries):
    path.write_text(json.dumps({"keys": entries}))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_is_found_with_its_tenant_and_role(path):
    write(path, entry("one"), entry("two", tenant="other", role="admin"))
    ring = KeyRing(path)
    assert ring.required
    assert ring.find(b"one") == ("acme", {Role.INFER}, "one")
    assert ring.find(b"two") == ("other", {Role.ADMIN}, "two")
    for secret in (b"", b"three", b"one ", b"ONE", b"\xff"):
        assert ring.find(secret) is None


def test_an_operator_stands_for_no_tenant(path):
    write(path, entry("one", tenant=None, role="operator"), entry("two", tenant="acme", role="operator"))
    ring = KeyRing(path)
    assert ring.find(b"one") == ("", {Role.OPERATOR}, "one")
    assert ring.find(b"two") == ("", {Role.OPERATOR}, "two")


def test_an_expired_key_is_none(path):
    write(path, entry("one", expires="2030-01-01T00:00:00Z"))
    now = 1893455999.0
    ring = KeyRing(path, now=lambda: now)
    assert ring.find(b"one") is not None
    now = 1893456000.0
    assert ring.find(b"one") is None


def test_a_revoked_key_is_none_after_the_next_look(path):
    write(path, entry("one"), entry("two"))
    ring = KeyRing(path)
    write_keys(path, [each for each in read_keys(path) if each.id == "two"])
    ring.file.refresh()
    assert ring.find(b"one") is None
    assert ring.find(b"two") is not None


def test_a_broken_file_keeps_the_old_keys_and_is_logged_once(path, caplog):
    write(path, entry("one"))
    ring = KeyRing(path)
    path.write_text('{"keys": [')
    ring.file.refresh()
    ring.file.refresh()
    assert ring.find(b"one") is not None
    assert caplog.text.count("the keys stay as they were") == 1
    path.unlink()
    ring.file.refresh()
    assert ring.find(b"one") is not None
    write(path, entry("two"))
    ring.file.refresh()
    assert ring.find(b"one") is None
    assert ring.find(b"two") is not None


def test_a_key_that_was_revoked_while_the_file_could_not_be_read_is_none_once_it_can(path, monkeypatch):
    write(path, entry("one"))
    ring = KeyRing(path)
    write_keys(path, [])

    def no_file_is_free(_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(type(path), "read_bytes", no_file_is_free)
        ring.file.refresh()
    assert ring.find(b"one") is not None
    ring.file.refresh()
    assert ring.find(b"one") is None


def test_an_unchanged_file_is_not_read_again(path, monkeypatch):
    write(path, entry("one"))
    ring = KeyRing(path)
    monkeypatch.setattr(type(path), "read_bytes", lambda _: pytest.fail("read again"))
    ring.file.refresh()


BROKEN = {
    "not JSON": (b"{", "not JSON"),
    "nested": (b'{"keys": ' + b"[" * 100_000, "nested too deeply"),
    "a list": (b"[]", "not of the form"),
    "another field": (b'{"keys": [], "more": 1}', "not of the form"),
    "keys is an object": (b'{"keys": {}}', "not of the form"),
    "an entry is a text": (b'{"keys": ["x"]}', r"keys\[0\] is not an object"),
}
BROKEN_ENTRIES = {
    "unknown field": ({"rolle": "admin"}, "unknown field 'rolle'"),
    "unknown role": ({"role": "root"}, "role 'root' is none of infer, admin, operator"),
    "no tenant": ({"tenant": None}, "needs a tenant"),
    "tenant with a colon": ({"tenant": "a:b"}, "tenant 'a:b'"),
    "empty tenant": ({"tenant": ""}, "tenant ''"),
    "id is a number": ({"id": 1}, "id is not a text: 1"),
    "id with a space": ({"id": "a b"}, "id 'a b'"),
    "id that begins with a sign": ({"id": "-x"}, "id '-x' is not a name .a letter or digit, then up to 127 of"),
    "id that is too long": ({"id": "a" * 129}, "a' is not a name .a letter or digit, then up to 127 of"),
    "sha256 too short": ({"sha256": "ab"}, "sha256"),
    "sha256 in capitals": ({"sha256": "AB" * 32}, "sha256"),
    "expires is no time": ({"expires": "soon"}, "expires 'soon'"),
    "expires without a zone": ({"expires": "2030-01-01T00:00:00"}, "time zone"),
    "expires is a number": ({"expires": 1}, "expires is not a text: 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_the_reason(case):
    data, reason = BROKEN[case]
    with pytest.raises(KeysInvalid, match=reason):
        parse_keys(data)


@pytest.mark.parametrize("case", BROKEN_ENTRIES)
def test_a_broken_entry_is_refused_with_field_and_value(case):
    changes, reason = BROKEN_ENTRIES[case]
    with pytest.raises(KeysInvalid, match=reason):
        parse_keys(json.dumps({"keys": [entry("one", **changes)]}).encode())


@pytest.mark.parametrize("field", ["id", "role", "sha256"])
def test_a_missing_field_is_named(field):
    item = entry("one")
    del item[field]
    with pytest.raises(KeysInvalid, match=f"lacks '{field}'"):
        parse_keys(json.dumps({"keys": [item]}).encode())


def test_two_keys_of_one_id_or_secret_are_refused():
    with pytest.raises(KeysInvalid, match="2 keys have the id 'one'"):
        parse_keys(json.dumps({"keys": [entry("one"), entry("two", id="one")]}).encode())
    with pytest.raises(KeysInvalid, match="2 keys have the sha256"):
        parse_keys(json.dumps({"keys": [entry("one"), entry("one", id="two")]}).encode())


def test_a_file_that_is_not_there_is_refused_at_the_start(path):
    with pytest.raises(KeysInvalid, match=r"keys\.json: No such file"):
        KeyRing(path)


def test_a_written_file_is_read_back_and_is_private(path):
    _, key = new_key(id="one", tenant="acme", role=Role.ADMIN, expires="2030-01-01T00:00:00+00:00")
    operator = KeyEntry("ops", None, Role.OPERATOR, "0" * 64)
    write_keys(path, [key, operator])
    assert read_keys(path) == (key, operator)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    write(path, entry("one"))
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_keys(path, [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_replaced_file_keeps_its_mode(path):
    write(path, entry("one"))
    path.chmod(0o640)
    write_keys(path, [])
    assert (read_keys(path), path.stat().st_mode & 0o777) == ((), 0o640)


@contextmanager
def new_files_of_somebody_else(monkeypatch, give):
    """``give`` is called with file, user and group instead of os.fchown."""
    stat_of = os.fstat

    def of_somebody_else(handle):
        found = stat_of(handle)
        return SimpleNamespace(st_uid=found.st_uid + 1, st_gid=found.st_gid)

    with monkeypatch.context() as patched:
        patched.setattr("os.fstat", of_somebody_else)
        patched.setattr("os.fchown", give)
        yield


def test_a_replaced_file_stays_whose_it_is(path, monkeypatch):
    write(path, entry("one"))
    given = []
    with new_files_of_somebody_else(monkeypatch, lambda _, *whom: given.append(whom)):
        write_keys(path, [])
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    assert read_keys(path) == ()


def test_a_file_whose_owner_cannot_be_kept_is_left_alone(path, monkeypatch):
    write(path, entry("one"))
    before, owner = path.read_bytes(), path.stat().st_uid

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with (
        new_files_of_somebody_else(monkeypatch, refuse),
        pytest.raises(KeysInvalid, match=rf"keys\.json cannot be replaced: it belongs to user {owner} and group "),
    ):
        write_keys(path, [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_behind_a_link_the_file_that_it_leads_to_is_replaced(path, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(folder / "keys.json")
    for entries in ((), (KeyEntry("ops", None, Role.OPERATOR, "0" * 64),)):
        with locked(link):
            write_keys(link, entries)
        assert link.is_symlink()
        assert read_keys(folder / "keys.json") == entries
    assert sorted(tmp_path.rglob("*")) == [link, folder, folder / "keys.json"]


def test_a_link_and_the_file_that_it_leads_to_are_locked_together(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(folder / "keys.json")
    with locked(link):
        real = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(real, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(real)


def test_a_new_key_is_random_and_only_its_digest_is_kept():
    (one, first), (two, _) = (new_key(id="a", tenant="t", role=Role.INFER, expires=None) for _ in range(2))
    assert one != two
    assert one.startswith("xp_")
    assert len(one) == 46
    assert first.sha256 == hashlib.sha256(one.encode()).hexdigest()
