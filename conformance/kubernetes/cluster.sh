# A real kube-apiserver with etcd, for suites that need one. Sourced after lib.sh; whoever does says what `skip` means,
# keeps an array `pids`, and kills what is in it.

# kubernetes_programs DIR: builds both as DIR/go.mod pins them, once; says in `programs` where they are
kubernetes_programs() {
    programs=$cache/kubernetes-$(cat "$1/go.mod" "$1/go.sum" | sha256sum | cut -c1-16)
    [ ! -x "$programs/kube-apiserver" ] || [ ! -x "$programs/etcd" ] || return 0
    command -v go >/dev/null || skip "no Go to build kube-apiserver and etcd with"
    echo "building kube-apiserver and etcd into $programs; this takes minutes, once"
    mkdir -p "$programs"
    local output
    output=$(cd "$1" && GOWORK=off go mod download 2>&1) || skip "Go cannot fetch the modules: $output"
    # One package at a time: both programs together want more memory than a small machine has.
    build() (
        cd "$1" && GOWORK=off nice go build -p "${GO_BUILD_JOBS:-1}" -trimpath -buildvcs=false -ldflags='-s -w' \
            -o "$programs/$2.new" "$3" && mv "$programs/$2.new" "$programs/$2"
    )
    build "$1" etcd go.etcd.io/etcd/server/v3 && build "$1" kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver ||
        { echo "FAILED   kube-apiserver and etcd build"; exit 1; }
}

free_ports() { python3 -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in sockets])' "$1"; }
answers() { python3 -c 'import ssl, sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=2, context=ssl._create_unverified_context())' "$1"; }

# kubernetes_starts WORK TOKEN USER: both programs on free ports of loopback; says in `api_port` where. The token is USER's,
# who may do everything.
kubernetes_starts() {
    local work=$1 etcd_port peer_port
    read -r etcd_port peer_port api_port <<<"$(free_ports 3)"
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/sa.key" 2>/dev/null
    echo "$2,$3,$3,\"system:masters\"" >"$work/tokens.csv"
    "$programs/etcd" --data-dir "$work/etcd" --unsafe-no-fsync --log-level error \
        --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
        --listen-peer-urls "http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
        --initial-cluster "default=http://127.0.0.1:$peer_port" >"$work/etcd.log" 2>&1 &
    pids+=($!)
    until_true 30 answers "http://127.0.0.1:$etcd_port/health" || { echo "FAILED   etcd does not start"; exit 1; }
    # Admission plugins that write what belongs to a cluster's own make-up (tokens, priorities, tolerations) are off: ours has
    # none of them, and the contract is the same without.
    "$programs/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" --secure-port "$api_port" --bind-address 127.0.0.1 \
        --cert-dir "$work/certs" --token-auth-file "$work/tokens.csv" --authorization-mode RBAC \
        --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$work/sa.key" \
        --service-account-key-file "$work/sa.key" --service-cluster-ip-range 10.0.0.0/24 --endpoint-reconciler-type none \
        --disable-admission-plugins ServiceAccount,Priority,DefaultTolerationSeconds,TaintNodesByCondition,RuntimeClass,StorageObjectInUseProtection \
        >"$work/kube-apiserver.log" 2>&1 &
    pids+=($!)
}

kubernetes_ready() { until_true 120 answers "https://127.0.0.1:$api_port/readyz"; }
