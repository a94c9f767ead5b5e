"""Messages between a child and its parent, over a socket of which each holds one end.

Read next: messages.py.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Generic

from shmzero.processes.messages import Kinds, M, Message, encode


class LineSocket(Generic[M]):
    """One end of the socket. Receiving never blocks; a sender chooses whether to wait."""

    def __init__(self, fd: int, received: Kinds[M]) -> None:
        """The end `fd`, which this object closes; `received` is what arrives here."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._kinds = received
        self._buffer = b""
        self._unsent = b""
        self.closed = False
        """Whether the other end is known to be gone."""

    @classmethod
    def pair(cls, received: Kinds[M], held: ExitStack, theirs: ExitStack) -> tuple[LineSocket[M], int]:
        """The parent's end, which `held` closes, and the descriptor of the child's, which `theirs` closes.

        Raises OSError.
        """
        ours, other = socket.socketpair()
        held.callback(ours.close)
        theirs.callback(other.close)
        lines = cls(ours.detach(), received)
        held.callback(lines.close)
        return lines, other.fileno()

    def fileno(self) -> int:
        """The descriptor, which becomes readable when something has arrived."""
        return self._socket.fileno()

    def receive(self) -> list[M]:
        """The messages that have arrived since the last call. Never blocks. Raises MessageError."""
        parts = [self._buffer]
        try:
            while part := self._socket.recv(65536):
                parts.append(part)
            self.closed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.closed = True
        *lines, self._buffer = b"".join(parts).split(b"\n")
        return [self._kinds.decode(line) for line in lines]

    def send(self, message: Message) -> None:
        """Send one message and wait until it is on its way. Where the other end is gone it is lost."""
        self._socket.setblocking(True)
        try:
            self._socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
        finally:
            self._socket.setblocking(False)

    def post(self, message: Message) -> None:
        """Send one message as far as there is room; `flush` sends the rest. Never blocks."""
        self._unsent += encode(message)
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
