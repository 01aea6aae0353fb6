"""Portions of a source, and their way into a store."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import (
    MemoryStore,
    ProfileKey,
    ProfileStore,
    SourceInvalid,
    StoreUnavailable,
    encode_record,
    write_profile_file,
)
from xpeft_profiles.transfer import (
    Batch,
    BatchReader,
    Entry,
    FolderTarget,
    Refusal,
    StoreTarget,
    Totals,
    export_profiles,
    format_of,
    import_profiles,
    open_source,
    open_target,
)
from xpeft_profiles.transfer import batches as batches_module

MakeProfile = Callable[..., Any]


class Scripted:
    """A source of what a test gives it."""

    bytes_total = None
    bytes_read = 7

    def __init__(self, *found: Entry | Refusal, then: Exception | None = None) -> None:
        self._found = found
        self._then = then

    def entries(self) -> Iterator[Entry | Refusal]:
        yield from self._found
        if self._then is not None:
            raise self._then

    def close(self) -> None:
        pass


@pytest.fixture
def entry(make_profile: MakeProfile) -> Callable[..., Entry]:
    def build(name: str, seed: int = 0, *, tenant: str | None = None, **options: Any) -> Entry:
        return Entry(f"line {name}", tenant, name, write_profile_file(make_profile(seed, **options)))

    return build


def every(reader: BatchReader) -> list[Batch]:
    found = []
    while (batch := reader.read()) is not None:
        found.append(batch)
    return found


async def run(
    source: Any, store: ProfileStore, *, tenant: str | None = "acme", entries: int = 3, **options: Any
) -> tuple[Totals, list[Refusal]]:
    totals, refused = Totals(), list[Refusal]()
    reader = BatchReader(source, tenant=tenant, max_bytes=10_000, entries=entries)
    await import_profiles(reader, StoreTarget(store, **options), totals, on_batch=refused.extend)
    return totals, refused


def test_a_batch_ends_with_so_many_entries_or_bytes(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(f"p{n}", n) for n in range(7)]
    found = every(BatchReader(Scripted(*entries), tenant="acme", max_bytes=10_000, entries=3))
    assert [len(batch.records) for batch in found] == [3, 3, 1]
    monkeypatch.setattr(batches_module, "FILE_BYTES", 2 * len(entries[0].file))
    found = every(BatchReader(Scripted(*entries), tenant="acme", max_bytes=10_000))
    assert [len(batch.records) for batch in found] == [2, 2, 2, 1]
    assert [file for batch in found for file in batch.files] == [each.file for each in entries]


def test_records_are_those_of_the_files(entry: Any, make_profile: MakeProfile) -> None:
    (batch,) = every(BatchReader(Scripted(*(entry(f"p{n}", n) for n in range(5))), tenant="acme", max_bytes=10_000))
    for n, (key, version, record) in enumerate(batch.records):
        assert key == ProfileKey("acme", f"p{n}")
        assert (version, record) == (make_profile(n).version, encode_record(make_profile(n)))
    assert (batch.wheres[2], batch.position) == ("line p2", 7)


@pytest.mark.parametrize(
    ("tenant", "named", "error"),
    [
        (None, None, "tenant: the entry names none: give --tenant for those that do not"),
        ("acme", "other", "tenant: the entry is of 'other', 'acme' was asked for"),
        (None, "../x", "tenant: '../x' is not a name"),
    ],
)
def test_an_entry_without_its_tenant_is_refused(entry: Any, tenant: str | None, named: str | None, error: str) -> None:
    (batch,) = every(BatchReader(Scripted(*[entry("p", tenant=named)] * 2), tenant=tenant, max_bytes=10_000))
    assert batch.records == []
    assert [each.where for each in batch.refusals] == ["line p"] * 2
    assert all(error in each.error for each in batch.refusals)


def test_the_tenant_is_the_entrys_or_the_one_that_was_given(entry: Any) -> None:
    entries = [entry("p", tenant="acme"), entry("q"), entry("p", tenant="acme"), entry("p")]
    (batch,) = every(BatchReader(Scripted(*entries), tenant="acme", max_bytes=10_000))
    assert [each.key for each in batch.records] == [ProfileKey("acme", "p"), ProfileKey("acme", "q")]
    (batch,) = every(BatchReader(Scripted(entry("p", tenant="b"), entry("p", tenant="a")), tenant=None, max_bytes=9999))
    assert [each.key.tenant for each in batch.records] == ["b", "a"]


def test_where_others_know_the_tenant_an_entry_must_not_name_one(entry: Any) -> None:
    reader = BatchReader(
        Scripted(entry("p"), entry("q", tenant="acme")), tenant=None, of_tenants=False, max_bytes=10_000
    )
    (batch,) = every(reader)
    assert [each.key for each in batch.records] == [ProfileKey("", "p")]
    assert "names 'acme', but the key says whose" in batch.refusals[0].error


def test_a_name_that_comes_again_is_refused_even_in_a_later_batch(entry: Any) -> None:
    entries = [entry("p", 1), entry("q", 2), entry("p", 3), entry("p", 1)]
    found = every(BatchReader(Scripted(*entries), tenant="acme", max_bytes=10_000, entries=2))
    assert [len(batch.records) for batch in found] == [2, 0]
    assert [each.error for each in found[1].refusals] == [
        "name: 'p' stands in the source before, only the first is taken"
    ] * 2


async def test_refused_entries_stop_no_others(entry: Any, make_profile: MakeProfile) -> None:
    store = MemoryStore()
    await store.put(ProfileKey("acme", "same"), make_profile(1))
    await store.put(ProfileKey("acme", "old"), make_profile(2))
    bad = Entry("line bad", None, "bad", b"no file")
    large = entry("large", labels=("a", "b"), hidden=4000)
    source = Scripted(
        entry("new", 3), bad, Refusal("line 9", None, "broken"), entry("same", 1), large, entry("old", 4), entry("a/b")
    )
    totals, refused = await run(source, store)
    assert totals == Totals(created=1, replaced=1, identical=1, refused=4, position=7)
    assert totals.done == 7
    assert {each.where for each in refused} == {"line bad", "line 9", "line large", "line a/b"}
    assert "too few" in refused[0].error or "is not a safetensors file" in " ".join(each.error for each in refused)
    assert any("at most 10000 are allowed" in each.error for each in refused)


@pytest.mark.parametrize("replace", [True, False])
async def test_a_dry_run_says_what_would_be_and_writes_nothing(
    store: ProfileStore, entry: Any, make_profile: MakeProfile, replace: bool
) -> None:
    await store.put(ProfileKey("acme", "same"), make_profile(1))
    await store.put(ProfileKey("acme", "old"), make_profile(2))
    entries = [entry("new", 3), entry("same", 1), entry("old", 4), entry("bad name", 5)]
    before, _ = await run(Scripted(*entries), store, replace=replace, dry_run=True)
    assert await store.versions([ProfileKey("acme", name) for name in ("new", "old")]) == [
        None,
        make_profile(2).version,
    ]
    after, _ = await run(Scripted(*entries), store, replace=replace)
    assert before == after
    assert (after.replaced, after.kept) == ((1, 0) if replace else (0, 1))
    expected = make_profile(4 if replace else 2).version
    assert await store.versions([ProfileKey("acme", "old")]) == [expected]


async def test_a_damaged_record_is_written_again_and_a_dry_run_says_so(
    store: ProfileStore, entry: Any, make_profile: MakeProfile, damage: Callable[[ProfileKey], None]
) -> None:
    key = ProfileKey("acme", "p")
    await store.put(key, make_profile(1))
    await store.put(ProfileKey("acme", "q"), make_profile(2))
    damage(key)
    entries = [entry("p", 1), entry("q", 2)]
    kept, _ = await run(Scripted(*entries), store, replace=False, dry_run=True)
    assert (kept.kept, kept.identical) == (1, 1)
    assert (await run(Scripted(*entries), store, replace=False))[0] == kept
    healed, _ = await run(Scripted(*entries), store, dry_run=True)
    assert (healed.replaced, healed.identical) == (1, 1)
    assert (await run(Scripted(*entries), store))[0] == healed
    stored = await store.get(key)
    assert stored is not None
    assert stored.decode().version == make_profile(1).version


async def test_the_next_batch_is_read_while_one_is_put(entry: Any) -> None:
    """The first put ends only after the second entry was read."""
    second_read = threading.Event()
    waited: list[bool] = []

    class Watched(Scripted):
        def entries(self) -> Iterator[Entry | Refusal]:
            yield entry("p0", 0)
            second_read.set()
            yield entry("p1", 1)

    class Slow:
        async def put(self, batch: Batch) -> list[Any]:
            waited.append(await asyncio.to_thread(second_read.wait, 30))
            return ["created"] * len(batch.records)

    totals = Totals()
    reader = BatchReader(Watched(), tenant="acme", max_bytes=10_000, entries=1)
    await import_profiles(reader, Slow(), totals, on_batch=lambda _: None)
    assert waited == [True, True]
    assert totals.created == 2


async def test_a_source_that_breaks_leaves_what_was_read_before(entry: Any) -> None:
    store = MemoryStore()
    totals = Totals()
    broken = SourceInvalid("cut off")
    source = Scripted(*(entry(f"p{n}", n) for n in range(5)), then=broken)
    reader = BatchReader(source, tenant="acme", max_bytes=10_000, entries=2)
    with pytest.raises(SourceInvalid, match="cut off"):
        await import_profiles(reader, StoreTarget(store), totals, on_batch=lambda _: None)
    assert totals.created == 5
    assert len((await store.list("acme", limit=10)).profiles) == 5


async def test_a_store_that_fails_ends_the_import_and_nothing_more_is_counted(entry: Any) -> None:
    class Failing(StoreTarget):
        calls = 0

        async def put(self, batch: Batch) -> Any:
            self.calls += 1
            if self.calls == 2:
                raise StoreUnavailable("gone")
            return await super().put(batch)

    totals = Totals()
    target = Failing(MemoryStore())
    reader = BatchReader(Scripted(*(entry(f"p{n}", n) for n in range(9))), tenant="acme", max_bytes=10_000, entries=2)
    with pytest.raises(StoreUnavailable, match="gone"):
        await import_profiles(reader, target, totals, on_batch=lambda _: None)
    assert (totals.created, target.calls) == (2, 2)


@pytest.mark.parametrize("name", ["out", "out.tar", "out.tgz", "out.tar.gz", "out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("tenant", [None, "acme"])
async def test_what_is_exported_can_be_imported_as_the_same_versions(
    store: ProfileStore,
    make_profile: MakeProfile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tenant: str | None,
) -> None:
    monkeypatch.setattr("xpeft_profiles.transfer.export.PAGE", 3)
    kinds: list[dict[str, Any]] = [
        {},
        {"soft": True},
        {"layer_norm": True},
        {"labels": ("a", "ü")},
        {"description": "d"},
    ]
    keys = [ProfileKey(owner, f"p.{n}") for owner in ("acme", "z" * 128) for n in range(5)]
    keys.append(ProfileKey("acme", "n" * 128))
    for seed, key in enumerate(keys):
        await store.put(key, make_profile(seed, **kinds[seed % 5]))
    versions = await store.versions(keys)
    pages: list[int] = []
    path = tmp_path / name
    form = format_of(path)
    if name == "out":
        path.mkdir()
        written = await export_profiles(store, FolderTarget(path), tenant=tenant, on_page=lambda n, _: pages.append(n))
    else:
        with path.open("wb") as file, open_target(file, form) as target:
            written = await export_profiles(store, target, tenant=tenant, on_page=lambda n, _: pages.append(n))
    expected = [key for key in keys if tenant in (None, key.tenant)]
    assert written == len(expected) == pages[-1]
    assert len(pages) >= 2
    with closing(open_source(path, max_bytes=10_000)) as source:
        again, _ = await run(source, store, tenant=tenant, entries=100)
    assert (again.identical, again.done) == (len(expected), len(expected))
    other = MemoryStore()
    with closing(open_source(path, max_bytes=10_000)) as source:
        fresh, _ = await run(source, other, tenant=tenant)
    assert (fresh.created, fresh.done) == (len(expected), len(expected))
    assert await other.versions(expected) == [
        version for key, version in zip(keys, versions, strict=True) if key in expected
    ]


async def test_a_damaged_record_is_left_out_and_named(
    store: ProfileStore, make_profile: MakeProfile, damage: Callable[[ProfileKey], None], tmp_path: Path
) -> None:
    for n in range(3):
        await store.put(ProfileKey("acme", f"p{n}"), make_profile(n))
    damage(ProfileKey("acme", "p1"))
    refused: list[Refusal] = []
    with (tmp_path / "out.jsonl").open("wb") as file, open_target(file, format_of(Path("out.jsonl"))) as target:
        written = await export_profiles(store, target, tenant=None, on_page=lambda _, some: refused.extend(some))
    assert written == 2
    assert [(each.where, "CRC-32" in each.error) for each in refused] == [("acme/p1", True)]


async def test_json_lines_are_what_the_help_says(make_profile: MakeProfile, tmp_path: Path) -> None:
    store = MemoryStore()
    await store.put(ProfileKey("acme", "p"), make_profile())
    path = tmp_path / "out.jsonl"
    with path.open("wb") as file, open_target(file, format_of(path)) as target:
        await export_profiles(store, target, tenant=None, on_page=lambda *_: None)
    text = b64encode(write_profile_file(make_profile())).decode()
    assert json.loads(path.read_text()) == {"tenant": "acme", "name": "p", "file": text}
