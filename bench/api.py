"""What the scripts here share: a client of the platform's API from a kubeconfig, and looks at a process."""

import base64
import http.client
import json
import os
import queue
import re
import ssl
import tempfile
import threading
from urllib.parse import urlparse


class Server:
    def __init__(self, kubeconfig):
        text = open(kubeconfig).read()
        word = lambda key: re.search(rf"{key}:\s*\"?([^\s\"]+)", text).group(1)
        url = urlparse(word("server"))
        self.host, self.port = url.hostname, url.port
        self.tls = ssl.create_default_context(cadata=base64.b64decode(word("certificate-authority-data")).decode())
        with tempfile.NamedTemporaryFile() as pair:
            for key in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(word(key)))
            pair.flush()
            self.tls.load_cert_chain(pair.name)

    def connect(self):
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=300)


def ask(connection, method, path, body=None):
    headers = {"content-type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"{}")


def in_parallel(server, jobs, work, threads=8):
    todo = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)

    def run():
        connection = server.connect()
        while True:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            work(connection, job)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def cpu(pid):
    """Seconds of processor time that a process has used."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    text = open(f"/proc/{pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024


def say(name, values):
    values = sorted(values)
    at = lambda q: values[min(len(values) - 1, int(q * len(values)))]
    print(f"{name:<28} p50 {at(0.5) * 1e3:8.1f} ms   p99 {at(0.99) * 1e3:8.1f} ms   max {values[-1] * 1e3:8.1f} ms")
