"""Clients of servers whose password changes: redis-py, as many of them use it.

    logins.py USER OLD NEW HOST:PORT…

On every server one connection is logged in at the start with the old password and used all the time, and new connections are
opened and logged in one after the other. Each line on standard input is answered with one JSON object:

    old, both, new    the passwords that new connections log in with from now on; answered once each server has had ten of them
    end               which kept connections were lost, and every login that was refused
"""

import json
import sys
import threading
import time

import redis


class Server:
    def __init__(self, address, user, old, new):
        host, port = address.rsplit(":", 1)
        self.address = address
        self.where = {"host": host, "port": int(port), "username": user}
        self.passwords = {"old": [old], "both": [old, new], "new": [new]}
        self.phase = "old"
        self.logged_in = 0
        self.used = 0
        self.lost = []
        self.refused = []
        self.kept = self.connect(old)
        threading.Thread(target=self.use, daemon=True).start()
        threading.Thread(target=self.log_in, daemon=True).start()

    def connect(self, password):
        connection = redis.Connection(password=password, **self.where)
        connection.connect()
        return connection

    def use(self):
        while True:
            try:
                self.kept.send_command("PING")
                self.kept.read_response()
            except redis.RedisError as error:
                self.lost.append(f"{self.address}: {type(error).__name__}: {error}")
                return
            self.used += 1
            time.sleep(0.002)

    def log_in(self):
        number = 0
        while True:
            phase = self.phase
            passwords = self.passwords[phase]
            number += 1
            try:
                connection = self.connect(passwords[number % len(passwords)])
                connection.disconnect()
                self.logged_in += 1
            except redis.RedisError as error:
                # A phase may have ended while it was logging in.
                if self.phase == phase:
                    self.refused.append(f"{self.address} ({phase}): {type(error).__name__}: {error}")
            time.sleep(0.002)

    def until_both(self, more=10):
        logged_in, used, until = self.logged_in, self.used, time.monotonic() + 30
        while (self.logged_in < logged_in + more or self.used < used + more) and time.monotonic() < until:
            if self.lost or self.refused:
                return
            time.sleep(0.001)


def main():
    user, old, new, *addresses = sys.argv[1:]
    servers = [Server(address, user, old, new) for address in addresses]
    for line in sys.stdin:
        word = line.strip()
        for server in servers:
            if word != "end":
                server.phase = word
        for server in servers:
            server.until_both()
        answer = {
            "logged_in": [server.logged_in for server in servers],
            "used": [server.used for server in servers],
            "lost": [lost for server in servers for lost in server.lost],
            "refused": [refused for server in servers for refused in server.refused],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
