#!/usr/bin/env python3
"""What silent connections cost: opens keep-alive connections and WebSockets through a gateway, leaves them alone, and says how
much memory each took and whether any was cut.

    bench/idle.py [--connections 10000] [--minutes 10]

Everything is on loopback. The gateway is the data plane alone (`examples/gateway`, release profile, or GATEWAY). Keep-alive
connections have carried one request each. Where one process may not have so many descriptors (`ulimit -Hn`), the connections are
shared by as many gateways as it takes, each with a client and an application of its own. Needs Python's standard library alone.
"""

import argparse
import multiprocessing
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LISTEN, ORIGIN = 19002, 19001
# Seconds until connections have given back what they can.
SETTLES = 30
HOST = b"hello.default.example.com"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
# A text frame with two letters, as a client masks it, and as a server sends it.
MASKED, PLAIN = b"\x81\x82\0\0\0\0hi", b"\x81\x02hi"


def gateway():
    if os.environ.get("GATEWAY"):
        return os.environ["GATEWAY"]
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
    subprocess.run(["cargo", "build", "-q", "--release", "--locked", "-p", "neap-dataplane", "--example", "gateway"],
                   cwd=os.path.join(HERE, ".."), check=True)
    return os.path.join(target, "release", "examples", "gateway")


def application(listener):
    """Answers requests, switches protocols when asked, echoes frames; one thread for all."""
    poll, open_sockets = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                accepted, _ = listener.accept()
                open_sockets[accepted.fileno()] = accepted
                poll.register(accepted, select.EPOLLIN)
                continue
            one = open_sockets[number]
            try:
                data = one.recv(4096)
                if data.startswith(b"GET"):
                    one.sendall(SWITCH if b"pgrade" in data else HELLO)
                elif data:
                    one.sendall(PLAIN)
            except OSError:
                data = b""
            if not data:
                poll.unregister(one)
                open_sockets.pop(number).close()


def memory(pid):
    """Resident, KiB, of the process itself: what it has allocated, without the program's file."""
    status = open(f"/proc/{pid}/status").read()
    return int(status.split("RssAnon:")[1].split()[0])


def ask(one, request, wanted):
    one.sendall(request)
    got = b""
    while not got.endswith(wanted):
        piece = one.recv(4096)
        if not piece:
            raise OSError(f"closed after {got!r}")
        got += piece


def opened(port, count, request, wanted):
    sockets = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        ask(one, request, wanted)
        sockets.append(one)
    return sockets


def alive(sockets, request, wanted):
    """How many still answer."""
    count = 0
    for one in sockets:
        try:
            ask(one, request, wanted)
            count += 1
        except OSError:
            pass
    return count


def hold(number, count, minutes, said):
    """One gateway with `count` connections of each kind; puts on `said` what was seen."""
    listen, origin = LISTEN + 10 * number, ORIGIN + 10 * number
    listener = socket.create_server(("127.0.0.1", origin), backlog=4096)
    threading.Thread(target=application, args=(listener,), daemon=True).start()
    program = subprocess.Popen([gateway(), f"127.0.0.1:{listen}", f"127.0.0.1:{origin}"], stdout=subprocess.PIPE)
    seen = {}
    try:
        program.stdout.readline()
        get = b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
        upgrade = b"GET /ws HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" \
                  b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        # What comes with the first connections, such as pools, is not theirs.
        for one in opened(listen, 100, get, b"hello"):
            one.close()
        time.sleep(2)
        first, groups = memory(program.pid), []
        for name, request, wanted, again, answer in (
                ("keep-alive", get, b"hello", get, b"hello"), ("WebSocket", upgrade, b"\r\n\r\n", MASKED, PLAIN)):
            before = memory(program.pid)
            sockets = opened(listen, count, request, wanted)
            time.sleep(1)
            groups.append((name, sockets, again, answer))
            seen[f"{name} fresh"] = memory(program.pid) - before
        # After some silence what can be given back has been.
        silence = max(minutes * 60, 0)
        time.sleep(min(silence, SETTLES))
        seen["settled"] = memory(program.pid) - first
        time.sleep(max(silence - SETTLES, 0))
        for name, sockets, again, answer in groups:
            seen[f"{name} opened"] = len(sockets)
            seen[f"{name} alive"] = alive(sockets, again, answer)
        seen["resident"] = memory(program.pid)
        said.put(seen)
    except Exception as error:
        said.put(f"gateway {number}: {error}")
    finally:
        program.kill()
        program.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Client and application are one process and hold both ends, the gateway both of its own.
    most = (hard - 200) // 4
    parts = -(-args.connections // most)
    shares = [args.connections * (n + 1) // parts - args.connections * n // parts for n in range(parts)]
    if parts > 1:
        print(f"note: over {parts} gateways, since a process may have {hard} descriptors")
    gateway()
    said = multiprocessing.Queue()
    holders = [multiprocessing.Process(target=hold, args=(n, share, args.minutes, said)) for n, share in enumerate(shares)]
    for holder in holders:
        holder.start()
    answers = [said.get() for _ in holders]
    for holder in holders:
        holder.join()
    for problem in (answer for answer in answers if isinstance(answer, str)):
        print(f"FAILED: {problem}")
    if any(isinstance(answer, str) for answer in answers):
        return 1
    total = {key: sum(answer[key] for answer in answers) for key in answers[0]}
    failed = 0
    for name in ("keep-alive", "WebSocket"):
        cut = total[f"{name} opened"] - total[f"{name} alive"]
        failed += cut
        print(f"{name}: {total[f'{name} fresh'] / args.connections:.1f} KiB per connection when fresh; "
              f"{total[f'{name} opened']} opened, {cut} cut in {args.minutes:g} minutes")
    print(f"both: {total['settled'] / (2 * args.connections):.1f} KiB per connection after {min(args.minutes * 60, SETTLES):.0f} s of silence")
    print(f"resident at the end: {total['resident'] / 1024:.1f} MiB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
