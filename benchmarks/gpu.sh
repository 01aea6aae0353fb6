#!/usr/bin/env bash
# gpu.sh OUT: what a GPU has to show, in one go: first that it computes right, then how fast. OUT is a folder for what is
# printed and for the JSON lines. Goes on where a part fails, and ends with the number of parts that did.
#
# PARTS="tests shapes engine tune serve tenants" names those that are wanted; without it all are. Of those NAMES, a pattern
# such as 'engine-minilm-*', runs the ones whose files are called so.
set -uo pipefail

if [ "$#" != 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: benchmarks/gpu.sh OUT" >&2
    exit 2
fi
if ! python -c 'import pytest_asyncio, triton, xpeft_benchmarks, xpeft_server.cli.main'; then
    echo "gpu.sh: install the project with its tests first (make setup), and activate its environment" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0

part() { [[ " ${PARTS-tests shapes engine tune serve tenants} " == *" $1 "* ]]; }

run() {
    local name=$1
    shift
    # shellcheck disable=SC2053 # a pattern
    [[ $name == ${NAMES-*} ]] || return 0
    printf '\n== %s: %s (%d s)\n' "$name" "$*" "$SECONDS"
    "$@" 2>&1 | tee "$out/$name.txt" || failed=$((failed + 1))
}

if part tests; then
    run kernels python -m pytest -q -p no:cacheprovider tests/kernels -k triton
    run models python -m pytest -q -p no:cacheprovider tests/model/test_gpu.py tests/engine/generation/test_arena.py
    run tuning python -m pytest -q -p no:cacheprovider tests/tuning/test_tuning_gpu.py
    run answers python -m pytest -q -p no:cacheprovider tests/end_to_end/test_batch_invariance.py
fi
if part shapes; then
    for width in 48 64; do
        run "bert-base-$width" xpeft bench shapes --shape bert-base --width "$width" --device cuda \
            --json "$out/bert-base-$width.jsonl"
    done
    run minilm-48 xpeft bench shapes --shape minilm --width 48 --device cuda --json "$out/minilm-48.jsonl"
    for width in 16 64; do
        run "llama-1b-decode-$width" xpeft bench shapes --shape llama-1b-decode --width "$width" --device cuda \
            --json "$out/llama-1b-decode-$width.jsonl"
    done
fi
if part engine; then
    for shape in bert-base minilm; do
        for inputs in 1 32; do
            run "engine-$shape-$inputs" xpeft bench engine --shape "$shape" --inputs "$inputs" --device cuda \
                --batch-tokens 2048,8192 --json "$out/engine-$shape-$inputs.jsonl"
        done
    done
fi
if part tune; then
    for tokens in 4096 16384 65536; do
        for dtype in float32 bfloat16; do
            run "tune-$tokens-$dtype" xpeft bench tune --profiles 256 --batch-tokens "$tokens" --dtype "$dtype" \
                --device cuda --json "$out/tune-$tokens-$dtype.jsonl"
        done
    done
fi
if part serve; then
    for processes in 0 1 2 4; do
        run "serve-$processes" xpeft bench serve --device cuda --http-processes "$processes" --concurrency 256,32 \
            --rounds 2 --json "$out/serve-$processes.jsonl"
    done
fi
if part tenants; then
    # The client has cores of its own here, which it has not on a machine with two.
    run tenants xpeft bench tenants --device cuda --registered 1000000 --rounds 3 --json "$out/tenants.jsonl"
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
printf '\n%d parts failed; %d s; all of it is in %s\n' "$failed" "$SECONDS" "$out"
exit "$failed"
