"""What a role did to its files, in order, from the system calls that strace saw: the ground for states that a power loss could leave.

System calls and not a layer over Python's `os`: nothing in the role knows that it is watched, and no way of writing escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CALLS = (
    "open,openat,creat,close,write,writev,pwrite64,pwritev,ftruncate,truncate,fallocate,lseek,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,dup,dup2,dup3,accept4,connect,recvfrom,sendto,sendmsg"
)


def strace(output: Path) -> tuple[str, ...]:
    """The prefix of a command (see `Role`) that writes to this file what `read` reads."""
    return ("strace", "-D", "-f", "-qq", "-xx", "-s", str(32 << 20), "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(output))


@dataclass(slots=True)
class Event:
    """One thing that happened. Writes and changes of names count from the start of their call, syncs from its end."""

    kind: Literal["make", "write", "truncate", "sync", "rename", "unlink", "mkdir", "acknowledged", "delivered"]
    path: str = ""
    """Of a file below the root, as it was opened; of the new name in a rename. The batch's id of what was acknowledged or delivered."""
    old: str = ""
    inode: int = -1
    """A number of this trace's own for each file that was created."""
    offset: int = 0
    data: bytes = b""
    since: int = 0
    """Of a sync: how many events had begun when it was called; it says nothing of later ones."""


@dataclass(slots=True)
class _Call:
    name: str
    arguments: str
    result: int
    order: int
    """Where its start stands among the calls."""


@dataclass(slots=True)
class _Open:
    path: str
    inode: int
    position: int = 0
    appends: bool = False


_LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))", re.DOTALL)
_RESULT = re.compile(r"(.*)\) += (-?\d+|\?)[^)]*(?:\([^)]*\))?$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_ID = re.compile(rb"\r\nx-lockgate-batch-id: *([^\r]+)\r\n", re.IGNORECASE)


def _calls(path: Path) -> Iterator[tuple[Literal["start", "end"], _Call]]:
    """Each successful call, once when it began and once when it ended: only its end says what came of it."""
    results: dict[int, _Call] = {}
    open_calls: dict[str, tuple[int, str, str]] = {}
    order = 0
    steps: list[tuple[Literal["start", "end"], int]] = []
    with open(path) as lines:
        for line in lines:
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            thread, name, rest, resumed, more = match.groups()
            if name is not None:
                order += 1
                steps.append(("start", order))
                if rest.endswith("<unfinished ...>"):
                    open_calls[thread] = (order, name, rest.removesuffix("<unfinished ...>"))
                    continue
                number, text = order, rest
            elif resumed is not None and thread in open_calls:
                number, name, begun = open_calls.pop(thread)
                text = begun + more
            else:
                continue
            if (ended := _RESULT.match(text)) is not None and ended[2] != "?" and int(ended[2]) >= 0:
                results[number] = _Call(name, ended[1], int(ended[2]), number)
            steps.append(("end", number))
    for step, number in steps:
        if number in results:
            yield step, results[number]


def read(path: Path, root: Path) -> list[Event]:
    """What happened to the files below `root`, and which batches were acknowledged to clients and by the server behind."""
    reader = _Reader(str(root))
    for step, call in _calls(path):
        reader.begin(call) if step == "start" else reader.end(call)
    return reader.events


class _Reader:
    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") + "/"
        self.events: list[Event] = []
        self._open: dict[int, _Open] = {}
        self._names: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._accepted: dict[int, str] = {}
        """The id of the batch that came over this connection last."""
        self._sent: dict[int, str] = {}

    def begin(self, call: _Call) -> None:
        self._begun[call.order] = len(self.events)
        arguments = call.arguments
        match call.name:
            case "write" | "pwrite64" | "writev" | "pwritev":
                self._write(call)
            case "ftruncate":
                if (file := self._open.get(_number(arguments))) is not None:
                    self._truncate(file, int(arguments.rpartition(",")[2], 0))
            case "truncate" | "fallocate" | "sync_file_range" | "link":
                raise AssertionError(f"{call.name} is not modelled")
            case "rename" | "renameat" | "renameat2":
                old, new = _strings(arguments)[:2]
                if self._is_ours(new.decode()):
                    inode = self._names.pop(old.decode())
                    self._names[new.decode()] = inode
                    self.events.append(Event("rename", new.decode(), old=old.decode(), inode=inode))
            case "unlink" | "unlinkat" | "rmdir":
                name = _strings(arguments)[0].decode()
                if self._is_ours(name):
                    self.events.append(Event("unlink", name, inode=self._names.pop(name)))
            case "mkdir" | "mkdirat":
                name = _strings(arguments)[0].decode()
                if self._is_ours(name):
                    self.events.append(Event("mkdir", name))
            case "sendto" | "sendmsg":
                self._send(call)

    def end(self, call: _Call) -> None:
        arguments = call.arguments
        match call.name:
            case "open" | "openat" | "creat":
                self._opened(call)
            case "close":
                for known in (self._open, self._accepted, self._sent):
                    known.pop(_number(arguments), None)
            case "dup" | "dup2" | "dup3":
                if (file := self._open.get(_number(arguments))) is not None:
                    self._open[call.result] = file
            case "lseek":
                if (file := self._open.get(_number(arguments))) is not None:
                    file.position = call.result
            case "fsync" | "fdatasync":
                if (file := self._open.get(_number(arguments))) is not None:
                    self.events.append(Event("sync", file.path, inode=file.inode, since=self._begun[call.order]))
            case "accept4":
                self._accepted[call.result] = ""
            case "recvfrom":
                self._received(call)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._root)

    def _opened(self, call: _Call) -> None:
        path = _strings(call.arguments)[0].decode()
        self._accepted.pop(call.result, None)
        self._sent.pop(call.result, None)
        flags = call.arguments.rpartition('"')[2]
        if not (self._is_ours(path) or path + "/" == self._root) or "O_PATH" in flags:
            self._open.pop(call.result, None)
            return
        if "O_DIRECTORY" in flags:
            self._open[call.result] = _Open(path, -1)
            return
        if path not in self._names:
            inode = self._names[path] = len(self._sizes)
            self._sizes[inode] = 0
            self.events.append(Event("make", path, inode=inode))
        file = self._open[call.result] = _Open(path, self._names[path], appends="O_APPEND" in flags)
        if "O_TRUNC" in flags and self._sizes[file.inode]:
            self._truncate(file, 0)

    def _truncate(self, file: _Open, size: int) -> None:
        self._sizes[file.inode] = size
        self.events.append(Event("truncate", file.path, inode=file.inode, offset=size))

    def _write(self, call: _Call) -> None:
        if (file := self._open.get(_number(call.arguments))) is None:
            return
        data = b"".join(_strings(call.arguments))[: call.result]
        assert len(data) == call.result, f"strace cut a write of {call.result} bytes"
        if call.name.startswith("pwrite"):
            offset = int(call.arguments.rpartition(",")[2], 0)
        else:
            offset = self._sizes[file.inode] if file.appends else file.position
            file.position = offset + len(data)
        self._sizes[file.inode] = max(self._sizes[file.inode], offset + len(data))
        self.events.append(Event("write", file.path, inode=file.inode, offset=offset, data=data))

    def _send(self, call: _Call) -> None:
        number, data = _number(call.arguments), b"".join(_strings(call.arguments))
        if number in self._accepted:
            if data.startswith(b"HTTP/1.1 200") and self._accepted[number]:
                # The client may know from here on.
                self.events.append(Event("acknowledged", self._accepted[number]))
                self._accepted[number] = ""
        elif (found := _ID.search(data)) is not None:
            self._sent[number] = found[1].decode()

    def _received(self, call: _Call) -> None:
        number, data = _number(call.arguments), b"".join(_strings(call.arguments)[:1])
        if number in self._accepted:
            if (found := _ID.search(data)) is not None:
                self._accepted[number] = found[1].decode()
        elif data.startswith(b"HTTP/1.1 200") and number in self._sent:
            self.events.append(Event("delivered", self._sent.pop(number)))


def _number(arguments: str) -> int:
    return int(arguments.partition(",")[0])


def _strings(arguments: str) -> list[bytes]:
    found = []
    for match in _STRING.finditer(arguments):
        assert not match[2], "strace cut a string short"
        found.append(bytes.fromhex(match[1].replace("\\x", "")))
    return found
