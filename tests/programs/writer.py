"""A client like many others: redis-py with its default settings, which asks the Sentinels once and keeps its
connection.

    writer.py GROUP HOST:PORT…        the Sentinels
    writer.py --at HOST:PORT          one address, behind which there is a master

The client writes all the time, each write once the one before is answered. Each line on standard input is
answered with one JSON object. `begin` waits until the client has written, and resets the longest gap. The
answer to `end` contains how many writes were acknowledged, which of them are lost, and the longest time in
milliseconds between two acknowledged writes.
"""

import json
import sys
import threading
import time

import redis
from redis.sentinel import Sentinel


class Writer:
    def __init__(self, master):
        self.master = master
        self.acknowledged = []
        self.errors = {}
        self.last = time.monotonic()
        self.longest = 0.0
        threading.Thread(target=self.write_on, daemon=True).start()

    def write_on(self):
        number = 0
        while True:
            number += 1
            try:
                self.master.set(f"w:{number}", 1)
            except redis.RedisError as error:
                name = f"{type(error).__name__}: {error}"
                self.errors[name] = self.errors.get(name, 0) + 1
                time.sleep(0.002)
                continue
            now = time.monotonic()
            self.longest = max(self.longest, now - self.last)
            self.last = now
            self.acknowledged.append(number)

    def until_written(self, more):
        before = len(self.acknowledged)
        until = time.monotonic() + 30
        while len(self.acknowledged) < before + more and time.monotonic() < until:
            time.sleep(0.001)
        return len(self.acknowledged) - before

    def begin(self):
        written = self.until_written(20)
        self.longest = 0.0
        return {"written": written}

    def read(self, keys):
        until = time.monotonic() + 30
        while True:
            try:
                return self.master.mget(keys)
            except redis.RedisError:
                # A balancer may have ended a connection of the pool meanwhile.
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def end(self):
        written = self.until_written(20)
        acknowledged = list(self.acknowledged)
        there = self.read([f"w:{number}" for number in acknowledged])
        return {
            "written": written,
            "acknowledged": len(acknowledged),
            "lost": [number for number, value in zip(acknowledged, there) if value is None],
            "longest_gap_ms": round(1000 * self.longest, 1),
            "errors": self.errors,
        }


def main():
    group, *addresses = sys.argv[1:]
    addresses = [(host, int(port)) for host, port in (one.rsplit(":", 1) for one in addresses)]
    if group == "--at":
        writer = Writer(redis.Redis(*addresses[0]))
    else:
        writer = Writer(Sentinel(addresses).master_for(group))
    answers = {"begin": writer.begin, "end": writer.end}
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
