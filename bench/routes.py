#!/usr/bin/env python3
"""Whether a gateway with many routes is as quick as one with few: two platforms side by side, asked in turns.

    bench/routes.py [--few 10] [--many 10000] [--rounds 40] [--requests 4000]

Starts two `neap up` of its own with the sample application, as plain processes on free ports in temporary directories, and gives one
few and the other many Ingresses that lead to the sample. Printed for both: memory for each route; the time of a request to a route
picked at random; the time from the `POST` of one more Ingress to the first request that it serves, and the same from the start of
`kubectl apply`, where kubectl is. NEAP names a binary that is built already.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from api import Server, ask, in_parallel, resident

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/ingresses"
CLASS = "neap.ingress.networking.knative.dev"
START, SERVED = 90, 60


def neap():
    if os.environ.get("NEAP"):
        return os.path.abspath(os.environ["NEAP"])
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
    subprocess.run(["cargo", "build", "-q", "--release", "--locked"], cwd=os.path.join(HERE, ".."), check=True)
    return os.path.join(target, "release", "neap")


def ingress(name, host, revision):
    split = {
        "serviceName": revision, "serviceNamespace": "default", "servicePort": 80, "percent": 100,
        "appendHeaders": {"Knative-Serving-Revision": revision, "Knative-Serving-Namespace": "default"}}
    return {
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default", "annotations": {"networking.knative.dev/ingress.class": CLASS}},
        "spec": {"httpOption": "Enabled", "rules": [
            {"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": [split]}]}}]}}


class Platform:
    def __init__(self, program, work, routes):
        self.routes, self.data = routes, os.path.join(work, str(routes))
        flags = [part for port in ("api", "http", "https", "registry") for part in (f"--{port}-port", "0")]
        log = open(self.data + ".log", "wb")
        self.process = subprocess.Popen([program, "up", "--demo", "--runtime", "process", "--data-dir", self.data, *flags],
                                        stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise SystemExit(open(self.data + ".log").read())
        url = json.load(open(os.path.join(self.data, "endpoints.json")))["http"]
        self.port = int(url.rsplit(":", 1)[1])
        self.kubeconfig = os.path.join(self.data, "kubeconfig")
        self.server = Server(self.kubeconfig)
        self.api, self.gateway = self.server.connect(), http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        revisions = ask(self.api, "GET", "/apis/serving.knative.dev/v1/namespaces/default/revisions")[1]["items"]
        self.revision = revisions[-1]["metadata"]["name"]

    def fill(self):
        before = resident(self.process.pid)
        names = [f"route-{n}" for n in range(self.routes)]

        def create(connection, name):
            status, answer = ask(connection, "POST", PATH, ingress(name, self.host(name), self.revision))
            assert status == 201, answer

        began = time.monotonic()
        in_parallel(self.server, names, create)
        self.until_served(self.host(names[-1]))
        took = time.monotonic() - began
        time.sleep(2)
        grown = resident(self.process.pid) - before
        print(f"{self.routes:>6} routes made in {took:.1f} s, memory {before:.0f} MiB before, {grown:+.1f} MiB"
              f" ({grown * 1024 / self.routes:.1f} KiB for each, its objects in the API included)")

    def host(self, name):
        return f"{name}.example.com"

    def get(self, host):
        self.gateway.request("GET", "/", headers={"Host": host})
        response = self.gateway.getresponse()
        response.read()
        return response.status

    def until_served(self, host):
        deadline = time.monotonic() + SERVED
        while self.get(host) != 200:
            assert time.monotonic() < deadline, f"{host} was never served"

    def request(self):
        host = self.host(f"route-{random.randrange(self.routes)}")
        began = time.perf_counter()
        status = self.get(host)
        took = time.perf_counter() - began
        assert status == 200, status
        return took

    def create(self, round):
        # What has been idle for so long may have been closed.
        api, host = self.server.connect(), self.host(f"new-{round}")
        began = time.perf_counter()
        status, answer = ask(api, "POST", PATH, ingress(f"new-{round}", host, self.revision))
        assert status == 201, answer
        self.until_served(host)
        return time.perf_counter() - began

    def apply(self, round):
        host = self.host(f"applied-{round}")
        manifest = json.dumps(ingress(f"applied-{round}", host, self.revision))
        began = time.perf_counter()
        subprocess.run(["kubectl", "--kubeconfig", self.kubeconfig, "apply", "--validate=false", "-f", "-"], input=manifest, text=True,
                       stdout=subprocess.DEVNULL, check=True)
        self.until_served(host)
        return time.perf_counter() - began

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


def compare(name, few, many, unit, scale):
    both = []
    for platform, values in (few, many):
        values.sort()
        both.append(statistics.median(values))
        print(f"{name:<44} {platform.routes:>6} routes   p50 {both[-1] * scale:8.2f} {unit}   "
              f"p90 {values[int(0.9 * len(values))] * scale:8.2f} {unit}")
    print(f"{'':<44} {both[1] / both[0]:.2f} times")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--few", type=int, default=10)
    arguments.add_argument("--many", type=int, default=10000)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--requests", type=int, default=4000)
    options = arguments.parse_args()
    program, platforms = neap(), []
    with tempfile.TemporaryDirectory(prefix="neap-routes-") as work:
        try:
            for routes in (options.few, options.many):
                platforms.append(Platform(program, work, routes))
            for platform in platforms:
                platform.fill()
            took = [[], []]
            for _ in range(options.requests):
                for platform, values in zip(platforms, took):
                    values.append(platform.request())
            compare("a request to any of the routes", *zip(platforms, took), "us", 1e6)
            took = [[], []]
            for round in range(options.rounds):
                for platform, values in zip(platforms, took):
                    values.append(platform.create(round))
            compare("POST of one more, to its first answer", *zip(platforms, took), "ms", 1e3)
            if shutil.which("kubectl"):
                took = [[], []]
                for round in range(max(1, options.rounds // 4)):
                    for platform, values in zip(platforms, took):
                        values.append(platform.apply(round))
                compare("kubectl apply of one more, to its first answer", *zip(platforms, took), "ms", 1e3)
            else:
                print("skipped: kubectl is missing")
        finally:
            for platform in platforms:
                platform.stop()


if __name__ == "__main__":
    main()
