"""JSON lines between a child and its parent, over a socket of which each holds one end."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from typing import Any


class LineSocket:
    """One end of the socket. Receiving never blocks; a sender chooses whether to wait."""

    def __init__(self, fd: int) -> None:
        """`fd` is the end that a child has inherited. This object closes it."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._received = b""
        self._unsent = b""
        self.closed = False
        """Whether the other end is known to be gone."""

    @classmethod
    def pair(cls, held: ExitStack, theirs: ExitStack) -> tuple[LineSocket, int]:
        """The parent's end, which `held` closes, and the descriptor of the child's, which `theirs` closes.

        Raises OSError.
        """
        ours, other = socket.socketpair()
        held.callback(ours.close)
        theirs.callback(other.close)
        lines = cls(ours.detach())
        held.callback(lines.close)
        return lines, other.fileno()

    def fileno(self) -> int:
        """The descriptor, which becomes readable when something has arrived."""
        return self._socket.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived since the last call. Never blocks."""
        parts = [self._received]
        try:
            while part := self._socket.recv(65536):
                parts.append(part)
            self.closed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.closed = True
        *lines, self._received = b"".join(parts).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, **message: Any) -> None:
        """Send one message and wait until it is on its way. Where the other end is gone it is lost."""
        self._socket.setblocking(True)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
        finally:
            self._socket.setblocking(False)

    def post(self, **message: Any) -> None:
        """Send one message as far as there is room; `flush` sends the rest. Never blocks."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what was posted, as far as there is room now. Where the other end is gone it is lost."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent = b""
            self.closed = True

    def close(self) -> None:
        self._socket.close()
