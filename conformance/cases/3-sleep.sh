# A service goes to sleep when nobody calls, and the next request wakes it.

kubectl apply -f - >/dev/null <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: sleeper}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/window: "6s"}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo}]}
YAML
check "the sleeper is ready" kubectl wait --for=condition=Ready ksvc/sleeper --timeout=60s
asleep() { [ -z "$(kubectl get pod -l serving.knative.dev/service=sleeper -o name)" ]; }
sleeper=$(kubectl get ksvc sleeper -o jsonpath='{.status.url}')
times=()
for n in $(seq "$WAKES"); do
    if ! until_true 60 asleep; then
        bad "the sleeper goes to sleep ($n)" "$(kubectl get kpa,deploy,pod)"
        break
    fi
    answer=$(curl -s -o /dev/null -w '%{http_code} %{time_total}' --max-time 20 "$sleeper")
    case $answer in
    200\ *) times+=("${answer#200 }") ;;
    *) bad "wake $n is answered" "$answer" ;;
    esac
done
if [ "${#times[@]}" -eq "$WAKES" ]; then
    ok "$WAKES wakes are answered: $(printf '%s\n' "${times[@]}" | sort -n | awk '{ t[NR] = $1 * 1000 } END { p = int((NR + 1) / 2); q = NR; printf "p50 %.1f ms, max %.1f ms", t[p], t[q] }')"
fi
expect "logs of what sleeps" 'listening on' "$NEAP" logs sleeper
