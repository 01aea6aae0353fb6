"""Very many random profiles for one bank, put into a store without a server."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import numpy as np

from xpeft_profiles import BankGeometry, KeyedRecord, Profile, ProfileKey, ProfileStore, encode_record, open_store

_AT_ONCE: Final = 4096
_CHECKSUM_BYTES: Final = 4


def registered_key(index: int, *, tenants: int) -> ProfileKey:
    """Profiles are dealt to the tenants in turn."""
    return ProfileKey(f"bench-tenant-{index % tenants}", f"bench-{index:08d}")


async def register(
    url: str, geometry: BankGeometry, *, head: str, profiles: int, tenants: int, seed: int, tell: Callable[[int], None]
) -> None:
    """Put hard profiles over half of the bank, with one of its heads, into a store. ``tell``: how many are there.

    Raises: ProfileStoreError.
    """
    store = open_store(url)
    await store.open()
    try:
        await register_in(store, geometry, head=head, profiles=profiles, tenants=tenants, seed=seed, tell=tell)
    finally:
        await store.close()


async def register_in(
    store: ProfileStore,
    geometry: BankGeometry,
    *,
    head: str,
    profiles: int,
    tenants: int,
    seed: int,
    tell: Callable[[int], None],
) -> None:
    """As `register`, in a store that is open."""
    done = 0
    for some in _batched(_records(geometry, head=head, profiles=profiles, tenants=tenants, seed=seed)):
        await store.put_many(some)
        done += len(some)
        tell(done)


def _records(geometry: BankGeometry, *, head: str, profiles: int, tenants: int, seed: int) -> Iterator[KeyedRecord]:
    """One encoded profile with the masks of each in their place: what follows the masks is the checksum alone."""
    chosen = np.arange(geometry.adapters) < max(1, geometry.adapters // 2)
    mask = np.tile(chosen, (geometry.blocks, 1))
    example = encode_record(Profile(bank=geometry.fingerprint, mask_a=mask, mask_b=mask, shared_head=head))
    mask_bytes = 2 * geometry.blocks * -(-geometry.adapters // 8)
    start = example[: len(example) - mask_bytes - _CHECKSUM_BYTES]
    rng = np.random.default_rng(seed)
    for first in range(0, profiles, _AT_ONCE):
        count = min(_AT_ONCE, profiles - first)
        masks = rng.permuted(np.tile(chosen, (count, 2 * geometry.blocks, 1)), axis=2)
        packed = np.packbits(masks, axis=2, bitorder="little").reshape(count, -1)
        for index, bits in enumerate(packed, first):
            body = start + bits.tobytes()
            record = body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")
            version = "sha256:" + hashlib.sha256(record).hexdigest()
            yield KeyedRecord(registered_key(index, tenants=tenants), version, record)


def _batched(records: Iterator[KeyedRecord]) -> Iterator[list[KeyedRecord]]:
    while some := list(islice(records, _AT_ONCE)):
        yield some
