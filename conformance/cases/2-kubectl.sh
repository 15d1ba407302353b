# Stock kubectl and an image that is not ours.

export IMAGE=$REGISTRY/strangers/web:1

build_image() { # busybox's web server in an OCI image, made by umoci
    command -v umoci >/dev/null && command -v skopeo >/dev/null && [ -x /bin/busybox ] || return 2
    local oci=$work/oci
    umoci init --layout "$oci" && umoci new --image "$oci:web" && umoci unpack --image "$oci:web" "$work/bundle" || return 1
    mkdir -p "$work/bundle/rootfs/bin" "$work/bundle/rootfs/www"
    cp /bin/busybox "$work/bundle/rootfs/bin/"
    echo "a stranger's page" >"$work/bundle/rootfs/www/index.html"
    umoci repack --image "$oci:web" "$work/bundle" &&
        umoci config --image "$oci:web" --config.entrypoint /bin/busybox --config.cmd httpd --config.cmd -f --config.cmd -p \
            --config.cmd 8080 --config.cmd -h --config.cmd /www
}

stranger() {
    cat <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: stranger
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/window: "6s"
        autoscaling.knative.dev/target: "10"
    spec:
      containers:
        - image: $IMAGE
          ports:
            - containerPort: 8080
          env:
            - name: TARGET
              value: "Go Sample v1"
YAML
}

if [ "$(id -u)" -ne 0 ]; then
    skip "an image that is not ours: containers with a network of their own need root"
elif build_image >"$work/umoci.log" 2>&1; then
    check "skopeo copies into the registry" skopeo copy -q --dest-tls-verify=false "oci:$work/oci:web" "docker://$IMAGE"
    stranger >"$work/stranger.yaml"
    expect "kubectl apply" 'service.serving.knative.dev/stranger created' kubectl apply -f "$work/stranger.yaml"
    check "kubectl wait" kubectl wait --for=condition=Ready ksvc/stranger --timeout=60s
    url=$(kubectl get ksvc stranger -o jsonpath='{.status.url}')
    expect "curl with the printed URL" "a stranger's page" curl -s --max-time 10 "$url"
else
    skip "an image that is not ours: $(tail -n 1 "$work/umoci.log" 2>/dev/null || echo 'umoci, skopeo or a static busybox is missing')"
fi

columns() { kubectl get "$1" | sed -n 1p | tr -s ' '; }
expect "columns of services" '^NAME URL LATESTCREATED LATESTREADY READY REASON' columns ksvc
expect "columns of revisions" '^NAME CONFIG NAME GENERATION READY REASON ACTUAL REPLICAS DESIRED REPLICAS' columns rev
expect "columns of autoscalers" '^NAME DESIREDSCALE ACTUALSCALE READY REASON' columns kpa
expect "columns of serverless services" '^NAME MODE ACTIVATORS SERVICENAME PRIVATESERVICENAME READY REASON' columns sks
expect "columns of deployments" '^NAME READY UP-TO-DATE AVAILABLE AGE' columns deploy
check "every kind at once" kubectl get ksvc,rt,cfg,rev,kpa,king,sks,deploy,pod

expect "server-side apply" 'serverside-applied' kubectl apply --server-side --force-conflicts -f - <<YAML
apiVersion: v1
kind: ConfigMap
metadata: {name: applied}
data: {a: "1"}
YAML
diff_says() { kubectl diff -f - <<<'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":{"a":"2"}}'; [ $? -eq 1 ]; }
expect "diff" '^\+  a: "2"' diff_says
edit() { printf '#!/bin/sh\nsed -i "s/a: \\"1\\"/a: \\"edited\\"/" "$1"\n' >"$work/editor"; chmod +x "$work/editor"; EDITOR=$work/editor kubectl edit cm applied; }
expect "edit" 'configmap/applied edited' edit
expect "patch, json" 'patched' kubectl patch cm applied --type=json -p '[{"op":"add","path":"/data/b","value":"2"}]'
expect "patch, merge" 'patched' kubectl patch cm applied --type=merge -p '{"data":{"c":"3"}}'
expect "patch, strategic" 'patched' kubectl patch deploy hello-00001-deployment -p '{"metadata":{"annotations":{"who":"us"}}}'
expect "explain" 'DESCRIPTION' kubectl explain ksvc.spec.template
expect "auth whoami" 'neap-admin' kubectl auth whoami
expect "api-resources" 'serving.knative.dev/v1 +true +Revision' kubectl api-resources
expect "describe" 'Events:' kubectl describe ksvc hello
watch() { timeout 3 kubectl get ksvc -w; [ $? -eq 124 ]; }
expect "get -w" 'hello' watch
expect "a wrong field is refused" 'unknown field "spec.template.spec.containres"' \
    bash -c 'kubectl apply -f - <<<"{\"apiVersion\":\"serving.knative.dev/v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"wrong\"},\"spec\":{\"template\":{\"spec\":{\"containres\":[]}}}}" 2>&1; true'
expect "delete in the foreground" 'deleted' kubectl delete ksvc stranger --cascade=foreground --ignore-not-found --timeout=60s
