"""Compiles every kernel for GPUs that need not be there, and prints what each needs, as JSON lines.

A program of its own: in the tests' process Triton interprets. Run: python ahead_of_time.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xpeft_kernels import PROFILE_TILES, AdapterForm
from xpeft_kernels.aggregate import kernel as aggregate
from xpeft_kernels.apply import kernel as apply
from xpeft_kernels.attend import kernel as attend
from xpeft_kernels.attend_cache import SPAN, join
from xpeft_kernels.attend_cache import kernel as attend_cache
from xpeft_kernels.heads import kernel as heads
from xpeft_kernels.pool import kernel as pool

ARCHITECTURES = (80, 90, 100)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STATES = ("query", "key", "value")
STRIDES = {f"stride_{name}" for name in STATES} | {f"stride_{name}_head" for name in STATES}
EVEN = {"split", "row", "stride_slot", "stride_slot_block", "hidden", "width", *STRIDES}
"""Numbers that are multiples of 16 in every bank whose H is, and in every model whose d is; Triton compiles a version
of its own for such."""

SIGHTS = (
    (32, False, False),
    (64, False, False),
    (64, False, True),
    (64, True, False),
    (80, True, False),
    (128, True, False),
    (128, True, True),
)
"""Size of a head, whether attention is causal, whether there is a window."""

CACHES = ((32, 1, True), (64, 4, False), (64, 4, True), (80, 6, True), (128, 8, False), (128, 40, True), (256, 8, True))
"""Size of a head, query heads that share a key, whether there is a window."""


class Case(NamedTuple):
    """A kernel as it is launched: types of its arguments, values of its constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]


def cases() -> Iterator[Case]:
    for dtype, torch_dtype in DTYPES.items():
        for hidden, width in ((768, 48), (768, 64), (384, 48), (2048, 16), (4096, 256), (400, 8)):
            for tokens in (128, 32768):
                yield apply_case(AdapterForm(hidden, width), tokens, dtype, torch_dtype)
        full = AdapterForm(768, 64, "gelu", down_bias=True, up_bias=True)
        yield apply_case(full, 2048, dtype, torch_dtype)
        for profiles in PROFILE_TILES:
            for masks in ("u8", "fp16"):
                yield aggregate_case(profiles, masks, dtype)
        yield heads_case(dtype)
        yield pool_case(dtype)
        for d, causal, window in SIGHTS:
            yield attend_case(d, causal, window, dtype, torch_dtype)
        for d, group, window in CACHES:
            yield attend_cache_case(d, group, window, dtype, torch_dtype)
            yield join_case(d, group, window, dtype)
    yield attend_case(256, True, True, "bf16", torch.bfloat16)


def apply_case(form: AdapterForm, tokens: int, dtype: str, torch_dtype: torch.dtype) -> Case:
    launch = apply.Launch.of(tokens, form, torch_dtype.itemsize)
    types = dict.fromkeys(("hidden", "residual", "out", "slots", "norm_weight", "norm_bias"), f"*{dtype}")
    types |= {"pieces": "*i32", "stride_slot": "i32", "split": "i32", "norm_eps": "fp32", "ln_eps": "fp32"}
    constants = {
        "H": form.hidden,
        "R": form.width,
        "GELU": form.activation == "gelu",
        "LAYER_NORM": form.layer_norm,
        "DOWN_BIAS": form.down_bias,
        "UP_BIAS": form.up_bias,
        "RESIDUAL": True,
        "NORM": True,
        "NORM_BIAS": True,
        "BLOCK_T": launch.rows,
        "BLOCK_H": launch.columns,
        "BLOCK_R": launch.width,
    }
    name = f"apply_adapters {dtype} H={form.hidden} R={form.width} rows={launch.rows} {form.activation}"
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return Case(name, apply._apply_adapters_kernel, types, constants, options)


def aggregate_case(profiles: int, masks: str, dtype: str) -> Case:
    types = {"bank": f"*{dtype}", "masks": f"*{masks}", "slots": f"*{dtype}", "slot_ids": "*i64"}
    types |= dict.fromkeys(("profiles", "adapters", "split", "row", "mask_width"), "i32")
    types |= dict.fromkeys(("stride_slot_block", "stride_slot"), "i32")
    soft = masks != "u8"
    constants = {
        "HARD": not soft,
        "EXACT": soft and dtype == "bf16",
        "BLOCK_P": profiles,
        "BLOCK_N": aggregate.BLOCK_N,
        "BLOCK_D": aggregate.BLOCK_D,
    }
    name = f"aggregate_adapters {dtype} masks={masks} P={profiles}"
    options = {"num_warps": 4, "num_stages": aggregate.STAGES}
    return Case(name, aggregate._aggregate_adapters_kernel, types, constants, options)


def heads_case(dtype: str) -> Case:
    types = {"pooled": f"*{dtype}", "weight": "*fp32", "bias": "*fp32", "rows": "*i64", "owners": "*i64"}
    types |= {"logits": "*fp32", "count": "i32", "hidden": "i32"}
    constants = {"BLOCK_J": heads.BLOCK_J, "BLOCK_H": heads.BLOCK_H}
    return Case(f"apply_heads {dtype}", heads._apply_heads_kernel, types, constants, {"num_warps": 4})


def pool_case(dtype: str) -> Case:
    types = {"hidden": f"*{dtype}", "starts": "*i64", "ends": "*i64", "out": "*fp32", "width": "i32"}
    constants = {"BLOCK_T": pool.BLOCK_T, "BLOCK_H": pool.BLOCK_H}
    return Case(f"mean_rows {dtype}", pool._mean_rows_kernel, types, constants, {"num_warps": 1})


def attend_case(d: int, causal: bool, window: bool, dtype: str, torch_dtype: torch.dtype) -> Case:
    launch = attend.Launch.of(d, torch_dtype.itemsize)
    types = dict.fromkeys((*STATES, "out"), f"*{dtype}") | dict.fromkeys(STRIDES, "i32")
    types |= {"pieces": "*i32", "scale": "fp32", "window": "i32"}
    constants = {
        "D": d,
        "GROUP": 4,
        "CAUSAL": causal,
        "WINDOW": window,
        "BLOCK_Q": launch.rows,
        "BLOCK_K": launch.keys,
        "BLOCK_D": launch.width,
    }
    name = f"attend_packed {dtype} d={d} rows={launch.rows} causal={causal} window={window}"
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return Case(name, attend._attend_packed_kernel, types, constants, options)


def attend_cache_case(d: int, group: int, window: bool, dtype: str, torch_dtype: torch.dtype) -> Case:
    launch = attend_cache.Launch.of(group, d, torch_dtype.itemsize)
    types = dict.fromkeys(("query", "keys", "values", "out"), f"*{dtype}") | dict.fromkeys(STRIDES, "i32")
    types |= dict.fromkeys(("sums", "limits"), "*fp32") | dict.fromkeys(("heads", "window"), "i32")
    types |= {"pieces": "*i32", "scale": "fp32"}
    constants = {
        "D": d,
        "GROUP": group,
        "HEADS": launch.heads,
        "WINDOW": window,
        "SPAN": SPAN,
        "BLOCK_M": launch.rows,
        "BLOCK_K": launch.keys,
        "BLOCK_D": launch.width,
    }
    name = f"attend_cache {dtype} d={d} group={group} rows={launch.rows} window={window}"
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return Case(name, attend_cache._attend_cache_kernel, types, constants, options)


def join_case(d: int, group: int, window: bool, dtype: str) -> Case:
    tile = join.Tile.of(8 * group, d)
    types = {"sums": "*fp32", "limits": "*fp32", "joins": "*i32", "out": f"*{dtype}", "heads": "i32", "window": "i32"}
    constants = {"D": d, "WINDOW": window, "SPAN": SPAN, "BLOCK_H": tile.heads, "BLOCK_D": tile.width}
    name = f"join_parts {dtype} d={d} heads={8 * group} window={window}"
    return Case(name, join._join_parts_kernel, types, constants, {"num_warps": tile.warps})


def needs(case: Case, architecture: int) -> dict[str, Any]:
    """Registers a thread, bytes spilled a thread, bytes of shared memory a program, and integers whose values decide
    which version is compiled."""
    names = case.kernel.arg_names
    signature = {name: "constexpr" if name in case.constants else case.types[name] for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    even = {name for name in case.types if case.types[name][0] == "*" or name in EVEN}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(case.kernel, signature, constants, aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=case.options)
    return {
        "kernel": case.name,
        "architecture": architecture,
        "warps": case.options["num_warps"],
        "shared": compiled.metadata.shared,
        "decisive": [
            each.name
            for each in case.kernel.params
            if case.types.get(each.name, "")[:1] == "i" and not each.do_not_specialize
        ],
        **resources(compiled.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """What the assembler gave the only function in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def compiled_cases() -> Iterator[tuple[Case, int]]:
    """Every case and architecture in the long form.

    In the short form the cases of an operator take turns at the architectures, in each dtype; of float32, which servers
    on a GPU have when asked for it only, every other case.
    """
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases():
        group = groups.setdefault(tuple(case.name.split()[:2]), [])
        if case not in group:
            group.append(case)
    for (_, dtype), group in groups.items():
        if os.environ.get("NIGHTLY") == "1":
            yield from product(group, ARCHITECTURES)
            continue
        some = group[::2] if dtype == "fp32" else group
        turns = range(max(len(some), len(ARCHITECTURES)))
        yield from ((some[n % len(some)], ARCHITECTURES[n % len(ARCHITECTURES)]) for n in turns)


if __name__ == "__main__":
    for each, architecture in compiled_cases():
        print(json.dumps(needs(each, architecture)), flush=True)
