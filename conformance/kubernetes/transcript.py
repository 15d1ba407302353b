#!/usr/bin/env python3
"""Speaks one HTTP transcript with two API servers and compares what they answer.

usage: transcript.py --left URL --right URL --token TOKEN [--explained FILE] [--verbose] FILE...

`--left` is the reference (a kube-apiserver), `--right` is ours. Answers are compared after what must differ (uids, moments,
resource versions, generated names, tokens) was replaced by words. A difference that a rule of the file of explained ones
covers is counted apart; any other makes the exit code 1. Only the standard library is used.

A transcript is lines of

    = SECTION                      a new section with a namespace of its own, $ns
    VERB PATH [BODY]               GET HEAD POST PUT DELETE OPTIONS, MERGE JSONPATCH STRATEGIC APPLY (patches), WATCH
      > HEADER: VALUE              an indented line that begins with `>` adds a header to the request above,
      > keep NAME = PATH           or keeps a value of its answer, to be named as $NAME later,
      > pick PATH KEY=VALUE        or compares only one element of a list in the answer, or with PATH alone one value,
      > until PATH = VALUE         or asks again until the answer says so (a definition is established, a watch cache filled)
      BODY...                      any other indented line continues the body

`$long300` is a word of three hundred letters. `#` begins a comment line.
"""

import argparse
import concurrent.futures
import http.client
import json
import re
import ssl
import sys
import time
import urllib.parse

PATCHES = {
    "MERGE": "application/merge-patch+json",
    "JSONPATCH": "application/json-patch+json",
    "STRATEGIC": "application/strategic-merge-patch+json",
    "APPLY": "application/apply-patch+yaml",
}
# Headers of the answer that are part of the contract.
HEADERS = ("content-type", "warning", "retry-after", "allow")
# Seconds an answer may take; a watch ends by itself after one.
TIMEOUT = 30
# How often `until` asks again, and the pause between, in seconds.
TRIES, PAUSE = 50, 0.1

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)")
AGE = re.compile(r"^(<invalid>|\d+[smhd](\d+[smhd])?)$")
GENERATED = re.compile(r"(gen-|\bg?e?n?e?r?a{40,})[bcdfghjklmnpqrstvwxz2456789]{5}\b")
REVISION = re.compile(r"(resource version: |current: |ResourceVersion[^0-9]{0,40})\d+( \(\d+\))?")


class Request:
    def __init__(self, where, verb, path, body):
        self.where, self.verb, self.path, self.body = where, verb, path, body
        self.headers, self.keep, self.pick, self.until = {}, [], None, None


def parse(files):
    """The requests of all files, with the section each belongs to."""
    for file in files:
        section, request = None, None
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                line = line.rstrip("\n")
                if not line.strip() or line.startswith("#"):
                    continue
                if line[0].isspace():
                    extend(request, line.strip())
                    continue
                if request:
                    yield section, request
                    request = None
                if line.startswith("="):
                    section = line[1:].strip()
                    continue
                verb, path, body = (line.split(" ", 2) + ["", ""])[:3]
                request = Request(f"{file.rsplit('/', 1)[-1]}:{number}", verb, path, body)
        if request:
            yield section, request


def extend(request, line):
    if not line.startswith(">"):
        request.body += ("\n" if request.body else "") + line
        return
    line = line[1:].strip()
    if line.startswith("keep "):
        name, path = line[5:].split("=", 1)
        request.keep.append((name.strip(), path.strip()))
    elif line.startswith("pick "):
        request.pick = line[5:].split()
    elif line.startswith("until "):
        path, value = line[6:].split(" = ", 1)
        request.until = (path.strip(), value.strip())
    else:
        name, value = line.split(":", 1)
        request.headers[name.strip()] = value.strip()


class Server:
    """One side of the comparison: a connection, and what was kept of its answers."""

    def __init__(self, url, token):
        self.url, self.token = urllib.parse.urlparse(url), token
        self.kept, self.connection = {}, None
        self.section(None)

    def section(self, name):
        self.names, self.uids = {}, {}
        if name is not None:
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            ns = "t-" + slug
            self.kept.update(
                ns=ns,
                core=f"/api/v1/namespaces/{ns}",
                apps=f"/apis/apps/v1/namespaces/{ns}",
                batch=f"/apis/batch/v1/namespaces/{ns}",
                rbac=f"/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}",
                diff=f"/apis/diff.example.com/v1/namespaces/{ns}",
            )

    def fill(self, text):
        def value(match):
            name = match.group(1)
            if name.startswith("long") and name[4:].isdigit():
                return "a" * int(name[4:])
            return str(self.kept.get(name, match.group(0)))

        return re.sub(r"\$([a-z][a-z0-9_]*)", value, text)

    def connect(self):
        if self.url.scheme == "https":
            context = ssl._create_unverified_context()  # A certificate made a second ago, on loopback.
            return http.client.HTTPSConnection(self.url.hostname, self.url.port, timeout=TIMEOUT, context=context)
        return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=TIMEOUT)

    def once(self, request):
        verb, path, body = request.verb, self.fill(request.path), self.fill(request.body)
        headers = {"User-Agent": "transcript/1", "Accept": "application/json", "Authorization": f"Bearer {self.token}"}
        if verb in PATCHES:
            headers["Content-Type"] = PATCHES[verb]
            verb = "PATCH"
        elif body:
            headers["Content-Type"] = "application/json"
        if verb == "WATCH":
            verb = "GET"
            path += ("&" if "?" in path else "?") + "watch=1"
            path += "" if "timeoutSeconds" in path else "&timeoutSeconds=1"
        for name, value in request.headers.items():
            headers.pop(next((k for k in headers if k.lower() == name.lower()), None), None)
            if value != "-":
                headers[name] = self.fill(value)
        for attempt in (0, 1):
            if self.connection is None:
                self.connection = self.connect()
            try:
                data = None if body == "" else body.encode()
                self.connection.request(verb, path, body=data, headers=headers)
                response = self.connection.getresponse()
                return response, response.read()
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                # A server may close an idle connection; it is asked once more on a new one.
                self.connection.close()
                self.connection = None
                if attempt:
                    raise

    def ask(self, request):
        for _ in range(TRIES):
            response, raw = self.once(request)
            if request.until is None:
                break
            if str(find(decode(raw), request.until[0])) == request.until[1]:
                break
            time.sleep(PAUSE)
        body = decode(raw)
        for name, path in request.keep:
            self.kept[name] = find(body, path)
        headers = {}
        for name in HEADERS:
            values = response.headers.get_all(name)
            if values:
                headers[name] = [self.words(v) for v in values]
        if request.pick:
            body = pick(body, request.pick)
        return {"code": response.status, "headers": headers, "body": self.plain(body, "", None)}

    def symbol(self, whose, value):
        """The same word for the same value of one owner, numbered as they come: a write that changes nothing shows."""
        names = self.names.setdefault(whose, {})
        return names.setdefault(value, f"<{whose} {len(names) + 1}>")

    def words(self, text):
        text = UUID.sub(lambda m: self.uids.get(m.group(0), "<uid>"), text)
        text = MOMENT.sub("<time>", text)
        text = GENERATED.sub(r"\1<generated>", text)
        text = REVISION.sub(r"\1<n>", text)
        return "<age>" if AGE.match(text) else text

    def plain(self, value, key, parent):
        """The value with everything that must differ replaced by words."""
        if isinstance(value, dict):
            if isinstance(value.get("uid"), str) and isinstance(value.get("resourceVersion"), str):
                name = GENERATED.sub(r"\1<generated>", str(value.get("name")))
                self.uids.setdefault(value["uid"], self.symbol(f"uid of {name}", value["uid"]))
            if key == "details" and isinstance(value.get("causes"), list):
                # kube-apiserver validates metadata more than once and then names a fault as often.
                # In which order faults of several fields are named is left to chance there.
                unique = {json.dumps(cause, sort_keys=True): cause for cause in value["causes"]}
                value = {**value, "causes": [unique[key] for key in sorted(unique)]}
            return {k: self.plain(v, k, value) for k, v in value.items()}
        if isinstance(value, list):
            return [self.plain(v, key, value) for v in value]
        if not isinstance(value, str):
            return value
        if key == "resourceVersion" and value.isdigit():
            uid = self.uids.get(parent.get("uid")) if isinstance(parent, dict) else None
            return self.symbol(f"revision of {uid}", value) if uid else "<revision>"
        if key == "continue" and value:
            return "<continue>"
        if key == "message" and " is invalid: [" in value and parent.get("details"):
            causes = {json.dumps(cause, sort_keys=True) for cause in parent["details"].get("causes", [])}
            if len(causes) > 1:
                return self.words(value.split(": [", 1)[0] + ": [every cause]")
        if key == "token" and len(value) > 40:
            return "<token>"
        return self.words(value)


def decode(raw):
    """JSON, lines of JSON, or text."""
    text = raw.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        pass
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        if lines and lines[0].startswith("{"):
            return [json.loads(line) for line in lines]
    except ValueError:
        pass
    # YAML: how a text is quoted is a matter of taste.
    return sorted(re.sub(r"(resourceVersion: )\d+", r"\1<revision>", line.replace('"', "").replace("'", "")) for line in lines)


def find(body, path):
    for part in path.split("."):
        if isinstance(body, list) and part.isdigit() and int(part) < len(body):
            body = body[int(part)]
        elif isinstance(body, dict) and part in body:
            body = body[part]
        else:
            return None
    return body


def pick(body, words):
    body = find(body, words[0])
    for word in words[1:]:
        key, _, value = word.partition("=")
        body = next((b for b in body or [] if str(find(b, key)) == value), None)
    return body


def differences(left, right):
    """Where two answers differ. One that succeeds and one that fails are one difference, not one for each field."""
    if left["code"] != right["code"]:
        return [("/code", brief(left), brief(right))]
    return list(compare(left, right))


def brief(answer):
    body = answer["body"]
    said = body.get("message", body.get("kind")) if isinstance(body, dict) else body
    return [answer["code"], said]


def compare(left, right, at=""):
    """Where two values differ: (pointer, left, right)."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(set(left) | set(right)):
            yield from compare(left.get(key, "<absent>"), right.get(key, "<absent>"), f"{at}/{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right)):
            yield from compare(a, b, f"{at}/{i}")
    elif left != right:
        yield at, left, right


def rules(file):
    """Lines `SECTION | REQUEST | POINTER | THEIRS | REASON`, all but the last regular expressions."""
    out = []
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                *patterns, _reason = (part.strip() for part in line.split(" | ", 4))
                out.append([re.compile(pattern) for pattern in patterns] + [0])
    return out


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--left", required=True)
    arguments.add_argument("--right", required=True)
    arguments.add_argument("--token", required=True)
    arguments.add_argument("--explained")
    arguments.add_argument("--verbose", action="store_true")
    arguments.add_argument("files", nargs="+")
    args = arguments.parse_args()
    explained = rules(args.explained) if args.explained else []
    left, right = Server(args.left, args.token), Server(args.right, args.token)
    pool = concurrent.futures.ThreadPoolExecutor(2)
    both = lambda request: list(pool.map(lambda server: server.ask(request), (left, right)))
    current, count, known, unknown, failed = None, 0, 0, 0, 0
    for section, request in parse(args.files):
        if section != current:
            current = section
            for server in (left, right):
                server.section(section)
            namespace = Request("", "POST", "/api/v1/namespaces", '{"metadata": {"name": "$ns"}}')
            both(namespace)
        a, b = both(request)
        count += 1
        if args.verbose:
            print(f"{request.where} {request.verb} {request.path}\n   {json.dumps(a)}")
        open_ = []
        for pointer, x, y in differences(a, b):
            line = f"{request.verb} {request.path}"
            said = (section, line, pointer, json.dumps(x))
            rule = next((r for r in explained if all(pattern.search(text) for pattern, text in zip(r, said))), None)
            if rule:
                rule[4] += 1
                known += 1
            else:
                open_.append((pointer, x, y))
        if open_:
            failed += 1
            unknown += len(open_)
            print(f"{request.where} [{section}] {request.verb} {left.fill(request.path)} {request.body[:160]!r}")
            for pointer, x, y in open_:
                print(f"    {pointer}\n        kubernetes {short(x)}\n        neap       {short(y)}")
    for rule in explained:
        if rule[4] == 0:
            print("an explanation that explains nothing: " + " | ".join(pattern.pattern for pattern in rule[:4]))
    print(f"transcript: {count} requests, {known} explained differences, {unknown} unexplained in {failed} requests")
    print(f"kubernetes: {count - failed} passed, {failed} failed")
    return 1 if unknown else 0


def short(value):
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 600 else text[:600] + "…"


if __name__ == "__main__":
    sys.exit(main())
