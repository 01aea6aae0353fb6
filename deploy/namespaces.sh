# shellcheck shell=bash disable=SC2154
# Sourced by the checks: what runs in namespaces of its own takes no port of this machine, and nothing of it stays.
#
# Takes from there: work (a folder), called_from (another), load (a name), fail.

runner=
process=

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
ok() { printf 'ok: %s\n' "$*"; }

# ask CURL'S ARGUMENTS…: from the network of the process.
ask() { nsenter --target "$process" --net -- curl --silent --noproxy '*' --max-time 30 "$@"; }

# child_of PROCESS: the one that it started.
child_of() { tr -d ' ' <"/proc/$1/task/$1/children"; }

# find_process: the one that runner, which is or will be unshare, started as process 1.
find_process() {
    process=
    until [ -n "$process" ]; do
        kill -0 "$runner" 2>/dev/null || fail "it did not start"
        # Until it is unshare, what it starts may be anything.
        [ "$(cat "/proc/$runner/comm" 2>/dev/null)" != unshare ] || process=$(child_of "$runner")
    done
}

# write_apart FOLDER: as process 1 of its namespaces; what is written to the machine's own folders goes to that one.
write_apart() {
    local own
    for own in /etc /opt /usr/libexec /var/lib /var/log; do
        mkdir -p "$1/upper$own" "$1/work$own"
        mount -t overlay -o "lowerdir=$own,upperdir=$1/upper$own,workdir=$1/work$own" overlay "$own"
    done
    mount -t tmpfs tmpfs /run
    mount -t proc proc /proc
    ip link set lo up
}

# end_runner: and with it all that runs in its namespaces.
end_runner() {
    [ -n "$runner" ] || return 0
    kill -KILL "$runner" 2>/dev/null || true
    wait "$runner" 2>/dev/null || true
    # Process 1 is the last to go.
    while [ -n "$process" ] && [ -e "/proc/$process" ]; do sleep 0.1; done
    runner=
}

# clean_up: as a trap; cgroups stay until somebody removes them.
clean_up() {
    end_runner
    [ -n "$work" ] || return 0
    find /sys/fs/cgroup -depth -type d -path "*/${work##*/}*" -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$work"
}

# load_test KEY SERVER: by the xpeft of this machine, from the network of the process.
load_test() {
    local test=$PWD/deploy/load-test.sh
    (cd "$called_from" && XPEFT_API_KEY=$1 nsenter --target "$process" --net -- "$test" "$load" "$2") ||
        fail "the load test ended with $?"
}

# unpack PACKAGE…: programs of Debian's packages that would start services where they are installed, into work/tools.
unpack() {
    local package
    mkdir -p "$work/packages" "$work/tools"
    (
        cd "$work/packages"
        # Its lists may be missing or old.
        apt-get -qq -o APT::Sandbox::User=root download "$@" 2>/dev/null ||
            { apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root download "$@"; }
    ) || fail "apt-get download $*"
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/tools"; done
    rm -r "$work/packages"
    PATH=$work/tools/usr/sbin:$work/tools/usr/bin:$PATH
}

# install_tools PROGRAM[:PACKAGE]…: by apt-get, where they are missing.
install_tools() {
    [ "$(id -u)" = 0 ] || fail "needs to be root, for debootstrap and for namespaces"
    local program missing=()
    for program in "$@"; do
        command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
    done
    [ "${#missing[@]}" = 0 ] && return
    echo "installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends ca-certificates "${missing[@]}" \
        >/dev/null
}

store() { TMPDIR=$work buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

# make_stand_in FOLDER PACKAGE…: a root file system with Debian's programs, for images that cannot be pulled.
make_stand_in() {
    local root=$1 packages
    shift
    packages=$(IFS=,; echo "$*")
    debootstrap --variant=minbase --include="$packages" bookworm "$root" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap: $(tail -n 3 "$work/debootstrap.log")"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
}

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not in time: $*"
        sleep 0.5
    done
}
