# Load makes more instances, and quiet makes fewer.

if command -v hey >/dev/null; then
    kubectl apply -f - >/dev/null <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: busy}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/window: "6s", autoscaling.knative.dev/target: "10"}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo}]}
YAML
    check "busy is ready" kubectl wait --for=condition=Ready ksvc/busy --timeout=60s
    host=$(kubectl get ksvc busy -o jsonpath='{.status.url}')
    host=${host#http://}
    hey -z 15s -c 100 -host "$host" "http://127.0.0.1:$HTTP/sleep?ms=100" >"$work/hey.txt" 2>&1 &
    hey_pid=$!
    most=0
    while kill -0 "$hey_pid" 2>/dev/null; do
        now=$(kubectl get deploy -l serving.knative.dev/service=busy -o jsonpath='{.items[0].status.readyReplicas}')
        [ "${now:-0}" -gt "$most" ] && most=$now
        until_true 1 false
    done
    wait "$hey_pid"
    if [ "$most" -ge 10 ]; then ok "100 at once make $most instances"; else bad "100 at once make ten instances" "at most $most"; fi
    if [ "$(grep -cE '^ *\[[0-9]+\]' "$work/hey.txt")" -eq 1 ] && grep -q '\[200\]' "$work/hey.txt" && ! grep -q 'Error distribution' "$work/hey.txt"; then
        ok "every answer was good: $(sed -n 's/.*\[200\]\s*//p' "$work/hey.txt")"
    else
        bad "every answer was good" "$(sed -n '/Status code/,$p' "$work/hey.txt")"
    fi
    quiet() { [ "$(kubectl get deploy -l serving.knative.dev/service=busy -o jsonpath='{.items[0].spec.replicas}')" = 0 ]; }
    check "and none when it is quiet" until_true 60 quiet
else
    skip "load: hey is missing"
fi
