#!/usr/bin/env bash
# check-kubernetes.sh [--load NAME] IMAGE PROGRAMS: installs both overlays on a cluster of one node, by the commands of
# docs/kubernetes.md, and classifies through them. IMAGE is what check-image.sh --keep leaves; PROGRAMS a folder with
# kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy and kubelet: kubernetes/server/bin of a release.
#
# For root on Debian 12, with xpeft and kubectl on the PATH. Installs what it needs by apt-get; everything else is in a
# folder that is gone at the end. etcd, containerd and the network's plugins are Debian's, unpacked and not installed;
# all of it runs in namespaces of its own. DEBIAN_MIRROR is where Redis comes from. --load runs load-test.sh NAME
# against the Service of one server; xpeft then needs the extra bench.
set -euo pipefail

load=
if [ "${1-}" = --load ] && [ "$#" -ge 2 ]; then
    load=$2
    shift 2
fi
if [ "$#" != 2 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: deploy/check-kubernetes.sh [--load NAME] IMAGE PROGRAMS" >&2
    exit 2
fi
archive=$(realpath -e "$1")
programs=$(realpath -e "$2")
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

server=
work=

# shellcheck source=deploy/namespaces.sh
source deploy/namespaces.sh
# shellcheck source=deploy/cluster.sh
source deploy/cluster.sh

fail() {
    printf 'check-kubernetes: %s\n' "$*" >&2
    if [ -e "$work/logs" ]; then
        timeout 20 nsenter --target "$process" --net -- kubectl --namespace xpeft get events,pods >&2 || true
        tail -n 3 "$work"/logs/* "$work/cluster.log" >&2
    fi
    exit 1
}

here() { kubectl --namespace xpeft "$@"; }

# documented WORDS: the block of docs/kubernetes.md that begins so.
documented() { sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" docs/kubernetes.md | sed '1d;$d'; }

# as_a_reader COMMANDS: beside a checkout of the repository, on the node's network; prints the key that they show.
as_a_reader() {
    (cd "$work/reader" && nsenter --target "$process" --net -- bash -euo pipefail -c "$1") \
        >"$work/reader.log" 2>"$work/reader.err" || fail "$(tail "$work/reader.err")"
    ! grep -i -m 1 warning "$work/reader.err" >&2 || fail "kubectl warns, see above"
    grep -o 'xp_[A-Za-z0-9_-]*' "$work/reader.log" || true
}

# status_of PATH KEY
status_of() { ask --output /dev/null --write-out '%{http_code}' --header "Authorization: Bearer $2" "$server$1"; }
is_taken() { [ "$(status_of /v1/models "$1")" = 200 ]; }
is_ready() { ask --fail --output /dev/null "$server/ready"; }

classify() {
    ask "${@:2}" --header "Authorization: Bearer $1" --header 'Content-Type: application/json' \
        --data '{"profile": "airline-desk", "input": "My suitcase did not arrive"}' "$server/v1/classify"
}

# classifies KEY: prints what the profile says.
classifies() {
    local answer
    answer=$(classify "$1")
    grep -o '"label":"baggage","score":[0-9.]*' <<<"$answer" || fail "/v1/classify answers $answer"
}

tune() {
    here exec --stdin deployment/xpeft-server -- sh -c 'cat >/tmp/airline.jsonl' <examples/airline.jsonl
    here exec deployment/xpeft-server -- env XPEFT_API_KEY="$1" xpeft tune --data /tmp/airline.jsonl --epochs 3 \
        --url http://127.0.0.1:8000 --profile airline-desk >"$work/tune.log" 2>&1 ||
        fail "xpeft tune: $(tail -n 20 "$work/tune.log")"
}

# find_service: its address, which leads on by kube-proxy.
find_service() {
    server=http://$(here get service xpeft-server --output jsonpath='{.spec.clusterIP}'):8000
    wait_for 60 is_ready
}

restarts() { here get pods --output jsonpath='{.items[*].status.containerStatuses[*].restartCount}'; }
ready_addresses() {
    here get endpointslices --selector kubernetes.io/service-name=xpeft-server --output go-template='
        {{- range .items}}{{range .endpoints}}{{if .conditions.ready}}{{index .addresses 0}}{{"\n"}}{{end}}{{end}}{{end}}'
}
are_ready() { [ "$(ready_addresses | wc -w)" = "$1" ]; }

install_one_server() {
    make_volume
    mkdir -p "$work/reader/xpeft"
    ln -s "$PWD" "$work/reader/xpeft-server"
    documented "yaml own-single" >"$work/reader/xpeft/kustomization.yaml"
    key=$(as_a_reader "$(documented "sh needs-kubernetes single")")
    here rollout status deployment/xpeft-server --timeout 300s >/dev/null || fail "the roll-out did not end"
    ok "overlays/single by the five commands of the documentation, without a warning; the server is ready"
    find_service
    is_taken "$key" || fail "the tenant's key is not taken"
    [ "$(status_of /v1/models none)" = 401 ] || fail "another key is taken"
}

check_admission() {
    local said
    said=$(here run root --image localhost/stand-in:check --dry-run=server 2>&1) && fail "any pod is admitted: $said"
    grep -q 'violates PodSecurity "restricted' <<<"$said" || fail "$said"
    ok "the namespace refuses a pod that is less confined"
}

check_confinement() {
    local status owner
    status=$(here exec deployment/xpeft-server -- cat /proc/1/status |
        awk '/^(Uid|Groups|CapEff|CapBnd|NoNewPrivs|Seccomp):/ {print $2}' | xargs)
    [ "$status" = "10001 10001 0000000000000000 0000000000000000 1 2" ] || fail "the server runs with $status"
    ! here exec deployment/xpeft-server -- touch /here 2>/dev/null || fail "the root file system can be written to"
    owner=$(stat --format %u:%g "$work/volume/xpeft.db")
    [ "$owner" = 10001:10001 ] || fail "the profiles' file is $owner's"
    [ "$(here exec deployment/xpeft-server -- printenv OMP_NUM_THREADS)" = 2 ] || fail "OMP_NUM_THREADS"
    ok "runs as 10001, without capabilities or new privileges, with a seccomp filter, over a read-only root; its" \
        "volume is its own, and its threads are the cores that it asked for"
}

check_port_forward() {
    local forward service=$server
    read -ra forward < <(documented "sh needs-kubernetes look" | tail -n 1)
    nsenter --target "$process" --net -- "${forward[@]}" >/dev/null &
    server=http://127.0.0.1:8000
    wait_for 30 is_ready
    kill "$!"
    wait "$!" 2>/dev/null || true
    server=$service
    ok "${forward[*]} leads to it"
}

check_another_key() {
    local began=$SECONDS other
    other=$(as_a_reader "$(documented "sh needs-kubernetes another-key")")
    wait_for 180 is_taken "$other"
    [ "$(restarts)" = 0 ] || fail "the server was restarted"
    ok "a key that was added to the Secret is taken $((SECONDS - began)) s later, without a restart"
}

check_new_roll_out() {
    here rollout restart deployment/xpeft-server >/dev/null
    here rollout status deployment/xpeft-server --timeout 300s >/dev/null || fail "the roll-out did not end"
    wait_for 60 is_ready
    ok "after another roll-out the profile is there: $(classifies "$1")"
}

# several_servers: the overlay of one server on standard input, for several: without the operator that knows
# ServiceMonitors, and with requests of which four fit on a small machine.
several_servers() {
    sed 's/single$/ha/'
    cat <<'EOF'
patches:
  - target: {kind: ServiceMonitor}
    patch: |-
      $patch: delete
      kind: any
      metadata: {name: any}
  - patch: |-
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: xpeft-server}
      spec: {template: {spec: {containers: [{name: server, resources: {requests: {cpu: 250m, memory: 1Gi}}}]}}}
EOF
}

install_several_servers() {
    local redis
    here delete --kustomize "$work/reader/xpeft" --wait >/dev/null
    redis=$(install_redis)
    as_a_reader "$(documented "sh needs-kubernetes redis" | sed "s#redis://.*/0#redis://$redis:6379/0#")"
    documented "yaml own-single" | several_servers >"$work/reader/xpeft/kustomization.yaml"
    as_a_reader "kubectl apply -k xpeft"
    wait_for 300 are_ready 3
    ok "overlays/ha over Redis: without a metric the autoscaler keeps three servers, which are ready"
    [ "$(here get poddisruptionbudget xpeft-server --output jsonpath='{.status.disruptionsAllowed}')" = 1 ] ||
        fail "the disruption budget does not allow one"
    find_service
}

# Accepted by the API server, no more: nothing here has a GPU, a hub or limits.
check_components() {
    local component overlay=$work/reader/with/kustomization.yaml
    mkdir "$work/reader/with"
    for component in tenant-limits hub; do
        documented "yaml own-single" | several_servers >"$overlay"
        printf 'components: [../xpeft-server/deploy/kubernetes/components/%s]\n' "$component" >>"$overlay"
        as_a_reader "kubectl apply -k with --dry-run=server"
    done
    documented "yaml own-gpu" | several_servers >"$overlay"
    as_a_reader "kubectl kustomize with | grep 'image: registry.example.com/xpeft-server:0.1.0-cuda$'"
    as_a_reader "kubectl apply -k with --dry-run=server"
    ok "with each of the other components the API server takes it, too, that for GPUs with the image for GPUs"
}

check_shared_profiles() {
    local pod said
    tune "$1"
    for pod in $(ready_addresses); do
        said=$(server=http://$pod:8000 classifies "$1")
        ok "the server at $pod has the profile: $said"
    done
}

check_roll_out_under_traffic() {
    local answers
    : >"$work/traffic"
    while [ -e "$work/traffic" ]; do
        classify "$1" --output /dev/null --write-out '%{http_code}\n' || true
        sleep 0.05
    done >"$work/answers" &
    here rollout restart deployment/xpeft-server >/dev/null
    here rollout status deployment/xpeft-server --timeout 600s >/dev/null || fail "the roll-out did not end"
    # Until the last of the old ones has gone.
    wait_for 120 are_pods 3
    rm "$work/traffic"
    wait "$!"
    answers=$(sort "$work/answers" | uniq -c | xargs)
    [ "$(sort -u "$work/answers")" = 200 ] || fail "answers in a roll-out of three servers, with their number: $answers"
    ok "a roll-out of three servers under requests with a connection each: $(wc -l <"$work/answers") answers, all 200"
}
are_pods() { [ "$(here get pods --output name | wc -l)" = "$1" ]; }

check_redis_is_away() {
    local pod
    pod=$(ready_addresses | head -n 1)
    kubectl --namespace redis scale deployment/redis --replicas 0 >/dev/null
    wait_for 90 are_ready 0
    (server=http://$pod:8000 classifies "$1") >/dev/null
    ok "without Redis no server is in the Service; asked directly, one answers with the profile that it has ready"
    kubectl --namespace redis scale deployment/redis --replicas 1 >/dev/null
    wait_for 90 are_ready 3
    [ "$(restarts)" = "0 0 0" ] || fail "restarts: $(restarts)"
    ok "with Redis all three are, and none was restarted: $(classifies "$1")"
}

work=$(mktemp -d /var/tmp/xpeft-kubernetes.XXXXXX)
trap clean_up EXIT
export KUBECONFIG=$work/admin.conf NO_PROXY='*'

step "tools"
install_tools buildah curl debootstrap ip:iproute2 iptables nsenter:util-linux openssl sysctl:procps
for program in kubectl xpeft "$programs"/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet}; do
    command -v "$program" >/dev/null || fail "$program is not there"
done
unpack containerd containernetworking-plugins etcd-server runc
step "cluster"
start_cluster
load_images "$archive"
step "one server"
key=
install_one_server
check_admission
check_confinement
check_port_forward
tune "$key"
ok "xpeft tune in the pod made a profile and uploaded it; through the Service: $(classifies "$key")"
if [ -n "$load" ]; then
    step "load"
    load_test "$key" "$server"
fi
check_another_key
check_new_roll_out "$key"
step "several servers"
install_several_servers
check_components
check_shared_profiles "$key"
check_roll_out_under_traffic "$key"
check_redis_is_away "$key"
step "done"
cat <<'EOF'
This does not prove:
- policies: the network of this cluster enforces none;
- several nodes: no spreading over them, no draining, no eviction;
- names: there is no DNS, so that Redis is told by its address;
- the autoscaler's metric, Prometheus and the ServiceMonitor: without them the autoscaler keeps the least number;
- the requests of overlays/ha, which were made smaller for this machine, and a volume that a cluster makes by itself;
- the components: the API server took them, and nothing of theirs was run;
- TLS, which no server here speaks;
- a registry: the image was loaded.
EOF
