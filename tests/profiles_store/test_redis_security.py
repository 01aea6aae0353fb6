"""Redis over TLS and with users: a right and a wrong one of each, against a real redis-server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import trustme

from xpeft_profiles import JobKey, ProfileKey, StoreUnavailable, StoreUrlInvalid, open_store

KEY = ProfileKey("acme", "support")
PASSWORD = "s3cret-of-xpeft"
MakeProfile = Callable[..., Any]


class SecureRedis(NamedTuple):
    """A Redis that speaks only TLS, wants a client's certificate, and has the user ``xpeft``."""

    port: int
    folder: Path

    def url(self, **files: str) -> str:
        return self.url_of("xpeft", PASSWORD, **files)

    def url_of(self, user: str, password: str, **files: str) -> str:
        named = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key", **files}
        options = "&".join(f"{name}={self.folder / file}" for name, file in named.items() if file)
        patience = "socket_timeout=20&socket_connect_timeout=20"  # nobody gives it up because the machine is busy
        return f"rediss://{user}:{password}@127.0.0.1:{self.port}/0?{patience}&{options}"


@pytest.fixture(scope="module")
def secure_redis(
    tmp_path_factory: pytest.TempPathFactory, acl_rule: list[str], free_port: Callable[[], int]
) -> Iterator[SecureRedis]:
    folder = tmp_path_factory.mktemp("secure-redis")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger-ca.pem")
    for name, issuer in (("server", authority), ("client", authority), ("stranger", stranger)):
        issued = issuer.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    port = free_port()
    program = shutil.which("redis-server")
    assert program is not None
    options = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    options += ["--tls-cert-file", str(folder / "server.pem"), "--tls-key-file", str(folder / "server.key")]
    options += ["--tls-ca-cert-file", str(folder / "ca.pem"), "--tls-auth-clients", "yes"]
    process = subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ready to accept connections" in line:
            break
    else:
        pytest.fail("redis-server did not start:\n" + "".join(said))
    found = SecureRedis(port, folder)
    with redis.Redis.from_url(found.url_of("", "").replace(":@", "")) as client:
        client.execute_command(*(word.replace("PASSWORD", PASSWORD) for word in acl_rule))
        client.execute_command("ACL", "SETUSER", "idle", "reset", "on", f">{PASSWORD}", "+ping")
        client.execute_command("ACL", "SETUSER", "reader", "reset", "on", f">{PASSWORD}", "~xpeft:*", "+@read", "+ping")
    yield found
    process.kill()
    process.communicate()


async def test_a_store_over_tls_with_a_user_keeps_profiles(
    secure_redis: SecureRedis, make_profile: MakeProfile
) -> None:
    store = open_store(secure_redis.url())
    await store.open()
    outcome = await store.put(KEY, make_profile())
    assert await store.versions([KEY]) == [outcome.version]
    assert [line.name for line in (await store.list("acme", limit=10)).profiles] == ["support"]
    assert await store.jobs.get(JobKey("acme", "job_0")) is None
    assert await store.delete(KEY)
    await store.close()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"ssl_ca_certs": "stranger-ca.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_ca_certs": ""}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_certfile": "", "ssl_keyfile": ""}, "failed"),
        ({"ssl_certfile": "stranger.pem", "ssl_keyfile": "stranger.key"}, "failed"),
        ({"ssl_ca_certs": "nowhere.pem"}, "failed"),
    ],
)
async def test_the_wrong_certificate_on_either_side_is_unavailable(
    secure_redis: SecureRedis, files: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    await _is_unavailable(secure_redis.url(**files), reason, caplog)


async def test_plain_redis_to_a_port_of_tls_is_unavailable(
    secure_redis: SecureRedis, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://xpeft:{PASSWORD}@127.0.0.1:{secure_redis.port}/0?socket_timeout=2"
    await _is_unavailable(url, f"redis at 127.0.0.1:{secure_redis.port} failed", caplog)


@pytest.mark.parametrize("user", ["xpeft", "nobody"])
async def test_a_wrong_password_is_unavailable_and_stays_secret(
    secure_redis: SecureRedis, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    await _is_unavailable(secure_redis.url_of(user, "wr0ng-s3cret"), "invalid username-password pair", caplog)


async def _is_unavailable(url: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    before = _sockets()
    store = open_store(url)
    with pytest.raises(StoreUnavailable, match=reason) as refused:
        await store.open()
    await store.close()
    # asyncio ends a connection that broke in its handshake some turns of the loop later.
    async with asyncio.timeout(10):
        while _sockets() - before:
            await asyncio.sleep(0.01)
    logging.getLogger("test").error("as it would be logged", exc_info=refused.value)
    for shown in (str(refused.value), repr(refused.value), caplog.text):
        assert "s3cret" not in shown
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


def _sockets() -> set[str]:
    """Those that this process has open."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.parametrize("user", ["idle", "reader"])
async def test_a_user_without_the_rights_is_unavailable_for_what_it_may_not(
    secure_redis: SecureRedis, make_profile: MakeProfile, user: str
) -> None:
    store = open_store(secure_redis.url_of(user, PASSWORD))
    for call in (lambda: store.put(KEY, make_profile()), lambda: store.delete(KEY)):
        with pytest.raises(StoreUnavailable, match="permission") as refused:
            await call()
        assert PASSWORD not in str(refused.value)
    if user == "reader":
        assert await store.get(KEY) is None
        await store.ping()
    else:
        with pytest.raises(StoreUnavailable, match="permission"):
            await store.ping()
    await store.close()


@pytest.mark.parametrize(
    "command",
    [
        ["GET", "other:key"],
        ["SET", "xpeftx", "1"],
        ["EVAL", "return 1", "0"],
        ["KEYS", "*"],
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["ACL", "LIST"],
        ["SUBSCRIBE", "x"],
        ["MONITOR"],
        ["SHUTDOWN"],
    ],
)
def test_the_rights_in_the_readme_open_nothing_else(secure_redis: SecureRedis, command: list[str]) -> None:
    with redis.Redis.from_url(secure_redis.url()) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


@pytest.mark.parametrize(
    "url",
    [
        f"rediss://u:{PASSWORD}@h/x",
        f"rediss://u:{PASSWORD}@h:port/0",
        f"rediss://u:{PASSWORD}@h/0?ssl_nonsense=1",
        f"rediss://u:{PASSWORD}@h/0?ssl_cert_reqs=perhaps",
        f"redis://u:{PASSWORD}@h/0?ssl_ca_certs=ca.pem",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreUrlInvalid) as refused:
        open_store(url)
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))
