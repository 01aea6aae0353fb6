# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by check-kubernetes.sh: a cluster of one node, in namespaces of its own.
#
# Takes from there: work (a folder), programs (another, with those of a release of Kubernetes), fail, and namespaces.sh.

address=10.123.0.1

# kubectl ARGUMENT…: from the node's network.
kubectl() { nsenter --target "$process" --net -- kubectl "$@"; }

images() { ctr --address "$work/containerd.sock" --namespace k8s.io images "$@" >>"$work/images.log" 2>&1; }

# sign NAME SUBJECT EXTENSION: a key, and its certificate by the cluster's authority.
sign() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -days 1 -extfile <(echo "$3") -out "$1.pem"
}

make_certificates() {
    mkdir "$work/keys"
    (
        cd "$work/keys"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=ca \
            -keyout ca.key -out ca.pem
        sign server /CN=kube-apiserver "subjectAltName=IP:$address,IP:10.96.0.1"
        sign admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
        sign node /O=system:nodes/CN=system:node:node extendedKeyUsage=clientAuth
        openssl genrsa -out accounts.key 2048
    ) 2>"$work/openssl.log" || fail "openssl: $(tail -n 3 "$work/openssl.log")"
    local user
    for user in admin node; do
        kubectl_config "$user" >"$work/$user.conf"
    done
}

kubectl_config() {
    cat <<EOF
apiVersion: v1
kind: Config
current-context: check
contexts: [{name: check, context: {cluster: check, user: $1}}]
clusters: [{name: check, cluster: {server: "https://$address:6443", certificate-authority: $work/keys/ca.pem}}]
users: [{name: $1, user: {client-certificate: $work/keys/$1.pem, client-key: $work/keys/$1.key}}]
EOF
}

configure_node() {
    mkdir -p "$work/network"
    cat >"$work/network/pods.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam":
    {"type": "host-local", "dataDir": "/run/pods", "ranges": [[{"subnet": "10.200.0.0/24"}]],
     "routes": [{"dst": "0.0.0.0/0"}]}}]}
EOF
    cat >"$work/containerd.toml" <<EOF
version = 2
root = "$work/containers"
state = "/run/containerd"
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/stand-in:check"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$work/tools/usr/lib/cni"
    conf_dir = "$work/network"
EOF
    cat >"$work/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$work/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $work/keys/ca.pem}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /${work##*/}
failCgroupV1: false
failSwapOn: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
EOF
}

# run_cluster WORK ADDRESS: as process 1. The node's network leads nowhere.
run_cluster() {
    local work=$1 address=$2 keys=$1/keys logs=$1/logs controllers
    write_apart "$work/apart"
    mount --make-rshared /
    ip link add node type bridge
    ip address add "$address/24" dev node
    ip link set node up
    ip route add default via "${address%.*}.254" dev node
    sysctl --quiet --write net.ipv4.ip_forward=1
    controllers=(/sys/fs/cgroup/*)
    [ ! -e /sys/fs/cgroup/cgroup.procs ] || controllers=(/sys/fs/cgroup)
    mkdir "${controllers[@]/%//${work##*/}}"
    mkdir "$logs"
    etcd --data-dir "$work/etcd" --log-level error >"$logs/etcd" 2>&1 &
    kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "$address" \
        --service-cluster-ip-range 10.96.0.0/16 --authorization-mode Node,RBAC \
        --enable-admission-plugins NodeRestriction --client-ca-file "$keys/ca.pem" \
        --tls-cert-file "$keys/server.pem" --tls-private-key-file "$keys/server.key" \
        --kubelet-client-certificate "$keys/admin.pem" --kubelet-client-key "$keys/admin.key" \
        --kubelet-preferred-address-types InternalIP --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$keys/accounts.key" --service-account-signing-key-file "$keys/accounts.key" \
        >"$logs/kube-apiserver" 2>&1 &
    containerd --config "$work/containerd.toml" >"$logs/containerd" 2>&1 &
    until KUBECONFIG=$work/admin.conf kubectl get --raw /readyz >/dev/null 2>&1; do sleep 1; done
    kube-controller-manager --kubeconfig "$work/admin.conf" --leader-elect=false --root-ca-file "$keys/ca.pem" \
        --service-account-private-key-file "$keys/accounts.key" >"$logs/kube-controller-manager" 2>&1 &
    kube-scheduler --kubeconfig "$work/admin.conf" --leader-elect=false >"$logs/kube-scheduler" 2>&1 &
    kube-proxy --kubeconfig "$work/admin.conf" --hostname-override node --cluster-cidr 10.200.0.0/24 \
        --conntrack-max-per-core 0 >"$logs/kube-proxy" 2>&1 &
    kubelet --config "$work/kubelet.yaml" --kubeconfig "$work/node.conf" --hostname-override node \
        --node-ip "$address" >"$logs/kubelet" 2>&1 &
    wait
}

start_cluster() {
    make_certificates
    configure_node
    PATH=$programs:$PATH unshare --mount --pid --net --ipc --uts --fork --kill-child -- \
        bash -euc "$(declare -f write_apart run_cluster); run_cluster \"\$@\"" - "$work" "$address" \
        >"$work/cluster.log" 2>&1 &
    runner=$!
    find_process
    wait_for 120 node_is_ready
    ok "Kubernetes $(kubectl get node node --output jsonpath='{.status.nodeInfo.kubeletVersion}')," \
        "kubectl $(kubectl version --client 2>/dev/null | sed -n 's/^Client Version: //p')," \
        "$(kubectl get node node --output jsonpath='{.status.nodeInfo.containerRuntimeVersion}')"
}
node_is_ready() {
    kill -0 "$process" 2>/dev/null || fail "the cluster has ended"
    kubectl get node node --output jsonpath='{.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null | grep -q True
}

# load_images ARCHIVE: the server's under the name that the documentation gives it; and a stand-in, which is Redis, or a
# pod's sandbox, which waits.
load_images() {
    local container root
    images import "$1" || fail "ctr: $(tail -n 3 "$work/images.log")"
    images tag docker.io/library/xpeft-server:check registry.example.com/xpeft-server:0.1.0
    container=$(store from scratch)
    root=$(store mount "$container")
    make_stand_in "$root" redis-server
    ok "the server's image; Redis and the sandbox are Debian's," \
        "$(chroot "$root" redis-server --version | cut -d ' ' -f 1-3)"
    store config --env PATH=/usr/sbin:/usr/bin:/sbin:/bin --cmd '["sleep", "infinity"]' "$container"
    store commit --quiet --format docker --rm "$container" localhost/stand-in:check >/dev/null
    store push --quiet localhost/stand-in:check "docker-archive:$work/stand-in.tar:localhost/stand-in:check"
    images import "$work/stand-in.tar" || fail "ctr: $(tail -n 3 "$work/images.log")"
    rm -r "$work/storage" "$work/stand-in.tar"
}

# make_volume: what a claim finds, local to the node.
make_volume() {
    mkdir "$work/volume"
    kubectl apply --filename - <<EOF >/dev/null
apiVersion: v1
kind: PersistentVolume
metadata: {name: data}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  local: {path: $work/volume}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}
EOF
}

# install_redis: as the documentation wants it, and its data outlive it; prints its address.
install_redis() {
    kubectl create namespace redis >/dev/null
    kubectl --namespace redis apply --filename - <<EOF >/dev/null
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: redis}}
    spec:
      containers:
        - name: redis
          image: localhost/stand-in:check
          command: [redis-server, --appendonly, "yes", --appendfsync, always, --maxmemory-policy, noeviction,
                    --protected-mode, "no", --dir, /data]
          readinessProbe: {exec: {command: [redis-cli, ping]}}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, hostPath: {path: $work/redis, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379}]}
EOF
    kubectl --namespace redis rollout status deployment/redis --timeout 120s >/dev/null || fail "no Redis"
    kubectl --namespace redis get service redis --output jsonpath='{.spec.clusterIP}'
}
