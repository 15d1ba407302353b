#!/usr/bin/env python3
"""Compares everything that controllers made in two clusters, field by field.

Both are read until they stay as they are and agree, or until time is up; then every field in which they still differ is
printed. What must differ between any two clusters (uids, revisions, moments) is replaced by words first. A line of the file
of explanations is `KIND NAME PATH`, each a glob, then two blanks and the reason.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import time

KINDS = [
    "services.serving.knative.dev", "configurations.serving.knative.dev", "revisions.serving.knative.dev",
    "routes.serving.knative.dev", "domainmappings.serving.knative.dev",
    "podautoscalers.autoscaling.internal.knative.dev", "metrics.autoscaling.internal.knative.dev",
    "ingresses.networking.internal.knative.dev", "serverlessservices.networking.internal.knative.dev",
    "certificates.networking.internal.knative.dev", "images.caching.internal.knative.dev",
    "services", "endpoints", "deployments.apps", "horizontalpodautoscalers.autoscaling",
]
# Seconds until both must agree, and for which they must not change.
PATIENCE, STILL = 90, 4


def read(kubeconfig, namespace):
    out = subprocess.run(
        ["kubectl", "--kubeconfig", kubeconfig, "get", ",".join(KINDS), "-n", namespace, "-o", "json"],
        check=True, capture_output=True, text=True,
    ).stdout
    return json.loads(out)["items"]


def normalised(items):
    """Objects by kind and name; uids are the objects they belong to."""
    owners = {item["metadata"]["uid"]: f"uid of {item['kind']} {item['metadata']['name']}" for item in items}
    result = {}
    for item in items:
        meta = item["metadata"]
        for noise in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"):
            meta.pop(noise, None)
        key = f"{item['kind']}.{item['apiVersion'].split('/')[0]} {meta['name']}"
        result[key] = words(item, owners)
    return result


MOMENTS = {"lastTransitionTime", "lastUpdateTime", "serving.knative.dev/routingStateModified", "routingStateModified"}


def words(value, owners):
    if isinstance(value, dict):
        return {
            name: "a moment" if name.split("/")[-1] in MOMENTS and inner else words(inner, owners)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [words(inner, owners) for inner in value]
    if isinstance(value, str) and value in owners:
        return owners[value]
    return value


def differences(one, cluster, path=""):
    if isinstance(one, dict) and isinstance(cluster, dict):
        for name in sorted(one.keys() | cluster.keys()):
            inner = f"{path}.{name}" if path else name
            if name not in one or name not in cluster:
                yield inner, one.get(name, "(absent)"), cluster.get(name, "(absent)")
            else:
                yield from differences(one[name], cluster[name], inner)
    elif isinstance(one, list) and isinstance(cluster, list) and len(one) == len(cluster):
        for at, (left, right) in enumerate(zip(one, cluster)):
            yield from differences(left, right, f"{path}[{at}]")
    elif one != cluster:
        yield path, one, cluster


def explanations(file):
    for line in open(file):
        line = line.rstrip("\n")
        if line and not line.startswith("#"):
            rule, reason = line.split("  ", 1)
            yield rule.split(" "), reason.strip()


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--one", "--cluster", "--namespace", "--explained"):
        parser.add_argument(flag, required=True)
    flags = parser.parse_args()
    rules = list(explanations(flags.explained))
    used = set()

    def explained(key, path):
        kind, name = key.split(" ")
        for at, ((of_kind, of_name, of_path), _) in enumerate(rules):
            # Brackets of paths are no sets of characters.
            if (fnmatch.fnmatchcase(kind, of_kind) and fnmatch.fnmatchcase(name, of_name)
                    and fnmatch.fnmatchcase(path.replace("[", "("), of_path.replace("[", "("))):
                used.add(at)
                return True
        return False

    deadline, since, last = time.monotonic() + PATIENCE, time.monotonic(), None
    while True:
        one, cluster = (normalised(read(file, flags.namespace)) for file in (flags.one, flags.cluster))
        found, meant, fields = [], 0, 0
        for key in sorted(one.keys() | cluster.keys()):
            for path, left, right in differences(one.get(key, {}), cluster.get(key, {})):
                if explained(key, path):
                    meant += 1
                else:
                    found.append((key, path, left, right))
        if (one, cluster) != last:
            since, last = time.monotonic(), (one, cluster)
        if (not found and time.monotonic() - since >= STILL) or time.monotonic() >= deadline:
            break
        time.sleep(1)

    for key, path, left, right in found:
        print(f"differs  {key}: {path or 'the whole object'}")
        print(f"         one machine: {json.dumps(left)[:400]}")
        print(f"         cluster:     {json.dumps(right)[:400]}")
    for at, (rule, _) in enumerate(rules):
        if at not in used:
            print(f"unused explanation: {' '.join(rule)}")
    bad = {key for key, *_ in found}
    objects = len(one.keys() | cluster.keys())
    print(f"{len(found)} differing fields in {len(bad)} of {objects} objects, {meant} more are explained")
    # An object counts as one comparison; so does an explanation that explains nothing.
    stale = len(rules) - len(used)
    print(f"modes: {objects - len(bad)} passed, {len(bad) + stale} failed")
    sys.exit(1 if bad or stale else 0)


main()
