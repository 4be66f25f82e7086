"""Which ranks of this machine have ended: during set-up no collective would tell.

Every rank listens under a name that only Linux knows, which goes with the process; the others keep
a connection to it. Nothing is imported for it, so it works from a rank's first moment on.
"""

import socket
import sys
from collections.abc import Mapping


class Presence:
    """The ranks of one run on this machine. environment: with the rendezvous variables."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        meet = ":".join(environment[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
        self._name = f"\0poa_ds/{meet}/{{}}".format
        self._rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        known = sys.platform == "linux"
        self._others = [rank for rank in range(world) if rank != self._rank] if known else []
        self._seen: dict[int, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        if self._others:
            self._listen(world)

    def _listen(self, world: int) -> None:
        try:
            self._socket.bind(self._name(self._rank))
            self._socket.listen(world)
        except OSError:  # another program plays this part: it is not for this one to be seen
            self._socket.close()

    def gone(self) -> list[int]:
        """The ranks that were there and are not any more."""
        for rank in self._others:
            if rank not in self._seen:
                self._meet(rank)
        return [rank for rank, connection in sorted(self._seen.items()) if _is_closed(connection)]

    def _meet(self, rank: int) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(self._name(rank))
        except OSError:  # not there yet, or elsewhere
            connection.close()
        else:
            self._seen[rank] = connection


def _is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
