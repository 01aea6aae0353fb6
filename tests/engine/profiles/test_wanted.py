from __future__ import annotations

import pytest

from xpeft_profiles import ProfileKey
from xpeft_server.engine.profiles.wanted import WantedProfiles


@pytest.fixture
def wanted() -> WantedProfiles[str]:
    return WantedProfiles()


def key(text: str) -> ProfileKey:
    return ProfileKey(text[0], text)


def taken(wanted: WantedProfiles[str], most: int) -> list[str]:
    return [each.name for each in wanted.take(most)]


async def test_tenants_have_their_turns_however_many_one_of_them_wants(wanted: WantedProfiles[str]) -> None:
    for name in ("a1", "a2", "a3", "a4", "a5", "b1", "c1", "c2"):
        wanted.want(key(name))
    assert taken(wanted, 4) == ["a1", "b1", "c1", "a2"]
    wanted.want(key("d1"))
    assert taken(wanted, 3) == ["c2", "a3", "d1"]
    assert taken(wanted, 3) == ["a4", "a5"]
    assert taken(wanted, 3) == []


async def test_who_wants_the_same_shares_it(wanted: WantedProfiles[str]) -> None:
    futures = [wanted.want(key("a1")) for _ in range(3)]
    assert wanted.take(9) == {key("a1"): futures}
    late = wanted.want(key("a1"))
    assert wanted.take(9) == {key("a1"): [late]}


async def test_what_nobody_wants_any_more_takes_no_room(wanted: WantedProfiles[str]) -> None:
    futures = {name: wanted.want(key(name)) for name in ("a1", "b1", "a2", "b2")}
    for name in ("a1", "b1"):
        futures[name].cancel()
    again = wanted.want(key("b1"))
    assert taken(wanted, 2) == ["b1", "a2"]
    assert not again.done()
    wanted.want(key("c1")).cancel()
    assert taken(wanted, 2) == ["b2"]
    assert taken(wanted, 2) == []
