#!/bin/sh
# CPU per request of proxies before the same origin, in interleaved rounds. Load goes to loopback only.
#
#   compare.sh [ROUNDS] [SECONDS]
#
# Needs nginx and wrk, and release builds of the examples (the second one if it is there):
#   cargo build --release -p neap-proxy --example bare -p neap-dataplane --example gateway
# On a machine that does other things too, the least figure of many short rounds is the one to believe.
set -eu
rounds=${1:-5} seconds=${2:-2}
bin=${CARGO_TARGET_DIR:-target}/release/examples
work=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait; rm -rf "$work"' EXIT

conf() { # name, body of the server block
    cat >"$work/$1.conf" <<CONF
worker_processes 1; daemon off; pid $work/$1.pid; error_log stderr;
events { worker_connections 4096; }
http {
    access_log off; keepalive_requests 100000000;
    upstream origin { server 127.0.0.1:19001; keepalive 256; keepalive_requests 100000000; }
    server { $2 }
}
CONF
}
conf origin 'listen 127.0.0.1:19001 backlog=1024; location / { default_type text/plain; return 200 "Hello World!\n"; }'
conf nginx 'listen 127.0.0.1:19002 backlog=1024; location / {
    proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }'

start() { # name, command
    name=$1; shift
    "$@" >"$work/$name.log" 2>&1 &
    eval "pid_$name=$!"
    pids="$pids $!"
}
ticks() { # user and system time of a process and its children, in clock ticks
    for stat in /proc/[0-9]*/stat; do
        sed 's/^\([0-9]*\) (.*) /\1 /' "$stat" 2>/dev/null
    done | awk -v p="$1" '$1 == p || $3 == p { sum += $13 + $14 } END { print sum + 0 }'
}

start origin nginx -c "$work/origin.conf"
start nginx nginx -c "$work/nginx.conf"
start bare "$bin/bare" 127.0.0.1:19003 127.0.0.1:19001 1
targets="nginx:19002 bare:19003"
if [ -x "$bin/gateway" ]; then
    start gateway "$bin/gateway" 127.0.0.1:19004 127.0.0.1:19001 1
    targets="$targets gateway:19004"
fi
sleep 1
hertz=$(getconf CLK_TCK)
for _ in $(seq "$rounds"); do
    for target in $targets; do
        name=${target%:*} port=${target#*:}
        eval "pid=\$pid_$name"
        before=$(ticks "$pid")
        wrk -t1 -c64 "-d${seconds}s" --latency -H 'Host: hello.default.example.com' "http://127.0.0.1:$port/" >"$work/wrk"
        after=$(ticks "$pid")
        awk -v name="$name" -v ticks=$((after - before)) -v hertz="$hertz" '
            /requests in/ { n = $1 } /Requests\/sec/ { rate = $2 } /^ *50%/ { p50 = $2 } /^ *99%/ { p99 = $2 }
            /Non-2xx|Socket errors/ { bad = $0 }
            END { printf "%-8s %6.2f us CPU per request %8.0f requests/s  p50 %s  p99 %s %s\n", name,
                  ticks / hertz / n * 1e6, rate, p50, p99, bad }' "$work/wrk" | tee -a "$work/all"
    done
done
echo "least CPU per request:"
awk '{ if (!($1 in least) || $2 < least[$1]) least[$1] = $2 } END { for (name in least) print "  " name, least[name], "us" }' "$work/all"
