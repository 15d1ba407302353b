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
