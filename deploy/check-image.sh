#!/usr/bin/env bash
# check-image.sh [--keep FILE] [--load NAME]: builds the Dockerfile's target cpu without Docker, runs it and classifies
# through it.
#
# For root on Debian 12. Installs what it needs by apt-get; everything else is in a folder that is gone at the end, but
# for FILE, the image as `docker load` takes it. TORCH_INDEX is as in the Dockerfile; empty, torch comes from wherever
# this machine's pip takes packages from. DEBIAN_MIRROR is where debootstrap takes the base image from. --load runs
# load-test.sh NAME against the image, by the xpeft on the PATH, which needs the extra bench.
set -euo pipefail

keep=
load=
while [ "$#" -ge 2 ]; do
    case $1 in
        --keep) keep=$(realpath "$2") ;;
        --load) load=$2 ;;
        *) break ;;
    esac
    shift 2
done
if [ "$#" != 0 ]; then
    echo "usage: deploy/check-image.sh [--keep FILE] [--load NAME]" >&2
    exit 2
fi
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=3.11
base=docker.io/library/python:$python-slim-bookworm
image=localhost/xpeft-server:check
server=http://127.0.0.1:8000
work=
root=
user=
variables=()
entrypoint=()
health_check=()

# shellcheck source=deploy/namespaces.sh
source deploy/namespaces.sh
# shellcheck source=deploy/contained.sh
source deploy/contained.sh

fail() {
    printf 'check-image: %s\n' "$*" >&2
    [ ! -s "$work/server.log" ] || tail -n 40 "$work/server.log" >&2
    exit 1
}

# A stand-in for Docker's official Python image: Debian's Python under the names that the official one has.
make_base() {
    local container root size
    container=$(store from scratch)
    root=$(store mount "$container")
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$root" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap: $(tail -n 3 "$work/debootstrap.log")"
    ln -s /usr/bin/python3 "$root/usr/local/bin/python"
    ln -s /usr/bin/pip3 "$root/usr/local/bin/pip"
    # As Docker's images, it keeps no caches of apt.
    echo 'Dir::Cache { pkgcache ""; srcpkgcache ""; }; DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' \
        >"$root/etc/apt/apt.conf.d/docker-clean"
    rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    size=$(du -sm "$root" | cut -f 1)
    store config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    store commit --quiet --format docker --rm "$container" "$base" >/dev/null
    ok "$base is $size MiB by debootstrap"
}

# Where this machine's pip takes packages from, as one file for the build, and the local paths that it names. The folder
# around an index on disk comes along: mirrors keep the packages beside it.
describe_pip() {
    { python3 -m pip config list 2>/dev/null || true; } | python3 -c '
import ast, pathlib, re, sys
wanted = {"index-url", "extra-index-url", "find-links", "no-index", "cert", "client-cert", "trusted-host", "proxy"}
found = {"cert": "/etc/ssl/certs/ca-certificates.crt"}
for line in sorted(sys.stdin, key=lambda line: line.startswith(":env:")):
    name, _, value = line.rstrip("\n").partition("=")
    section, _, key = name.rpartition(".")
    if section in {"global", "install", ":env:"} and key in wanted:
        found[key] = " ".join(ast.literal_eval(value).split())
with open(sys.argv[1], "w", encoding="utf-8") as file:
    print("[global]", *(f"{key} = {value}" for key, value in found.items()), sep="\n", file=file)
for key, value in found.items():
    for path in map(pathlib.Path, re.findall(r"(?:^|\s)(?:file://)?(/\S+)", value)):
        path = path.parent if key.endswith("index-url") else path
        if path.exists() and path != pathlib.Path("/"):
            print(path)
' "$work/pip.conf" | sort -u >"$work/pip.paths"
}

build() {
    local path options=(--build-arg "PYTHON=$python" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)")
    [ -z "${TORCH_INDEX+set}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    describe_pip
    while read -r path; do options+=(--volume "$path:$path:ro"); done <"$work/pip.paths"
    store bud --isolation chroot --network host --pull-never --layers=false --format docker --target cpu \
        --secret "id=pip.conf,src=$work/pip.conf" "${options[@]}" --tag "$image" . >"$work/build.log" 2>&1 ||
        fail "buildah: $(tail -n 30 "$work/build.log")"
    root=$(store mount "$(store from --pull-never "$image")")
    store inspect --type image "$image" >"$work/image.json"
    # What the image says of itself, in the words of the shell.
    python3 - "$work/image.json" >"$work/image.sh" <<'EOF'
import json, shlex, sys
config = json.load(open(sys.argv[1], encoding="utf-8"))["Docker"]["config"]
print("user=" + shlex.quote(config["User"]))
check = config["Healthcheck"]["Test"][1:]
for name, words in {"variables": config["Env"], "entrypoint": config["Entrypoint"], "health_check": check}.items():
    print(f"{name}=({shlex.join(words)})")
EOF
    # shellcheck disable=SC1091
    source "$work/image.sh"
}

check_configuration() {
    python3 - "$work/image.json" pyproject.toml server/xpeft_server/version.py <<'EOF' || fail "the image's configuration is not as it should be"
import json, re, sys, tomllib
config = json.load(open(sys.argv[1], encoding="utf-8"))["Docker"]["config"]
project = tomllib.load(open(sys.argv[2], "rb"))["project"]
version = re.search('VERSION: Final = "(.+)"', open(sys.argv[3], encoding="utf-8").read())[1]
labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
assert (labels["title"], labels["version"]) == (project["name"], version), labels
assert (labels["description"], labels["licenses"]) == (project["description"], project["license"]), labels
assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"]), config["User"]
assert config["StopSignal"] == "SIGTERM", config
assert sorted(config["Volumes"]) == ["/data", "/keys"], config["Volumes"]
assert config["Healthcheck"]["Test"][0] == "CMD", config["Healthcheck"]
EOF
    ok "labels, user $user, volumes, stop signal, health check: ${health_check[*]}"
}

check_content() {
    local found
    found=$(find "$root"/opt/xpeft/lib/python*/site-packages -maxdepth 1 -printf '%f\n' |
        grep -iE '^(nvidia|cuda|triton|pip|pytest)' || true)
    [ -z "$found" ] || fail "the image has $found"
    for found in /etc/pip.conf /src /wheels /root/.cache; do
        [ ! -e "$root$found" ] || fail "the build left $found"
    done
    # Where a folder of this machine was mounted, buildah leaves an empty one.
    while read -r found; do
        [ ! -d "$found" ] || [ -z "$(find "$root$found" -type f 2>/dev/null)" ] || fail "the build left $found"
    done <"$work/pip.paths"
    ok "no CUDA, no Triton, no pip, no tests, no file of the build or of this machine's pip"
    ok "$(du -sm "$root" | cut -f 1) MiB, of which $(du -sm "$root/opt/xpeft" | cut -f 1) MiB are /opt/xpeft"
}

check_confinement() {
    local status
    status=$(awk '/^(Uid|CapEff|NoNewPrivs):/ {printf "%s%s ", $1, $2}' "/proc/$(child_of "$process")/status")
    [ "$status" = "Uid:${user%:*} CapEff:0000000000000000 NoNewPrivs:1 " ] || fail "the server runs with $status"
    within sh -c 'touch /tmp/here /data/here && rm /data/here' || fail "/tmp and /data cannot be written to"
    ! within sh -c 'touch /opt/xpeft/here || touch /here' 2>/dev/null || fail "the root file system can be written to"
    ok "runs as ${user%:*}, without capabilities or new privileges, over a read-only root"
}

check_classification() {
    local key=$1 answer code
    install -o "${user%:*}" -m 0600 examples/airline.jsonl "$work/volumes/data/airline.jsonl"
    within XPEFT_API_KEY="$key" xpeft tune --data /data/airline.jsonl --epochs 3 --url "$server" --profile airline-desk \
        >"$work/tune.log" 2>&1 || fail "xpeft tune: $(tail -n 20 "$work/tune.log")"
    ok "xpeft tune in the image made a profile and uploaded it"
    code=$(ask --output /dev/null --write-out '%{http_code}' "$server/v1/profiles/airline-desk")
    [ "$code" = 401 ] || fail "without a key the answer is $code, not 401"
    answer=$(ask --header "Authorization: Bearer $key" --header 'Content-Type: application/json' \
        --data '{"profile": "airline-desk", "input": "My suitcase did not arrive"}' "$server/v1/classify")
    grep -q '"label":"baggage"' <<<"$answer" || fail "/v1/classify answers $answer"
    ok "/v1/classify through the profile: $(grep -o '"label":"[a-z]*","score":[0-9.]*' <<<"$answer")"
}

check_health() {
    within "${health_check[@]}" || fail "the health check fails beside a healthy server"
    # Frozen, it accepts connections and answers none.
    local child
    child=$(child_of "$process")
    kill -STOP "$child"
    ! within "${health_check[@]}" 2>"$work/health.log" || fail "the health check succeeds beside a frozen server"
    kill -CONT "$child"
    ok "the health check succeeds, and beside a frozen server fails: $(cat "$work/health.log")"
}

check_nothing_is_written() {
    local written
    written=$(find "$root" -xdev -newer "$work/started" ! -path "$root/data" ! -path "$root/keys" | head)
    [ -z "$written" ] || fail "outside of /data, /keys and /tmp there was written: $written"
    ok "nothing is written outside of $(find "$work/volumes" -type f -printf '/%P ')"
}

check_tls() {
    local folder=$work/volumes/keys
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=xpeft \
        -keyout "$folder/tls.key" -out "$folder/tls.pem" 2>/dev/null
    chown "$user" "$folder"/tls.*
    variables+=(XPEFT_TLS_CERTIFICATE=/keys/tls.pem XPEFT_TLS_KEY=/keys/tls.key)
    server=${server/http:/https:}
    start_server
    wait_until_ready
    check_health
    stop_server 0
    variables+=(XPEFT_TLS_CLIENT_CA=/keys/tls.pem)
    start_server
    wait_until_ready --cert "$folder/tls.pem" --key "$folder/tls.key"
    check_health
    stop_server 0
}

# A server that has just begun has no handler for signals yet.
check_early_stop() {
    start_server
    until [ "$(cat "/proc/$process/comm")" = tini ] && [ -n "$(child_of "$process")" ]; do :; done
    stop_server 143
}

work=$(mktemp -d /var/tmp/xpeft-image.XXXXXX)
trap clean_up EXIT
mkdir "$work"/volumes

step "tools"
install_tools buildah curl debootstrap git openssl python3 ip:iproute2
step "base image"
make_base
step "build, target cpu"
build
check_configuration
check_content
install -d -o "${user%:*}" -g "${user#*:}" -m 0750 "$work"/volumes/{data,keys}
touch "$work/started"
step "run"
key=$(contain keys create --tenant check --role admin 2>"$work/server.log") || fail "xpeft keys create failed"
ok "xpeft keys create"
start_server
wait_until_ready
ok "ready, without any network"
check_confinement
check_health
check_classification "$key"
[ -z "$load" ] || load_test "$key" "$server"
stop_server 0
check_early_stop
step "run, over https and with certificates of clients"
check_tls
check_nothing_is_written
if [ -n "$keep" ]; then
    store push --quiet "$image" "docker-archive:$keep:xpeft-server:check"
    ok "$keep, $(du -m "$keep" | cut -f 1) MiB"
fi
step "done"
cat <<'EOF'
This does not prove:
- Docker's official Python image: the base here is Debian's Python 3.11 by debootstrap, with other versions of libraries;
- a container engine: namespaces, mounts and capabilities are made by this script, with no seccomp filter, no AppArmor or
  SELinux, no limits of cgroups, no overlayfs, and no network but loopback;
- BuildKit: buildah reads the Dockerfile its own way, and pulls nothing;
- the target cuda, which is neither built nor run;
- torch from the Dockerfile's own index, where TORCH_INDEX says another;
- any platform but this machine's.
EOF
