#!/usr/bin/env bash
# gpu.sh OUT: what a GPU has to show, in one go: first that it computes right, then how fast. What tells most comes
# first in each part, and a command measures one size: what is done is kept if time runs out. Goes on where a command
# fails, and ends with the number of those that did.
#
# It needs a Python that has what the packages import, Triton, and for the tests pytest with pytest-asyncio. The
# packages themselves are those of this checkout, installed or not, and nothing is fetched: `shapes` and `engine` make
# up their models, `tune`, `serve` and `tenants` take the folder that XPEFT_PLM names, where the demo's model is not
# installed; a copy of that one in bfloat16 is 44 MB.
#
#   OUT/all.txt, all.jsonl   all that was printed, and all lines of JSON; what is there already is kept
#   OUT/all.tgz              the same by command, made anew after each of them
#   OUT/files                these files themselves
#
# Variables:
#   PARTS='tests shapes engine tune serve tenants'   the parts that are wanted; all without it
#   NAMES='engine-*-2048'   a pattern: of their commands those whose files are called so
#   EXTRA='--rounds 2'        more options for each `xpeft bench`; they count more than those that stand here
#   FILES=/tmp/files          in place of OUT/files, where only few files can be taken along
#   PYTHON=python3            the Python that runs all of it
#
# Single commands, where time is short:
#   PARTS=tests NAMES=kernels benchmarks/gpu.sh OUT
#   PARTS=shapes NAMES='*-2048' benchmarks/gpu.sh OUT
#   PARTS=engine NAMES=engine-bert-base-1-8192 EXTRA='--rounds 2' benchmarks/gpu.sh OUT
#   PARTS=tune NAMES='tune-65536-*' EXTRA='--rounds 2 --epochs 3' XPEFT_PLM=models/minilm benchmarks/gpu.sh OUT
set -uo pipefail

if [ "$#" != 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: benchmarks/gpu.sh OUT" >&2
    exit 2
fi
part() { [[ " ${PARTS-tests shapes engine tune serve tenants} " == *" $1 "* ]]; }

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
python=${PYTHON:-python}
# Both may be named from where the script is called; it runs in the checkout.
if [[ $python == */* ]]; then python=$(realpath -s "$python"); fi
if [ -d "${XPEFT_PLM-}" ]; then XPEFT_PLM=$(realpath "$XPEFT_PLM"); fi
PYTHONPATH=$(printf '%s:' "$root"/{kernels,profiles_store,server,tuning,benchmarks})${PYTHONPATH-}
PYTHONPATH=${PYTHONPATH%:}
export PYTHONPATH PYTHONUNBUFFERED=1
needed=triton,xpeft_server.cli.main,xpeft_benchmarks.engine.measurement
if part tests; then needed+=,pytest_asyncio; fi
if part serve || part tenants; then needed+=,xpeft_server.cli.serve.running_server; fi
if ! "$python" -P -c "import $needed"; then
    echo "gpu.sh: install the project with its tests first (make setup) and activate its environment," \
        "or name a Python that has what the packages import: PYTHON=…" >&2
    exit 2
fi
mkdir -p "$1" "${FILES-$1/files}"
out=$(realpath "$1")
files=$(realpath "${FILES-$1/files}")
cd "$root" || exit 2
failed=0

say() {
    # shellcheck disable=SC2059 # the first word is a format
    printf "$@" | tee -a "$out/all.txt"
}

run() {
    local name=$1
    shift
    # shellcheck disable=SC2053 # a pattern
    [[ $name == ${NAMES-*} ]] || return 0
    rm -f "$files/$name.jsonl"
    say '\n== %s: %s (%d s)\n' "$name" "$*" "$SECONDS"
    "$@" 2>&1 | tee "$files/$name.txt" | tee -a "$out/all.txt" || failed=$((failed + 1))
    if [ -s "$files/$name.jsonl" ]; then cat "$files/$name.jsonl" >>"$out/all.jsonl"; fi
    tar -czf "$out/all.tgz" -C "$files" .
}

check() { run "$1" "$python" -P -m pytest -q -p no:cacheprovider -p no:benchmark "${@:2}"; }

bench() {
    # shellcheck disable=SC2086 # words
    run "$1" "$python" -P -m xpeft_server.cli bench "${@:2}" --device cuda --json "$files/$1.jsonl" ${EXTRA-}
}

shape() {
    for tokens in "${@:3}"; do
        bench "$1-$2-$tokens" shapes --shape "$1" --width "$2" --tokens "$tokens"
    done
}

if part tests; then
    "$python" -P -c 'import xdist' 2>/dev/null && several=(-n 8) || several=()
    check kernels tests/kernels -k triton "${several[@]}"
    check models tests/model/test_gpu.py tests/engine/generation/test_arena.py
    check answers tests/end_to_end/test_batch_invariance.py -k cuda
    check texts tests/end_to_end/test_generation_invariance.py -k cuda
    check tuning tests/tuning/test_tuning_gpu.py
fi
if part shapes; then
    shape bert-base 48 2048 512 8192 32768 128
    shape llama-1b-decode 16 64 256 512 8 1
    shape bert-base 64 2048 512 8192 32768 128
    shape minilm 48 2048 512 8192 32768 128
    shape llama-1b-decode 64 64 256 512 8 1
fi
if part engine; then
    for inputs in 1 32; do
        for shape in bert-base minilm; do
            for tokens in 2048 8192; do
                bench "engine-$shape-$inputs-$tokens" engine --shape "$shape" --inputs "$inputs" --batch-tokens "$tokens"
            done
        done
    done
fi
if part tune; then
    for tokens in 65536 16384 4096; do
        for dtype in float32 bfloat16; do
            bench "tune-$tokens-$dtype" tune --profiles 256 --batch-tokens "$tokens" --dtype "$dtype"
        done
    done
fi
if part serve; then
    for texts in 256 32; do
        for processes in 0 2 1 4; do
            bench "serve-$processes-$texts" serve --http-processes "$processes" --concurrency "$texts" --rounds 2
        done
    done
fi
if part tenants; then
    # The client has cores of its own here, which it has not on a machine with two.
    bench tenants tenants --registered 1000000 --rounds 3
fi
say '%s\n' "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>&1)"
say '\n%d commands failed; %d s; all of it is in %s\n' "$failed" "$SECONDS" "$out"
exit "$failed"
