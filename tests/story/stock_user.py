"""Whoever uses redis and nginx: a program for a pod, with nothing but the standard library.

    python3 stock_user.py      # says "ready", works until its stdin closes, then says what it did as JSON

Four things at once: ``redis-benchmark`` again and again, with connections that it keeps and with one for
every request; a subscriber and its publisher, whose connections are as old as the program; pages over a
connection that is kept; and pages over new ones.
"""

from __future__ import annotations

import csv
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

REDIS, NGINX = ("redis.servers", 6379), ("nginx.servers", 8080)
# Longer than anything takes that works, on a busy machine.
PATIENCE = 30.0
PAUSE = 0.01
# (option of redis-benchmark, requests, what they are counted as): bounded, and short beside a cycle.
RUNS = (("1", 2000, "benchmark"), ("0", 200, "benchmark_connections"))
# What redis-benchmark says of ``-k 0``, whatever happens.
ADVICE = "warning: keepalive disabled"
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"

over = threading.Event()
done: Counter[str] = Counter()
failures: list[str] = []


def benchmark() -> None:
    """32 clients, one request in flight each."""
    while not over.is_set():
        for keep, requests, name in RUNS:
            address = ("-h", REDIS[0], "-p", str(REDIS[1]))
            load = ("-c", "32", "-P", "1", "-k", keep, "-n", str(requests), "-t", "set", "--csv")
            ended = subprocess.run(
                ("redis-benchmark", *address, *load),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            rows = list(csv.reader(ended.stdout.splitlines()))
            complaints = [
                line for line in ended.stderr.splitlines() if not line.casefold().startswith(ADVICE)
            ]
            if ended.returncode or complaints or [row[0] for row in rows] != ["test", "SET"]:
                raise OSError(f"redis-benchmark: {ended.returncode} {ended.stdout} {ended.stderr}")
            done[name] += requests


def subscription(opened: threading.Barrier) -> None:
    """Every number that is published arrives once, and in its order."""
    with dial() as subscriber, dial() as publisher:
        subscriber.sendall(b"SUBSCRIBE news\r\n")
        with subscriber.makefile("rb") as news, publisher.makefile("rb") as answers:
            expect(news.read(len(SUBSCRIBED)), SUBSCRIBED)
            opened.wait()
            while not over.is_set():
                number = str(done["published"]).encode()
                publisher.sendall(b"PUBLISH news %b\r\n" % number)
                expect(answers.readline(), b":1\r\n")
                wanted = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$%d\r\n%b\r\n" % (len(number), number)
                expect(news.read(len(wanted)), wanted)
                done["published"] += 1
                time.sleep(PAUSE)


def dial() -> socket.socket:
    """A connection to redis."""
    return socket.create_connection(REDIS, timeout=PATIENCE)


def expect(got: bytes, wanted: bytes) -> None:
    """Complain of anything else."""
    if got != wanted:
        raise OSError(f"{got!r} instead of {wanted!r}")


def kept_pages(opened: threading.Barrier) -> None:
    """One connection for all of them; http.client would open another in silence."""
    connection = http.client.HTTPConnection(*NGINX, timeout=PATIENCE)
    connection.connect()
    connection.auto_open = 0
    opened.wait()
    while not over.is_set():
        get(connection)
        done["kept_pages"] += 1
        time.sleep(PAUSE)
    connection.close()


def pages() -> None:
    """A connection for each."""
    while not over.is_set():
        connection = http.client.HTTPConnection(*NGINX, timeout=PATIENCE)
        get(connection)
        connection.close()
        done["pages"] += 1
        time.sleep(PAUSE)


def get(connection: http.client.HTTPConnection) -> None:
    """One page, whole."""
    connection.request("GET", "/")
    answer = connection.getresponse()
    if (answer.status, answer.read()) != (200, b"a page" * 1000):
        raise OSError(f"nginx answered {answer.status}")


def noted(name: str, work: Callable[[], None]) -> Callable[[], None]:
    """Run *work*, and let nothing that it meets be lost."""

    def run() -> None:
        try:
            work()
        except (OSError, http.client.HTTPException, subprocess.TimeoutExpired) as exc:
            failures.append(f"{name}: {exc!r}")
            over.set()

    return run


def main() -> None:
    """Work until stdin closes."""
    opened = threading.Barrier(3)
    works: dict[str, Callable[[], None]] = {
        "redis-benchmark": benchmark,
        "pages": pages,
        "subscription": lambda: subscription(opened),
        "kept pages": lambda: kept_pages(opened),
    }
    threads = [threading.Thread(target=noted(*work), daemon=True) for work in works.items()]
    for thread in threads:
        thread.start()
    opened.wait(PATIENCE)
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    print(json.dumps({**done, "failures": failures}))


if __name__ == "__main__":
    main()
