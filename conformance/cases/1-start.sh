# From nothing to a service that answers: the README's first command.

if start --demo; then
    ok "neap up --demo is ready"
    line=$(grep -o 'curl http.*' "$work/up.out" | head -n 1)
    expect "the printed curl works" 'Hello World, from hello-00001' bash -c "$line -s --max-time 10"
    expect "a second up says who holds the data" "held by another neap \(process $neap_pid\)" \
        bash -c "! $NEAP up --data-dir $work/data --api-port 0 --http-port 0 --https-port 0 --registry-port 0"
else
    bad "neap up --demo is ready" "$(cat "$work/up.out")"
    exit 1
fi
