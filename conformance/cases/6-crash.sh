# The platform is killed under load; what ran goes on, and nothing is lost.

before=$(kubectl get ksvc,rt,cfg,rev,cm,secret -A -o name | sort)
pods=$(kubectl get pod -l serving.knative.dev/revision=split-one -o jsonpath='{.items[*].metadata.uid}')
restarts() { kubectl get pod -l serving.knative.dev/revision=split-one -o jsonpath='{.items[*].status.containerStatuses[*].restartCount}'; }
restarted=$(restarts)
[ -z "$(command -v hey)" ] || { hey -z 4s -c 10 -host "${split#http://}" "http://127.0.0.1:$HTTP/" >/dev/null 2>&1 & load=$!; }
until_true 1 false
kill -9 "$neap_pid"
wait "$neap_pid" 2>/dev/null
neap_pid=
[ -z "${load:-}" ] || wait "$load"
: >"$work/up.out"
if start; then
    ok "it starts again"
    begin=$(date +%s%N)
    if until_true 10 curl -sf -o /dev/null --max-time 5 -H "Host: ${split#http://}" "http://127.0.0.1:$HTTP/"; then
        ok "the service answers $((($(date +%s%N) - begin) / 1000000)) ms after ready"
    else
        bad "the service answers after a crash" "$(kubectl get ksvc,pod)"
    fi
    after=$(kubectl get ksvc,rt,cfg,rev,cm,secret -A -o name | sort)
    if [ "$before" = "$after" ]; then ok "every object is there"; else bad "every object is there" "$(diff <(echo "$before") <(echo "$after"))"; fi
    if [ "$pods" = "$(kubectl get pod -l serving.knative.dev/revision=split-one -o jsonpath='{.items[*].metadata.uid}')" ] && [ "$restarted" = "$(restarts)" ]; then
        ok "the containers kept running"
    else
        bad "the containers kept running" "$(kubectl get pod)"
    fi
else
    bad "it starts again" "$(tail -n 5 "$work/up.log")"
fi
