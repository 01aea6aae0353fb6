"""Keys and values of prompts, from which later prompts that begin alike take theirs."""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np

from xpeft_server.model.device_memory import is_out_of_memory
from xpeft_server.model.kv.arena import ArenaRow
from xpeft_server.model.kv.cache import KvRow, KvStore

from .sequence import Sequence

logger = logging.getLogger(__name__)

BLOCK: Final = 64
"""Prefixes are reused in multiples of so many tokens; none shorter is."""


class Prefix:
    """The first tokens of a prompt, whose keys and values are in the store.

    Args:
        digests: of its first block, of its first two, and so on.
        sequence: has them in its row while it runs.

    Attributes:
        shelved: the row that has them afterwards.
    """

    __slots__ = ("digests", "sequence", "shelved")

    def __init__(self, digests: list[bytes], sequence: Sequence) -> None:
        self.digests = digests
        self.sequence: Sequence | None = sequence
        self.shelved: KvRow | ArenaRow | None = None

    @property
    def row(self) -> KvRow | ArenaRow | None:
        """None if the keys and values are gone."""
        return self.shelved if self.sequence is None else self.sequence.row


class FoundPrefix(NamedTuple):
    """The first ``tokens`` tokens of a prefix are those of a prompt."""

    prefix: Prefix
    tokens: int


class PrefixCache:
    """Finds the longest prefix of a prompt among those of the same tenant and profile version. The device thread's.

    Prefixes of running sequences can be found too. Those of sequences that ended stay in the store as long as nobody
    needs their room; the one used longest ago goes first. Only prompts are kept, not answers: tokens that were decoded
    have other last bits than a prefill would give them.

    A prefix is found by a keyed digest of tenant, version and tokens. The key is drawn at the start.

    Args: enabled: otherwise nothing is found or kept.

    Attributes:
        tokens: room in the store that kept prefixes take.
    """

    def __init__(self, store: KvStore[KvRow | ArenaRow], *, enabled: bool) -> None:
        self._store = store
        self._enabled = enabled
        self._key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)
        self._by_digest: dict[bytes, Prefix] = {}
        self._running: dict[Sequence, Prefix] = {}
        self._kept: OrderedDict[Prefix, None] = OrderedDict()
        self.tokens = 0

    def find(self, sequence: Sequence) -> FoundPrefix | None:
        """The longest prefix of a sequence's tokens. At least two are left to prefill.

        Returns: None if there is none, or if the prompt's logprobs are wanted, which only a prefill gives.
        """
        most = (len(sequence.ids) - 2) // BLOCK
        if not self._enabled or most <= 0 or sequence.wants_prompt_logprobs:
            return None
        digests = self._digests(sequence)
        for blocks in range(most, 0, -1):
            prefix = self._by_digest.get(digests[blocks - 1])
            if prefix is not None:
                self._touch(prefix)
                return FoundPrefix(prefix, blocks * BLOCK)
        return None

    def reuse(self, sequence: Sequence) -> int:
        """Copy the longest prefix into a running sequence's row. Returns: how many tokens need not be computed now."""
        found = self.find(sequence)
        if found is None or found.tokens <= sequence.cached:
            return 0
        source = found.prefix.row
        assert source is not None and sequence.row is not None  # noqa: S101, PT018
        self._store.copy(source, sequence.row, found.tokens)
        reused = found.tokens - sequence.cached
        sequence.cached = found.tokens
        return reused

    def add(self, sequence: Sequence) -> None:
        """The sequence's prompt is computed: its prefix can be found."""
        blocks = sequence.prompt_length // BLOCK
        if self._enabled and blocks and sequence not in self._running:
            prefix = self._running[sequence] = Prefix(self._digests(sequence)[:blocks], sequence)
            for digest in prefix.digests:
                self._by_digest.setdefault(digest, prefix)

    def keep(self, sequence: Sequence) -> None:
        """The sequence ended: keep its prefix, and release the rest of its row."""
        prefix = self._running.pop(sequence, None)
        if prefix is not None:
            self._keep(prefix, sequence)
        if sequence.row is not None:
            self._store.release(sequence.row)
            sequence.row = None

    def drop(self, sequence: Sequence) -> None:
        """The sequence failed or was preempted: release its row, and keep nothing."""
        prefix = self._running.pop(sequence, None)
        if prefix is not None:
            self._forget(prefix)
        if sequence.row is not None:
            self._store.release(sequence.row)
            sequence.row = None

    def evict(self) -> bool:
        """Release the kept prefix that was used longest ago. Returns: whether there was one."""
        if not self._kept:
            return False
        self._release(next(iter(self._kept)))
        return True

    def _keep(self, prefix: Prefix, sequence: Sequence) -> None:
        same = self._by_digest.get(prefix.digests[-1])
        if same is not None and same in self._kept:
            self._touch(same)
            self._forget(prefix)
            return
        try:
            assert sequence.row is not None  # noqa: S101
            prefix.shelved = self._store.shelve(sequence.row, len(prefix.digests) * BLOCK)
        except (RuntimeError, MemoryError) as error:
            self._forget(prefix)
            if not is_out_of_memory(error):
                raise
            logger.warning("the device has no memory to keep the prefix of a prompt: %s", error)
            return
        sequence.row = prefix.sequence = None
        self.tokens += prefix.shelved.length
        for digest in prefix.digests:
            shorter = self._by_digest.get(digest)
            if shorter is not None and shorter in self._kept and shorter.digests[-1] == digest:
                self._release(shorter)
        self._kept[prefix] = None
        self._touch(prefix)

    def _touch(self, prefix: Prefix) -> None:
        """It was used: others that share its tokens are evicted before it, so that these are found in it."""
        if prefix in self._kept:
            self._kept.move_to_end(prefix)
            self._by_digest |= dict.fromkeys(prefix.digests, prefix)

    def _release(self, prefix: Prefix) -> None:
        row = prefix.shelved
        assert row is not None  # noqa: S101
        self._forget(prefix)
        del self._kept[prefix]
        self.tokens -= row.length
        self._store.release(row)
        prefix.shelved = None

    def _forget(self, prefix: Prefix) -> None:
        for digest in prefix.digests:
            if self._by_digest.get(digest) is prefix:
                del self._by_digest[digest]

    def _digests(self, sequence: Sequence) -> list[bytes]:
        """Of the sequence's first block, of its first two, and so on."""
        if sequence.digests is None:
            hashed = blake2b(f"{len(sequence.tenant)}:{sequence.tenant}{sequence.version}".encode(), key=self._key)
            ids = np.array(sequence.ids, np.int32)
            sequence.digests = []
            for begin in range(0, len(ids) - BLOCK + 1, BLOCK):
                hashed.update(ids[begin : begin + BLOCK].tobytes())
                sequence.digests.append(hashed.digest())
        return sequence.digests
