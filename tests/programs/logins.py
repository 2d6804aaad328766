"""Clients of servers whose password changes: redis-py, used as many clients use it.

    logins.py USER OLD NEW HOST:PORT…

On every server, one connection logs in at the start with the old password and is used all the time. New
connections are opened and log in one after the other. Each line on standard input is answered with one JSON
object, once each server has had ten new logins:

    old, both, new    sets the passwords with which new connections log in from now on
    end               asks which kept connections were lost, and which logins were refused
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
                # A replica takes no write, and answers all the same.
                self.kept.send_command("SET", "login", self.used)
                try:
                    self.kept.read_response()
                except redis.exceptions.ReadOnlyError:
                    pass
                self.kept.send_command("GET", "login")
                self.kept.read_response()
            except Exception as error:
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
            except Exception as error:
                # The phase may have ended during the login.
                if self.phase == phase:
                    self.refused.append(f"{self.address} ({phase}): {type(error).__name__}: {error}")
            time.sleep(0.002)

    def until_both(self, more=10):
        logged_in, used, until = self.logged_in, self.used, time.monotonic() + 30
        while (self.logged_in < logged_in + more or self.used < used + more) and time.monotonic() < until:
            if self.lost or self.refused:
                return
            time.sleep(0.001)
        if self.logged_in < logged_in + more or self.used < used + more:
            self.lost.append(
                f"{self.address}: stalled: {self.logged_in - logged_in} logins, {self.used - used} uses"
            )


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
