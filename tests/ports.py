"""Ports for servers that tests start."""

from __future__ import annotations

import socket
import time


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_port(port: int, wait_s: float) -> None:
    """Until somebody listens there."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            return
