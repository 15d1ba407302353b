# Two revisions, tags, a split, and the way back under load.

kubectl apply -f - >/dev/null <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: split}
spec:
  template:
    metadata: {name: split-one, annotations: {autoscaling.knative.dev/min-scale: "1"}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo}]}
YAML
check "the first revision is ready" kubectl wait --for=condition=Ready ksvc/split --timeout=60s
kubectl apply -f - >/dev/null <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: split}
spec:
  template:
    metadata: {name: split-two, annotations: {autoscaling.knative.dev/min-scale: "1"}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo, env: [{name: TARGET, value: Two}]}]}
  traffic:
    - {revisionName: split-one, percent: 80, tag: one}
    - {revisionName: split-two, percent: 20, tag: two}
YAML
at_generation() { [ "$(kubectl get ksvc split -o jsonpath='{.status.observedGeneration}')" = "$(kubectl get ksvc split -o jsonpath='{.metadata.generation}')" ]; }
check "the change is seen" until_true 30 at_generation
check "both revisions are ready" kubectl wait --for=condition=Ready ksvc/split --timeout=60s
split=$(kubectl get ksvc split -o jsonpath='{.status.url}')
host=${split#http://}
expect "the tag one" 'from split-one' curl -s --max-time 10 "http://one-$host"
expect "the tag two" 'from split-two' curl -s --max-time 10 "http://two-$host"
ones=$(seq "$REQUESTS" | xargs -P 8 -n 100 bash -c 'for _ in "$@"; do echo "url = '"$split"'"; done | curl -s --max-time 60 -K -' _ | grep -c 'from split-one')
share=$((ones * 1000 / REQUESTS))
if [ "$share" -ge 780 ] && [ "$share" -le 820 ]; then
    ok "$REQUESTS requests split 80/20: $ones to the first"
else
    bad "$REQUESTS requests split 80/20" "$ones to the first"
fi
if command -v hey >/dev/null; then
    hey -z 8s -c 20 -host "$host" "http://127.0.0.1:$HTTP/" >"$work/hey.txt" 2>&1 &
    hey_pid=$!
    until_true 2 false
    kubectl patch ksvc split --type=merge -p '{"spec":{"traffic":[{"revisionName":"split-one","percent":100}]}}' >/dev/null
    wait "$hey_pid"
    if grep -q '\[200\]' "$work/hey.txt" && [ "$(grep -cE '^ *\[[0-9]+\]' "$work/hey.txt")" -eq 1 ] && ! grep -q 'Error distribution' "$work/hey.txt"; then
        ok "rollback under load without a failed request: $(sed -n 's/.*\[200\]\s*//p' "$work/hey.txt")"
    else
        bad "rollback under load without a failed request" "$(sed -n '/Status code/,$p' "$work/hey.txt")"
    fi
    all_one() { ! for _ in $(seq 20); do curl -s --max-time 5 "$split"; done | grep -q split-two; }
    check "all traffic is back" all_one
else
    skip "rollback under load: hey is missing"
fi
