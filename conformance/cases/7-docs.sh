# What a reader of Knative's public documentation types, with an image that is not ours: busybox that greets its TARGET.

greeter() { # an OCI image, made by umoci, pushed by skopeo
    command -v umoci >/dev/null && command -v skopeo >/dev/null && [ -x /bin/busybox ] || return 2
    local oci=$work/greeter rootfs=$work/greeter-bundle/rootfs
    umoci init --layout "$oci" && umoci new --image "$oci:latest" && umoci unpack --image "$oci:latest" "$work/greeter-bundle" || return 1
    mkdir -p "$rootfs/bin" "$rootfs/www"
    cp /bin/busybox "$rootfs/bin/"
    umoci repack --image "$oci:latest" "$work/greeter-bundle" &&
        umoci config --image "$oci:latest" --config.entrypoint /bin/busybox --config.entrypoint sh --config.entrypoint -c \
            --config.cmd 'echo "Hello $TARGET!" >/www/index.html; exec /bin/busybox httpd -f -p "$PORT" -h /www' &&
        skopeo copy -q --dest-tls-verify=false "oci:$oci:latest" "docker://$REGISTRY/knative/helloworld-go:latest"
}
documented() { sed "s#ghcr.io/#$REGISTRY/#" "conformance/docs/$1.yaml"; }
settled() { # settled NAME: the controllers have seen what was applied
    [ "$(kubectl get ksvc "$1" -o jsonpath='{.status.observedGeneration}')" = "$(kubectl get ksvc "$1" -o jsonpath='{.metadata.generation}')" ]
}

if [ "$(id -u)" -ne 0 ]; then
    skip "the documentation's manifests: containers with a network of their own need root"
elif greeter >"$work/greeter.log" 2>&1; then
    kubectl delete ksvc hello --wait --timeout=60s >/dev/null 2>&1
    documented first-service >"$work/hello.yaml"
    expect "documented: the first service" 'service.serving.knative.dev/hello created' kubectl apply -f "$work/hello.yaml"
    check "documented: it is ready" kubectl wait --for=condition=Ready ksvc/hello --timeout=60s
    hello=$(kubectl get ksvc hello -o jsonpath='{.status.url}')
    expect "documented: it greets" '^Hello World!$' curl -s --max-time 10 "$hello"
    documented first-traffic-split >"$work/hello.yaml"
    expect "documented: the split" 'hello configured' kubectl apply -f "$work/hello.yaml"
    check "documented: the split is seen" until_true 30 settled hello
    check "documented: the split is ready" kubectl wait --for=condition=Ready ksvc/hello --timeout=60s
    both() { seq 20 | xargs -I{} curl -s --max-time 10 "$hello" | sort | uniq -c | awk '{ print $3 "=" $1 }' | xargs; }
    expect "documented: half and half" '^Knative!=(9|10|11) World!=(9|10|11)$' both
    documented scale-bounds >"$work/bounds.yaml"
    expect "documented: scale bounds" 'helloworld-go created' kubectl apply -f "$work/bounds.yaml"
    check "documented: they are ready" kubectl wait --for=condition=Ready ksvc/helloworld-go --timeout=60s
    three() { [ "$(kubectl get pod -l serving.knative.dev/service=helloworld-go -o name | wc -l)" -eq 3 ]; }
    check "documented: three instances" three
    kubectl delete -f "$work/hello.yaml" -f "$work/bounds.yaml" >/dev/null
else
    skip "the documentation's manifests: $(tail -n 1 "$work/greeter.log" 2>/dev/null || echo 'umoci, skopeo or a static busybox is missing')"
fi
