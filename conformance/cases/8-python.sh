# Another language's client library, as its documentation uses it.

if python3 -m venv "$work/python" >/dev/null 2>&1 && "$work/python/bin/pip" -q install kubernetes==31.0.0 >"$work/pip.log" 2>&1; then
    expect "Python's kubernetes client" '^ok$' timeout 200 "$work/python/bin/python" conformance/clients/python.py "$KUBECONFIG" "$REGISTRY/neap/sample:demo"
else
    skip "Python's kubernetes client: $(tail -n 1 "$work/pip.log" 2>/dev/null || echo 'no venv')"
fi
