from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from xpeft_profiles import Profile, ProfileKey, open_store
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import (
    LimitsFile,
    LimitsInvalid,
    TenantLimits,
    choose_tenant_limits,
    parse_limits,
)


def test_a_tenant_s_fields_stand_in_place_of_the_default_s() -> None:
    table = parse_limits(
        json.dumps(
            {
                "default": {"requests_per_second": 10, "max_profiles": 100},
                "tenants": {"acme": {"weight": 4, "max_profiles": None}},
            }
        ).encode()
    )
    assert table.of("acme") == TenantLimits(weight=4, requests_per_second=10)
    assert table.of("anybody") == TenantLimits(requests_per_second=10, max_profiles=100)


def test_an_empty_file_gives_everybody_a_fair_share() -> None:
    assert parse_limits(b"{}").of("a") == TenantLimits(weight=1.0, queue_share=0.5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"default": ' * 100_000, "nested too deeply"),
        ("[]", "the file = []"),
        ('{"tenant": {}}', "tenant = {}"),
        ('{"default": {"weight": 0}}', "default.weight = 0 "),
        ('{"default": {"wieght": 2}}', "default.wieght = 2 "),
        ('{"default": {"requests_per_second": "10"}}', "default.requests_per_second = '10'"),
        ('{"default": {"requests_per_second": 0}}', "default.requests_per_second = 0"),
        ('{"default": {"requests_per_second": 1e-320}}', "default.requests_per_second = 1e-320"),
        ('{"default": {"tokens_per_second": 9e-6}}', "default.tokens_per_second = 9e-06"),
        ('{"default": {"max_profiles": 9223372036854775808}}', "default.max_profiles = 9223372036854775808"),
        ('{"default": {"tokens_per_second": NaN}}', "default.tokens_per_second = nan"),
        ('{"tenants": {"acme": {"queue_share": 1.5}}}', "tenants.acme.queue_share = 1.5"),
        ('{"tenants": {"acme": {"concurrent_requests": -1}}}', "tenants.acme.concurrent_requests = -1"),
        ('{"tenants": {"acme": {"max_profiles": 1.5}}}', "tenants.acme.max_profiles = 1.5"),
        ('{"tenants": {"acme": 3}}', "tenants.acme = 3"),
        ('{"tenants": {"a b": {}}}', "a b"),
    ],
)
def test_a_broken_file_is_refused_with_field_and_value(document: str, message: str) -> None:
    with pytest.raises(LimitsInvalid) as error:
        parse_limits(document.encode())
    assert message in str(error.value)


def test_the_most_profiles_that_may_be_told_are_taken_by_a_store(tmp_path: Path) -> None:
    limits = parse_limits(b'{"default": {"max_profiles": 9223372036854775807, "requests_per_second": 1e-5}}').of("a")
    mask = np.eye(2, 8, dtype=bool)
    profile = Profile(bank="sha256:" + "0" * 64, mask_a=mask, mask_b=mask)

    async def put() -> str:
        store = open_store(f"sqlite:///{tmp_path}/profiles.db")
        await store.open()
        outcome = await store.put(ProfileKey("a", "p"), profile, most=limits.max_profiles)
        await store.close()
        return outcome.status

    assert asyncio.run(put()) == "created"


def test_a_changed_file_counts_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits.json"
    path.write_text('{"default": {"max_profiles": 1}}')
    limits = LimitsFile(path)
    replace(path, '{"default": {"max_profiles": 22}}')
    limits.file.refresh()
    assert limits.of("a").max_profiles == 22
    replace(path, '{"default": {"max_profiles": -1}}')
    for _ in range(3):
        limits.file.refresh()
    assert limits.of("a").max_profiles == 22
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "default.max_profiles = -1" in record.getMessage()
    path.unlink()
    limits.file.refresh()
    assert limits.of("a").max_profiles == 22


def test_a_file_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(LimitsInvalid, match=r"limits\.json: No such file"):
        LimitsFile(tmp_path / "limits.json")


def test_without_keys_there_is_one_tenant_and_the_whole_queue_is_its_own(tmp_path: Path) -> None:
    assert choose_tenant_limits(Settings()).of("default").queue_share == 1.0
    assert choose_tenant_limits(Settings(api_keys=tmp_path / "keys.json")).of("acme").queue_share == 0.5
    (tmp_path / "limits.json").write_text('{"tenants": {"default": {"weight": 2}}}')
    assert choose_tenant_limits(Settings(tenant_limits=tmp_path / "limits.json")).of("default").weight == 2.0


def replace(path: Path, text: str) -> None:
    """As an editor saves: another file takes the name."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_a_misspelt_limit_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(LimitsInvalid) as refused:
        parse_limits(b'{"tenants": {"acme": {"requests_per_sec": 4}}}')
    assert str(refused.value) == (
        "tenants.acme.requests_per_sec = 4 cannot be used: there is no such field; there are weight,"
        " requests_per_second, tokens_per_second, concurrent_requests, queue_share, max_profiles"
    )
    with pytest.raises(LimitsInvalid, match="there is no such field; there are default, tenants"):
        parse_limits(b'{"acme": {}}')
