#!/usr/bin/env python3
"""What silent connections cost: opens keep-alive connections and WebSockets through a gateway, leaves them alone, and says how
much memory each took and whether any was cut.

    bench/idle.py [--connections 10000] [--minutes 10]

Everything is on loopback. The gateway is the data plane alone (`examples/gateway`, release profile, or GATEWAY); client and
application are this process. Keep-alive connections have carried one request each. Needs Python's standard library and enough
file descriptors (`ulimit -n`), else it opens fewer and says so.
"""

import argparse
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


def opened(count, request, wanted):
    sockets = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", LISTEN), timeout=30)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # This process holds both ends, the gateway both of its own.
    count = min(args.connections, (hard - 200) // 4)
    if count < args.connections:
        print(f"note: {count} connections of each kind; `ulimit -n` allows no more")
    listener = socket.create_server(("127.0.0.1", ORIGIN), backlog=4096)
    threading.Thread(target=application, args=(listener,), daemon=True).start()
    program = subprocess.Popen([gateway(), f"127.0.0.1:{LISTEN}", f"127.0.0.1:{ORIGIN}"], stdout=subprocess.PIPE)
    failed = 0
    try:
        program.stdout.readline()
        get = b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
        upgrade = b"GET /ws HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" \
                  b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        # What comes with the first connections, such as pools, is not theirs.
        for one in opened(100, get, b"hello"):
            one.close()
        time.sleep(2)
        groups = []
        for name, request, wanted, again, answer in (
                ("keep-alive", get, b"hello", get, b"hello"), ("WebSocket", upgrade, b"\r\n\r\n", MASKED, PLAIN)):
            before = memory(program.pid)
            sockets = opened(count, request, wanted)
            time.sleep(1)
            fresh = memory(program.pid)
            groups.append((name, sockets, again, answer, before, fresh))
            print(f"{name}: {(fresh - before) / count:.1f} KiB per connection when fresh")
        # After some silence what can be given back has been.
        silence = max(args.minutes * 60, 0)
        time.sleep(min(silence, 30))
        settled = memory(program.pid)
        print(f"both: {(settled - groups[0][4]) / (2 * count):.1f} KiB per connection after {min(silence, 30):.0f} s of silence")
        time.sleep(max(silence - 30, 0))
        for name, sockets, again, answer, *_ in groups:
            left = alive(sockets, again, answer)
            failed += len(sockets) - left
            print(f"{name}: {len(sockets)} opened, {len(sockets) - left} cut in {args.minutes:g} minutes")
        print(f"resident at the end: {memory(program.pid) / 1024:.1f} MiB")
    finally:
        program.kill()
        program.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
