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
    # As long as it takes: each request waits a second in its instance, so that a hundred are open at once however slow the machine.
    hey -z 90s -c 100 -host "$host" "http://127.0.0.1:$HTTP/sleep?ms=1000" >"$work/hey.txt" 2>&1 &
    hey_pid=$!
    start=$SECONDS
    ten() { [ "$(kubectl get deploy -l serving.knative.dev/service=busy -o jsonpath='{.items[0].status.readyReplicas}')" -ge 10 ]; }
    check "100 at once make ten instances" until_true 80 ten
    echo "         after $((SECONDS - start)) s"
    # Its answers so far, and those it waits for.
    kill -INT "$hey_pid" && wait "$hey_pid"
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
