"""JSON lines between a child and its parent."""

from __future__ import annotations

import json
import socket
from typing import Any

from shmzero.errors import ModelFailed


class Control:
    """JSON lines over the socket that the parent holds the other end of."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._received = b""
        self.closed = False

    def commands(self) -> list[dict[str, Any]]:
        """The commands that have come since the last call. Never blocks."""
        try:
            while chunk := self._socket.recv(65536):
                self._received += chunk
            self.closed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.closed = True
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def failed(self, error: ModelFailed) -> None:
        """A batch that failed ends the process; the one that takes its place runs the batch again."""
        raise error

    def send(self, **event: Any) -> None:
        """One event; a parent that is gone is noticed by `commands`."""
        try:
            self._socket.setblocking(True)
            self._socket.sendall(json.dumps(event).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
        finally:
            self._socket.setblocking(False)
