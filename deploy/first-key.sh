#!/bin/sh
# first-key.sh KEYS_FILE OPERATOR_KEY: unless it is there already, make the operator's key that Prometheus scrapes with.
# With it the server has a keys file and may listen on more than loopback; tenants' keys are made by hand.
set -eu
keys_file=$1
operator_key=$2

if [ -s "$keys_file" ] && [ -s "$operator_key" ]; then
    echo "first-key: $keys_file is there, nothing to do"
    exit 0
fi

shown=$(xpeft keys create --role operator --file "$keys_file")
key=$(printf '%s\n' "$shown" | grep -o 'xp_[A-Za-z0-9_-]\{43\}' | head -n 1)
if [ -z "$key" ]; then
    echo "first-key: xpeft keys create showed no key" >&2
    exit 1
fi
# Prometheus runs as another user: its key may be read by all who have this volume, the keys file may not.
printf '%s' "$key" >"$operator_key.part"
chmod 0444 "$operator_key.part"
mv "$operator_key.part" "$operator_key"
echo "first-key: operator's key made, $keys_file written"
