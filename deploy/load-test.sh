#!/bin/sh
# load-test.sh NAME URL [OPTION…]: the load test of one form of deployment. Its settings never change, so that forms can be
# compared; further options of `xpeft bench load` may stand behind, --data or --against for example.
# An admin's key of a tenant comes from XPEFT_API_KEY. Writes load-NAME.jsonl and load-NAME.png to where it is run.
#
#     deploy/load-test.sh compose http://127.0.0.1:8000
set -eu

if [ $# -lt 2 ]; then
    echo "usage: load-test.sh NAME URL [OPTION...]" >&2
    exit 2
fi
name=$1
url=$2
shift 2

exec xpeft bench load --url "$url" --name "$name" \
    --kind classify --profiles 32 --popularity zipf:1.1 --texts 512 --seed 0 \
    --rates auto --seconds 10 --rounds 3 --slo 100ms \
    --json "load-$name.jsonl" --plot "load-$name.png" "$@"
