"""A random bank: the same bytes on every machine, with every version of every library, for ever."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from ..plm_facts import PlmFacts
from .bank import Bank
from .spec import RandomBankSpec

_STREAM = "xpeft-random-bank-1"
_LANES = np.uint64(0x0000FFFF0000FFFF)
_MEAN = 131070  # of a sum of four 16-bit words: 4 · 65535 / 2
_VARIANCE = 1431655765  # of that sum: 4 · (65536² - 1) / 12, an integer
_CHUNK = 1 << 15  # values in work at a time; their words fit in a core's cache


def random_bank(spec: RandomBankSpec, *, plm: PlmFacts) -> Bank:
    """Make ``down`` [L,N,H,R] and ``up`` [L,N,R,H] in float32, every value about normal with mean 0.

    Semantics: values of a tensor's block l, row-major, are (s - 131070) · float32(std / sqrt(1431655765)) in
    float32, where s is the sum of the four 16-bit parts of the next 64-bit word of Philox4x64-10. Its key is
    the first 16 bytes, little-endian, of SHA-256("xpeft-random-bank-1 seed=SEED tensor=NAME block=l"), its
    counter starts at 1.

    Integers are exact, and the division, the square root and the one product in float32 are rounded as IEEE 754
    says, so nothing depends on a library's distributions or on how a machine computes a logarithm. A block has
    a stream of its own: it is the same in a model of more blocks, and adapter n is the same in a bank of more
    adapters. A sum of four uniform values (Irwin-Hall) ends at ±3.46 std.

    ``up`` is random too: X-PEFT never trains it, so zeros would steer nothing.
    """
    down = torch.empty(plm.blocks, spec.adapters, plm.hidden, spec.width, dtype=torch.float32)
    up = torch.empty(plm.blocks, spec.adapters, spec.width, plm.hidden, dtype=torch.float32)
    for name, tensor in (("down", down), ("up", up)):
        for block in range(plm.blocks):
            _fill(tensor[block].numpy().reshape(-1), _key(spec.seed, name, block), spec.std)
    return Bank(
        down=down,
        up=up,
        plm=plm.fingerprint,
        activation=spec.activation,
        layer_norm=spec.layer_norm,
        pooling=spec.pooling or ("last" if plm.decoder else "mean"),
        provenance=f"{spec} for {plm.model_type}",
    )


def _key(seed: int, tensor: str, block: int) -> NDArray[np.uint64]:
    text = f"{_STREAM} seed={seed} tensor={tensor} block={block}"
    return np.frombuffer(hashlib.sha256(text.encode("ascii")).digest()[:16], dtype="<u8").astype(np.uint64)


def _fill(values: NDArray[np.float32], key: NDArray[np.uint64], std: float) -> None:
    """Fill a flat array from one stream, in place, a chunk at a time (the chunk's size changes nothing)."""
    stream = np.random.Philox(key=key)
    scale = np.float32(std / math.sqrt(_VARIANCE))
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        words = stream.random_raw(chunk.size)
        pairs = (words & _LANES) + ((words >> np.uint64(16)) & _LANES)  # two sums of two, 32 bits apart
        sums = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
        np.multiply((sums.astype(np.int32) - _MEAN).astype(np.float32), scale, out=chunk)
