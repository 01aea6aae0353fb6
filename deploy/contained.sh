# shellcheck shell=bash disable=SC2154
# Sourced by check-image.sh: runs an image's file system as a container engine would, in namespaces made by unshare.
#
# Takes from there: root and work (folders), user, variables and entrypoint (the image's), server (its URL), fail, and
# namespaces.sh.

# start_process_1 ROOT VOLUMES USER COMMAND…: in new namespaces, what an engine does for --read-only --tmpfs /tmp
# --cap-drop ALL --security-opt no-new-privileges --network none.
start_process_1() {
    local root=$1 volumes=$2 user=$3 node
    shift 3
    mount --bind "$root" "$root"
    mount -o remount,bind,ro,nosuid "$root"
    mount --bind "$volumes/data" "$root/data"
    mount --bind "$volumes/keys" "$root/keys"
    mount -t tmpfs -o noexec,nosuid,nodev tmpfs "$root/tmp"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o nosuid,noexec tmpfs "$root/dev"
    for node in null zero full random urandom; do
        touch "$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    ip link set lo up
    exec chroot "$root" setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs \
        --bounding-set=-all --inh-caps=-all -- env -i --chdir=/data -- "$@"
}

# contain ARGUMENT…: the image's entry point with these arguments, in place of a subshell.
contain() {
    local start
    start=$(declare -f start_process_1)
    exec unshare --mount --pid --net --ipc --uts --fork --kill-child -- bash -euc "$start; start_process_1 \"\$@\"" - \
        "$root" "$work/volumes" "$user" "${variables[@]}" "${entrypoint[@]}" "$@"
}

# within COMMAND…: beside the running server, as `docker exec` does.
within() {
    nsenter --target "$process" --mount --pid --net --ipc --uts --root --wd -- setpriv --reuid "${user%:*}" \
        --regid "${user#*:}" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all -- \
        env -i "${variables[@]}" "$@"
}

start_server() {
    contain serve >"$work/server.log" 2>&1 &
    runner=$!
    find_process
}

# wait_until_ready CURL'S ARGUMENTS…
wait_until_ready() {
    local deadline=$((SECONDS + 180))
    until ask --fail --insecure --output /dev/null "$@" "$server/ready" 2>/dev/null; do
        kill -0 "$runner" 2>/dev/null || fail "the server ended before it was ready"
        [ "$SECONDS" -lt "$deadline" ] || fail "the server was not ready within 180 s"
        sleep 0.2
    done
}

# stop_server WANTED: as an engine stops it, by SIGTERM to process 1.
stop_server() {
    local code=0 began=$SECONDS
    kill -TERM "$process"
    wait "$runner" || code=$?
    runner=
    process=
    [ "$code" = "$1" ] || fail "exit code $code after SIGTERM, not $1"
    ok "SIGTERM ends it with exit code $code, $((SECONDS - began)) s later"
}
