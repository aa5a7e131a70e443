"""Where processes meet before JAX connects them.

JAX ends a process whose peers do not come in time, without an exception. So they first meet here, at the same port,
where somebody missing is an error like any other.
"""

import socket
import time
from collections.abc import Collection
from contextlib import ExitStack

WELCOME = b"all here"


def receive(names: Collection[str], port: int, timeout: float, /) -> None:
    """Wait until all that bear these names have knocked, and let them go on together.

    Raises
    ------
    OSError
        If the port cannot be listened on, or `timeout` seconds have passed (a TimeoutError).
    """
    deadline, peers = time.monotonic() + timeout, {}
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(port))
        while missing := sorted(set(names) - set(peers)):
            try:
                listener.settimeout(max(deadline - time.monotonic(), 0.01))
                peer = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                late = ", ".join(missing)
                raise TimeoutError(
                    f"{late} did not come to port {port} within {timeout:g} s: start every process, each by its number"
                ) from None
            peers[_name(peer)] = peer
            peers = {name: peer for name, peer in peers.items() if _is_there(peer)}
        for name in names:
            peers[name].setblocking(True)
            peers[name].sendall(WELCOME)


def connect(name: str, host: str, port: int, timeout: float, /) -> None:
    """Connect to process 0, trying again until it listens, and wait for the others.

    Raises
    ------
    TimeoutError
        If process 0 does not listen, or some process does not join, within `timeout` seconds.
    """
    deadline, reason = time.monotonic() + timeout, "some processes have not joined"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as listener:
                listener.sendall(name.encode())
                if listener.recv(len(WELCOME)) == WELCOME:
                    return
        except OSError as error:  # not open yet; a time that has run out says less than what was wrong before
            reason = reason if isinstance(error, TimeoutError) else error.strerror or str(error)
        time.sleep(0.1)
    raise TimeoutError(
        f"{name} could not join at {host}:{port} within {timeout:g} s ({reason}): is process 0 running there, "
        "with the same number of processes, and the port open?"
    )


def _listen(port: int) -> socket.socket:
    # On all addresses, as JAX will: the name by which others reach this machine may not be one of its own.
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, backlog=128, dualstack_ipv6=dual
        )
    except OSError as error:
        raise OSError(f"cannot listen on port {port} ({error.strerror}): choose another one") from error


def _is_there(peer: socket.socket) -> bool:
    """Whether somebody who has knocked is still waiting."""
    peer.setblocking(False)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _name(peer: socket.socket) -> str:
    peer.settimeout(1)
    try:
        return peer.recv(64).decode(errors="replace")
    except OSError:  # a stranger, who says nothing
        return ""
