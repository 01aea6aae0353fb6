"""What stands in Redis is not what it should be, or does not fit in: one profile is concerned, not its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@pytest.fixture
def neighbour(redis_pair: Any) -> Iterator[None]:
    """A profile that is answered before and after as if nothing had happened, by a server that stays ready."""
    body, version = redis_pair.profile(1)
    redis_pair.near.put("neighbour", body)

    def check() -> None:
        for server in (redis_pair.near, redis_pair.far):
            answer = server.classify("neighbour")
            assert answer.json()["profile_version"] == version
            assert "x-profile-unverified" not in answer.headers
            assert server.client.get("/v1/profiles/neighbour").json()["version"] == version
            assert server.client.get("/ready").status_code == 200

    check()
    yield
    check()


@contextmanager
def replaced(commands: Any, key: str) -> Iterator[None]:
    """A list where a string or a sorted set belongs."""
    kept = commands.dump(key)
    commands.delete(key)
    commands.rpush(key, "not ours")
    try:
        yield
    finally:
        commands.delete(key)
        if kept is not None:
            commands.restore(key, 0, kept)


@pytest.mark.usefixtures("neighbour")
def test_a_full_redis_refuses_uploads_whole_and_goes_on_reading_and_deleting(
    redis_pair: Any, assert_unavailable: Any
) -> None:
    near, far = redis_pair.near, redis_pair.far
    (old, old_version), (new, new_version) = redis_pair.profile(1), redis_pair.profile(2)
    for name in ("kept", "dropped"):
        near.put(name, old)
    failed = near.metric('profile_uploads_total{outcome="failed"}')
    with redis_pair.commands() as commands:
        commands.config_set("maxmemory", "1")
        try:
            for name in ("kept", "new"):
                refused = near.put(name, new)
                assert_unavailable(refused, "store_unavailable")
                assert "used memory > 'maxmemory'" in refused.json()["error"]["message"]
            assert near.metric('profile_uploads_total{outcome="failed"}') == failed + 2
            assert commands.keys("xpeft:{default}:*:new") == []
            for server in (near, far):
                assert server.classify("kept").json()["profile_version"] == old_version
                assert server.classify("new").status_code == 404
                assert server.client.get("/ready").status_code == 200
            assert near.client.delete("/v1/profiles/dropped").status_code == 204
            assert far.classify("dropped").status_code == 404
            found = far.versions()
            assert found["kept"] == old_version
            assert not {"new", "dropped"} & set(found)
        finally:
            commands.config_set("maxmemory", "0")
    assert near.put("new", new).status_code == 201
    assert far.classify("new").json()["profile_version"] == new_version


@pytest.mark.usefixtures("neighbour")
def test_a_value_of_another_type_at_a_profiles_key_fails_that_profile_alone(
    redis_pair: Any, assert_unavailable: Any
) -> None:
    near, far = redis_pair.near, redis_pair.far
    body, version = redis_pair.profile(3)
    near.put("typed", body)
    with redis_pair.commands() as commands, replaced(commands, "xpeft:{default}:profile:typed"):
        for answer in (near.classify("typed"), far.client.get("/v1/profiles/typed")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_profile")
            assert "'typed'" in answer.json()["error"]["message"]
        assert "typed" in near.versions()
        refused = near.put("typed", body)
        assert_unavailable(refused, "store_unavailable")
        assert "WRONGTYPE" in refused.json()["error"]["message"]
        assert near.client.delete("/v1/profiles/typed").status_code == 204
        assert near.classify("typed").status_code == 404
        assert near.put("typed", body).status_code == 201
        assert far.classify("typed").json()["profile_version"] == version


@pytest.mark.usefixtures("neighbour")
def test_a_value_of_another_type_at_a_versions_key_costs_a_read_and_no_answer(
    redis_pair: Any, assert_unavailable: Any
) -> None:
    near = redis_pair.near
    body, version = redis_pair.profile(4)
    near.put("typed", body)
    near.classify("typed")
    with redis_pair.commands() as commands, replaced(commands, "xpeft:{default}:version:typed"):
        for _ in range(4):
            assert near.classify("typed").json()["profile_version"] == version
        assert_unavailable(near.put("typed", body), "store_unavailable")
        assert_unavailable(near.client.delete("/v1/profiles/typed"), "store_unavailable")
    assert near.client.delete("/v1/profiles/typed").status_code == 204


@pytest.mark.usefixtures("neighbour")
def test_a_value_of_another_type_at_the_names_refuses_lists_and_writes_and_answers_go_on(
    redis_pair: Any, assert_unavailable: Any
) -> None:
    near = redis_pair.near
    body, version = redis_pair.profile(5)
    near.put("typed", body)
    with redis_pair.commands() as commands, replaced(commands, "xpeft:{default}:names"):
        for refused in (
            near.client.get("/v1/profiles"),
            near.put("typed", body),
            near.client.delete("/v1/profiles/typed"),
        ):
            assert_unavailable(refused, "store_unavailable")
            assert "WRONGTYPE" in refused.json()["error"]["message"]
        assert near.classify("typed").json()["profile_version"] == version
        assert near.client.get("/ready").status_code == 200
    assert near.versions()["typed"] == version


@pytest.mark.usefixtures("neighbour")
def test_profiles_whose_names_are_gone_are_answered_and_all_listed_again_once_one_is_uploaded(redis_pair: Any) -> None:
    near, far = redis_pair.near, redis_pair.far
    body, version = redis_pair.profile(8)
    near.put("unlisted", body)
    before = near.versions()
    with redis_pair.commands() as commands:
        kept = commands.dump("xpeft:{default}:names")
        commands.delete("xpeft:{default}:names")
        try:
            assert far.versions() == {}
            assert far.classify("unlisted").json()["profile_version"] == version
            assert far.put("unlisted", body).status_code == 200
            assert near.versions() == before
        finally:
            commands.restore("xpeft:{default}:names", 0, kept, replace=True)


@pytest.mark.usefixtures("neighbour")
def test_a_flipped_bit_in_redis_is_500_for_that_profile_alone_counted_logged_once_and_healed_by_an_upload(
    redis_pair: Any,
) -> None:
    near, far = redis_pair.near, redis_pair.far
    body, version = redis_pair.profile(6)
    near.put("flipped", body)
    counted = far.metric("profile_damaged_total")
    with redis_pair.commands() as commands:
        value = commands.get("xpeft:{default}:profile:flipped")
        commands.set("xpeft:{default}:profile:flipped", value[:-30] + bytes([value[-30] ^ 1]) + value[-29:])
    redis_pair.new_log()
    for answer in (
        far.classify("flipped"),
        far.classify("flipped"),
        far.client.get("/v1/profiles/flipped"),
        far.client.get("/v1/profiles/flipped", headers={"accept": "application/octet-stream"}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_profile")
        assert "'flipped'" in answer.json()["error"]["message"]
    assert far.metric("profile_damaged_total") == counted + 4
    (line,) = [line for line in redis_pair.new_log().splitlines() if '"level": "error"' in line]
    assert f"profile 'flipped' of tenant 'default', version '{version}', is damaged" in line
    assert far.versions()["flipped"] == version
    assert near.put("flipped", body).status_code == 200
    assert far.classify("flipped").json()["profile_version"] == version
