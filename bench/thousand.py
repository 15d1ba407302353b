#!/usr/bin/env python3
"""Creates many Services at once, waits until each is Ready, deletes them, and says how long each took.

    bench/thousand.py KUBECONFIG [--services 1000] [--image HOST/NAME:TAG] [--pid NEAP]

Services have initial-scale 0: this measures the API, the controllers and the data plane, not containers. With --pid the
resident memory of that process is read before and after. Needs Python's standard library and nothing else.
"""

import argparse
import json
import threading
import time

from api import Server, ask, cpu, in_parallel, resident, say

PATH = "/apis/serving.knative.dev/v1/namespaces/default/services"
# Every kind that a Service brings into being.
CHILDREN = {
    "configurations": "/apis/serving.knative.dev/v1/namespaces/default/configurations",
    "revisions": "/apis/serving.knative.dev/v1/namespaces/default/revisions",
    "routes": "/apis/serving.knative.dev/v1/namespaces/default/routes",
    "ingresses": "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/ingresses",
    "serverlessservices": "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/serverlessservices",
    "podautoscalers": "/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/default/podautoscalers",
    "metrics": "/apis/autoscaling.internal.knative.dev/v1alpha1/namespaces/default/metrics",
    "images": "/apis/caching.internal.knative.dev/v1alpha1/namespaces/default/images",
    "deployments": "/apis/apps/v1/namespaces/default/deployments",
    "core services": "/api/v1/namespaces/default/services",
    "endpoints": "/api/v1/namespaces/default/endpoints",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    "pods": "/api/v1/namespaces/default/pods",
}


def service(name, image):
    template = {
        "metadata": {"annotations": {"autoscaling.knative.dev/initial-scale": "0"}},
        "spec": {"containers": [{"image": image}]},
    }
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"bench": "thousand"}},
        "spec": {"template": template},
    }


def watch(server, since, seen):
    """Calls seen(type, object) for each event; returns when seen does something else than None."""
    connection = server.connect()
    connection.request("GET", f"{PATH}?watch=1&labelSelector=bench%3Dthousand&resourceVersion={since}")
    for line in connection.getresponse():
        event = json.loads(line)
        if seen(event["type"], event["object"]) is not None:
            return


arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("kubeconfig")
arguments.add_argument("--services", type=int, default=1000)
arguments.add_argument("--image", default=None)
arguments.add_argument("--pid", type=int)
options = arguments.parse_args()

server = Server(options.kubeconfig)
main = server.connect()
status, config = ask(main, "GET", "/api/v1/namespaces/knative-serving/configmaps/config-autoscaler")
data = config.get("data") or {}
if data.get("allow-zero-initial-scale") != "true":
    main.request(
        "PATCH",
        "/api/v1/namespaces/knative-serving/configmaps/config-autoscaler",
        json.dumps({"data": {"allow-zero-initial-scale": "true"}}),
        {"content-type": "application/merge-patch+json"},
    )
    assert main.getresponse().read() is not None

names = [f"thousand-{n:05}" for n in range(options.services)]
before = {kind: len(ask(main, "GET", path)[1].get("items", [])) for kind, path in CHILDREN.items()}
memory = resident(options.pid) if options.pid else None
used = cpu(options.pid) if options.pid else None
since = ask(main, "GET", PATH)[1]["metadata"]["resourceVersion"]

created, ready, gone = {}, {}, {}


def on_ready(kind, item):
    conditions = {c["type"]: c["status"] for c in item.get("status", {}).get("conditions", [])}
    if conditions.get("Ready") == "True":
        ready.setdefault(item["metadata"]["name"], time.monotonic())
    return True if len(ready) == options.services else None


def create(connection, name):
    created[name] = time.monotonic()
    status, answer = ask(connection, "POST", PATH, service(name, options.image))
    assert status == 201, answer


watcher = threading.Thread(target=watch, args=(server, since, on_ready))
watcher.start()
start = time.monotonic()
in_parallel(server, names, create)
posted = time.monotonic()
watcher.join(600)
assert len(ready) == options.services, f"only {len(ready)} of {options.services} became ready"
took = {name: ready[name] - created[name] for name in names}
tenth = max(1, options.services // 10)
print(f"{options.services} Services: posted in {posted - start:.2f} s, all ready after {max(ready.values()) - start:.2f} s")
say(f"create to ready, first {tenth}", [took[n] for n in names[:tenth]])
say(f"create to ready, last {tenth}", [took[n] for n in names[-tenth:]])
if memory is not None:
    time.sleep(2)
    print(f"processor: {(cpu(options.pid) - used) * 1e3 / options.services:.1f} ms per Service")
    grown = resident(options.pid) - memory
    print(f"memory: {memory:.0f} MiB before, {memory + grown:.0f} MiB after, {grown * 1024 / options.services:.0f} KiB per Service")

# What has been idle for so long may have been closed.
main = server.connect()
since = ask(main, "GET", PATH)[1]["metadata"]["resourceVersion"]


def on_gone(kind, item):
    if kind == "DELETED":
        gone.setdefault(item["metadata"]["name"], time.monotonic())
    return True if len(gone) == options.services else None


watcher = threading.Thread(target=watch, args=(server, since, on_gone))
watcher.start()
start = time.monotonic()
in_parallel(server, names, lambda connection, name: ask(connection, "DELETE", f"{PATH}/{name}"))
watcher.join(600)
deadline = time.monotonic() + 60
while True:
    left = {kind: len(ask(main, "GET", path)[1].get("items", [])) - before[kind] for kind, path in CHILDREN.items()}
    left = {kind: n for kind, n in left.items() if n > 0}
    if not left or time.monotonic() > deadline:
        break
    time.sleep(0.1)
print(f"{options.services} deletes: nothing left after {time.monotonic() - start:.2f} s" if not left else f"LEFT BEHIND: {left}")
raise SystemExit(1 if left else 0)
