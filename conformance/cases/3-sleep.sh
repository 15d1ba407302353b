# Services go to sleep when nobody calls, and the next request wakes them: ten services, woken one after the other in
# rounds, until there are WAKES times to quote.

SLEEPERS=10
for n in $(seq "$SLEEPERS"); do
    cat <<YAML
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: sleeper-$n, labels: {group: sleepers}}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/window: "6s"}, labels: {group: sleepers}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo}]}
YAML
done | kubectl apply -f - >/dev/null
check "the sleepers are ready" kubectl wait --for=condition=Ready ksvc -l group=sleepers --timeout=60s
asleep() { [ -z "$(kubectl get pod -l group=sleepers -o name)" ]; }
times=()
woken=0
while [ "$woken" -lt "$WAKES" ]; do
    if ! until_true 60 asleep; then
        bad "the sleepers go to sleep (after $woken wakes)" "$(kubectl get kpa,deploy,pod)"
        break
    fi
    for n in $(seq "$SLEEPERS"); do
        [ "$woken" -lt "$WAKES" ] || break
        woken=$((woken + 1))
        answer=$(curl -s -o /dev/null -w '%{http_code} %{time_total}' --max-time 20 "http://sleeper-$n.default.localhost:$HTTP")
        case $answer in
        200\ *) times+=("${answer#200 }") ;;
        *) bad "wake $woken is answered" "$answer" ;;
        esac
    done
done
if [ "${#times[@]}" -eq "$WAKES" ]; then
    ok "$WAKES wakes are answered: $(printf '%s\n' "${times[@]}" | sort -n | awk '
        { t[NR] = $1 * 1000 }
        function at(q) { i = int(q * NR + 0.9999); return t[i < 1 ? 1 : i] }
        END { printf "min %.1f, p50 %.1f, p99 %.1f, max %.1f ms", t[1], at(0.5), at(0.99), t[NR] }')"
fi
expect "logs of what sleeps" 'listening on' "$NEAP" logs sleeper-1
kubectl delete ksvc -l group=sleepers >/dev/null
