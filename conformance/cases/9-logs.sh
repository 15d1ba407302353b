# Container logs are sent to files: with whose they are, over a kill of the platform, and to the last line of a pod that ended.

sent=$work/sent/default/talker.jsonl
settings() { kubectl patch cm "$1" -n knative-serving --type merge -p "{\"data\":{\"$2\":\"$3\"}}"; }
refused=$(settings config-neap logs.ship-to http://nowhere 2>&1) && bad "a wrong target is refused" "it was taken"
case $refused in
*otlp+http://*) ok "a wrong target is refused, with what would be right" ;;
*) bad "a wrong target is refused, with what would be right" "$refused" ;;
esac
check "logs are sent to files" settings config-neap logs.ship-to "file://$work/sent/{namespace}/{service}.jsonl"
check "/var/log is collected" settings config-observability logging.enable-var-log-collection true
kubectl apply -f - >/dev/null <<YAML
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: talker}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/min-scale: "1"}}
    spec: {containers: [{image: $REGISTRY/neap/sample:demo}]}
YAML
check "the talker is ready" kubectl wait --for=condition=Ready ksvc talker --timeout=60s
check "what it says is in its file" until_true 10 grep -q '"message":"listening on .*"revision":"talker-00001"' "$sent"
volume=$(kubectl get pod -l serving.knative.dev/service=talker -o jsonpath='{.items[0].spec.volumes[*].name} {.items[0].spec.containers[0].volumeMounts[*].mountPath}')
case $volume in
*knative-var-log*/var/log*) ok "its pod has a volume for /var/log" ;;
*) bad "its pod has a volume for /var/log" "$volume" ;;
esac
uid=$(kubectl get pod -l serving.knative.dev/service=talker -o jsonpath='{.items[0].metadata.uid}')
part=$(find "$work/data/runtime/pods/$uid/volumes/knative-var-log" -mindepth 1 -maxdepth 1 -type d 2>/dev/null)
if [ -n "$part" ]; then
    # As the container would write it; a link out of the volume is not followed.
    seq -f 'written %g' 1 500 >"$part/app.log"
    ln -s "$work/data/kubeconfig" "$part/link.log"
    check "what is written to /var/log arrives" until_true 10 grep -q '"file":"/var/log/app.log".*"message":"written 500"' "$sent"
    kill -9 "$neap_pid"
    wait "$neap_pid" 2>/dev/null
    neap_pid=
    seq -f 'written %g' 501 600 >>"$part/app.log"
    : >"$work/up.out"
    if start; then ok "it starts again after a kill"; else bad "it starts again after a kill" "$(tail -n 5 "$work/up.log")"; fi
    kubectl delete ksvc talker --wait=false >/dev/null
    check "the last line of the ended pod arrives" until_true 30 grep -q '"message":"stopping after' "$sent"
    lines() { grep -o '"message":"written [0-9]*"' "$sent"; }
    whole() { [ "$(lines | sort -u | wc -l)" -eq 600 ]; }
    if until_true 10 whole; then
        ok "none of 600 lines is missing, $(($(lines | wc -l) - 600)) came twice"
    else
        bad "none of 600 lines is missing" "$(lines | sort -u | wc -l) of 600"
    fi
    if grep -q link.log "$sent"; then bad "links are not followed" "$(grep -m 1 link.log "$sent")"; else ok "links are not followed"; fi
    kept() { [ -z "$(find "$work/data/runtime/logs" -name .volume)" ]; }
    check "nothing of its volume is left" until_true 10 kept
else
    skip "collection of /var/log: this runtime gives pods no volumes"
    kubectl delete ksvc talker --wait=false >/dev/null
fi
settings config-neap logs.ship-to "" >/dev/null
settings config-observability logging.enable-var-log-collection false >/dev/null
