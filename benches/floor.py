#!/usr/bin/env python3
"""The floor: what an operation costs when nobody thinks.

Replays the recorded list of one real operation of the daemon, on a volume of its own: the HTTP calls
(method, path, body, the headers that Cinder looks at) on connections that are open and warm, the
processes with the same arguments, and the system calls that wrote out filesystem and device. A step
starts when those steps have ended that had ended before it began in the recording, so what the
daemon overlaps is overlapped here too.

Two floors: without the journal (what Cinder, the device and the filesystem need), and with the
recorded fsync and rename pattern of the journal (what durability costs).

What it leaves out is what the daemon adds: deciding, reading the superblock and /proc, parsing JSON,
looking whether something is ready. Waits of the daemon are left out too: a call that was a look at a
volume being made is asked once, when it is its turn. It is Python, so its own overhead (some 0.05 ms
a step) makes the floor a little too high where a step takes no time.

It knows nothing of the project's code; standard library only. One JSON request a line on standard
input, one answer a line on standard output.
"""

import concurrent.futures
import fcntl
import json
import os
import re
import socket
import ssl
import sys
import threading
import time

BLKFLSBUF = 0x1261
ENTRY = b"x" * 2048  # a journal entry of usual size
TOOL_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Connection:
    """A keep-alive connection."""

    def __init__(self, cloud):
        raw = socket.create_connection((cloud["host"], cloud["port"]))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if cloud.get("ca"):
            context = ssl.create_default_context(cafile=cloud["ca"])
            raw = context.wrap_socket(raw, server_hostname=cloud["host"])
        self.socket, self.host = raw, f"{cloud['host']}:{cloud['port']}"

    def ask(self, method, path, headers, body):
        body = body.encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += [f"Content-Length: {len(body)}", "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.more()
        head, rest = data.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        length = int(length.group(1)) if length else 0
        parts, have = [rest], len(rest)
        while have < length:
            parts.append(self.more())
            have += len(parts[-1])
        return int(head.split(b" ", 2)[1]), b"".join(parts)

    def more(self):
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the cloud closed the connection")
        return data


class Replay:
    def __init__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(max_workers=16)
        self.lock = threading.Lock()
        self.idle = []
        self.null = os.open("/dev/null", os.O_RDWR)

    def set_up(self, request):
        self.cloud, self.recording, self.state = request["cloud"], request["recording"], request["state"]
        self.token = request["token"]
        os.makedirs(self.state, exist_ok=True)
        self.idle = [Connection(self.cloud) for _ in range(4)]
        for connection in self.idle:
            connection.ask("GET", "/v3", [], "")
        return {}

    def run(self, request):
        steps = self.recording[request["op"]]
        names = dict(request["names"])
        journal = request["journal"]
        if request.get("recording"):
            steps = request["recording"]
        # Steps that are left out pass on what they waited for.
        waits, steps_left = [], []
        for step in steps:
            after = set()
            for index in step["after"]:
                after |= {index} if steps_left[index] else waits[index]
            waits.append(after)
            steps_left.append(journal or not step["kind"].startswith("journal"))
        todo = [index for index, left in enumerate(steps_left) if left]
        begun = time.perf_counter()
        done, running = set(), {}
        while todo or running:
            ready = [index for index in todo if waits[index] <= done]
            todo = [index for index in todo if index not in ready]
            if len(ready) == 1 and not running:
                self.step(steps[ready[0]], names)
                done.add(ready[0])
                continue
            for index in ready:
                running[self.pool.submit(self.step, steps[index], names)] = index
            ended, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                future.result()
                done.add(running.pop(future))
        return {"ms": (time.perf_counter() - begun) * 1000, "names": names}

    def step(self, step, names):
        def fill(text):
            for name, value in names.items():
                text = text.replace("{" + name + "}", value)
            return text

        kind = step["kind"]
        if kind == "call":
            self.call(step, fill, names)
        elif kind == "process":
            self.process([fill(word) for word in step["words"]])
        elif kind == "journal":
            self.journal(fill("{NAME}"))
        elif kind == "journal-remove":
            self.journal_remove(fill("{NAME}"))
        elif kind == "syncfs":
            self.sync(fill(step["path"]))
        elif kind == "flush":
            self.flush(fill(step["path"]), step["drop_cache"])
        elif kind == "mkdir":
            os.makedirs(fill(step["path"]), exist_ok=True)
        elif kind == "rmdir":
            os.rmdir(fill(step["path"]))
        else:
            raise ValueError(f"cannot replay {kind}")

    def call(self, step, fill, names):
        with self.lock:
            connection = self.idle.pop() if self.idle else None
        connection = connection or Connection(self.cloud)
        headers = [(name, self.token if name == "X-Auth-Token" else value)
                   for name, value in step["headers"]]
        status, body = connection.ask(step["method"], fill(step["path"]), headers, fill(step["body"]))
        with self.lock:
            self.idle.append(connection)
        # A look may find the volume one state further on; an effect must be the same.
        if status != step["status"] and step["method"] != "GET":
            raise ValueError(f"{step['method']} {fill(step['path'])}: {status} instead of "
                             f"{step['status']}: {body[:300]!r}")
        if len(body) < 65536 and b"{" in body:
            self.learn(json.loads(body), names)

    @staticmethod
    def learn(answer, names):
        """The ids that later steps need."""
        attachment, volume = answer.get("attachment"), answer.get("volume")
        if volume:
            names.setdefault("VOLUME", volume["id"])
        if attachment:
            names.setdefault("ATTACHMENT", attachment["id"])
            device = (attachment.get("connection_info") or {}).get("device_path")
            if device:
                names["DEVICE"] = device

    def process(self, words):
        path = words[0]
        pid = os.posix_spawn(path, words, TOOL_ENVIRONMENT, file_actions=[
            (os.POSIX_SPAWN_DUP2, self.null, fd) for fd in (0, 1, 2)])
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise ValueError(f"{words}: {status}")

    def journal(self, name):
        path = os.path.join(self.state, name)
        fd = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.write(fd, ENTRY)
        os.fsync(fd)
        os.close(fd)
        os.rename(path + ".new", path)
        self.sync_directory()

    def journal_remove(self, name):
        try:
            os.unlink(os.path.join(self.state, name))
        except FileNotFoundError:
            pass
        self.sync_directory()

    def sync_directory(self):
        fd = os.open(self.state, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    @staticmethod
    def sync(path):
        fd = os.open(path, os.O_RDONLY)
        SYNCFS(fd)
        os.close(fd)

    @staticmethod
    def flush(path, drop_cache):
        fd = os.open(path, os.O_RDONLY)
        if drop_cache:
            fcntl.ioctl(fd, BLKFLSBUF)
        else:
            os.fsync(fd)
        os.close(fd)


def syncfs():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)

    def call(fd):
        if libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    return call


SYNCFS = syncfs()


def main():
    replay = Replay()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = replay.set_up(request) if request["do"] == "set_up" else replay.run(request)
        except Exception as error:  # told to who asked: one operation that fails is one figure less
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
