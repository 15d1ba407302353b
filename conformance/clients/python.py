"""Python's kubernetes client, as its documentation uses it: create, watch, patch, wait, delete.

    python.py KUBECONFIG IMAGE
"""

import sys
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

GROUP, VERSION, NAMESPACE, PLURAL, NAME = "serving.knative.dev", "v1", "default", "services", "from-python"

config.load_kube_config(sys.argv[1])
custom, core, apps = client.CustomObjectsApi(), client.CoreV1Api(), client.AppsV1Api()
custom.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "Service",
    "metadata": {"name": NAME},
    "spec": {"template": {"spec": {"containers": [{"image": sys.argv[2]}]}}},
})


def wait_ready(generation):
    stream = watch.Watch().stream(
        custom.list_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL,
        field_selector=f"metadata.name={NAME}", timeout_seconds=60,
    )
    for event in stream:
        status = event["object"].get("status", {})
        ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready")
        if ready == "True" and status.get("observedGeneration") == generation:
            return status
    raise SystemExit(f"{NAME} did not become ready")


assert wait_ready(1)["latestReadyRevisionName"] == f"{NAME}-00001"
custom.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME, {
    "spec": {"template": {"metadata": {"labels": {"patched": "yes"}}}},
})
assert wait_ready(2)["latestReadyRevisionName"] == f"{NAME}-00002"

core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=NAME), data={"a": "1"}))
held = core.read_namespaced_config_map(NAME, NAMESPACE)
held.data["a"] = "2"
core.replace_namespaced_config_map(NAME, NAMESPACE, held)
try:
    core.replace_namespaced_config_map(NAME, NAMESPACE, held)
    raise SystemExit("a stale resource version was taken")
except ApiException as error:
    assert error.status == 409, error
assert [d.metadata.name for d in apps.list_namespaced_deployment(NAMESPACE, label_selector=f"{GROUP}/service={NAME}").items]
core.delete_namespaced_config_map(NAME, NAMESPACE)

objects = dynamic.DynamicClient(client.ApiClient())
revisions = objects.resources.get(api_version=f"{GROUP}/{VERSION}", kind="Revision")
assert len(revisions.get(namespace=NAMESPACE, label_selector=f"{GROUP}/service={NAME}").items) == 2

custom.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME, propagation_policy="Foreground")
deadline = time.monotonic() + 60
while True:
    try:
        custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME)
    except ApiException as error:
        assert error.status == 404, error
        break
    assert time.monotonic() < deadline, "it is still there"
    time.sleep(0.1)
print("ok")
