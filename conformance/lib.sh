# What the scripts of this folder share. To be sourced.

# until_true SECONDS COMMAND...: waits for a fact, with a deadline
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        read -rt 0.05 <> <(:) || true
    done
}

# Where suites keep what they build from other people's modules, and what they and the platform said.
cache=${NEAP_CONFORMANCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/neap-conformance}
logs=${LOGS:-$cache/logs}

# built_once NAME COUNT: calls `build DIR` unless it was done for this go.sum, suites.go and Go; COUNT counts changes of
# `build` itself. Says in `built` where it is. The suite says what `skip` and `die` mean.
built_once() {
    built=$cache/$1-$(cat go.sum suites.go <(go version) <(echo "$2") | sha256sum | head -c 16)
    [ ! -d "$built" ] || return 0
    local start=$SECONDS fresh output
    output=$(go mod download 2>&1) || skip "Go cannot fetch the modules: $output"
    mkdir -p "$cache"
    find "$cache" -mindepth 1 -maxdepth 1 -type d -name "$1-*" -exec rm -rf {} +
    fresh=$(mktemp -d "$cache/$1-new.XXXXXX")
    build "$fresh" || { rm -rf "$fresh"; die "what the suite consists of builds"; }
    mv "$fresh" "$built"
    echo "      built in $((SECONDS - start)) s: $built"
}

# platform [FLAG...]: a `neap up` of the suite's own on free ports, with its registry in `registry` and a folder in `work`, until
# the suite ends. NEAP names a binary that is built already.
platform() {
    NEAP=${NEAP:-}
    if [ -z "$NEAP" ]; then
        (cd ../.. && cargo build -q -p neap --locked) || die "neap builds"
        NEAP=${CARGO_TARGET_DIR:-../../target}/debug/neap
    fi
    work=$(mktemp -d)
    neap_pid=
    trap platform_ends EXIT
    mkdir -p "$logs"
    # What an earlier run said must not be taken for this one's.
    rm -f "$logs/up.out"
    "$NEAP" up --data-dir "$work/data" --api-port 0 --http-port 0 --https-port 0 --registry-port 0 "$@" >"$logs/up.out" 2>"$logs/up.log" &
    neap_pid=$!
    until_true 90 grep -q '^ready' "$logs/up.out" || { tail -n 20 "$logs/up.log"; die "neap up is ready"; }
    registry=$(sed -n 's/.*"registry": "\([^"]*\)".*/\1/p' "$work/data/endpoints.json")
    export KUBECONFIG=$work/data/kubeconfig SYSTEM_NAMESPACE=knative-serving
}
platform_ends() {
    [ -z "$neap_pid" ] || { kill -INT "$neap_pid" 2>/dev/null; wait "$neap_pid" 2>/dev/null; }
    rm -rf "$work"
}

# pushed LAYOUT NAME: an image that `image` made, into the platform's registry
pushed() {
    skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$1:$TAG" "docker://$registry/$2:$TAG"
}

# For suites that bring programs of their own: an image of a program, as ko makes it, without a registry or a daemon.

blob() { # blob DIR FILE: moves a file to where a layout keeps it, prints its digest
    local digest
    digest=$(sha256sum "$2" | head -c 64)
    mv "$2" "$1/blobs/sha256/$digest"
    echo "$digest"
}

layer() { # layer DIR FILE: the layer of what is below DIR
    tar -C "$1" --sort=name --mtime=@0 --numeric-owner -cf "$2" .
}

# image PROGRAM LAYOUT TAG: a base with a user that is not root, and the program above it. Layers stay uncompressed: they
# travel over loopback only.
image() {
    local name layout=$2 tag=$3 root base app config manifest size config_size manifest_size
    name=$(basename "$1")
    root=$(mktemp -d)
    mkdir -p "$layout/blobs/sha256" "$root/base"/{etc,tmp,home/nonroot,var/run/ko} "$root/app/ko-app"
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >"$root/base/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/base/etc/group"
    chmod 1777 "$root/base/tmp"
    chown 65532:65532 "$root/base/home/nonroot"
    install -m 555 "$1" "$root/app/ko-app/$name"
    layer "$root/base" "$root/base.tar" && layer "$root/app" "$root/app.tar" || return 1
    size=("$(stat -c %s "$root/base.tar")" "$(stat -c %s "$root/app.tar")")
    base=$(blob "$layout" "$root/base.tar") app=$(blob "$layout" "$root/app.tar")
    cat >"$root/config" <<JSON
{"architecture":"$(go env GOARCH)","os":"linux","config":{"User":"65532","WorkingDir":"/home/nonroot",
"Entrypoint":["/ko-app/$name"],"Env":["PATH=/usr/local/bin:/usr/bin:/bin:/ko-app","KO_DATA_PATH=/var/run/ko"]},
"rootfs":{"type":"layers","diff_ids":["sha256:$base","sha256:$app"]}}
JSON
    config_size=$(stat -c %s "$root/config")
    config=$(blob "$layout" "$root/config")
    local tar=application/vnd.oci.image.layer.v1.tar
    cat >"$root/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_size},
"layers":[{"mediaType":"$tar","digest":"sha256:$base","size":${size[0]}},{"mediaType":"$tar","digest":"sha256:$app","size":${size[1]}}]}
JSON
    manifest_size=$(stat -c %s "$root/manifest")
    manifest=$(blob "$layout" "$root/manifest")
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest",
"size":$manifest_size,"annotations":{"org.opencontainers.image.ref.name":"$tag"}}]}
JSON
    rm -rf "$root"
}
