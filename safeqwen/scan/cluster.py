"""The Ray cluster that a scan runs on: connecting to it, quietly and quickly, and what it has."""

import contextlib
import logging
import os
import socket
import sys

from safeqwen.pictures.errors import one_line
from safeqwen.scan import INSTALL
from safeqwen.showing.words import counted


INSTALL_RAY = INSTALL.replace("scan", "scan,ray")
CONNECT_WITHIN_S = 5.0


@contextlib.contextmanager
def connected(address=None):
    """
    Connects to a Ray cluster, if this process is not, and says nothing of Ray's own to the terminal meanwhile.

    Args:
        address (`str`, *optional*): HOST:PORT, or "auto" for the cluster that this machine is part of. By default
            that of the variable RAY_ADDRESS, else the cluster that this machine is part of, else Ray is started here.

    Raises:
        ImportError: if Ray is missing.
        ValueError: if there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each pool of actors is warned of on stderr
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError(f"--engine ray needs Ray ({error}): {INSTALL_RAY}") from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its files keep the log
            handler.setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "here, and none could be started"
        raise ValueError(f"there is no Ray cluster {where}: {one_line(error)}") from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says that an actor died
            yield
    finally:
        ray.shutdown()


def resources():
    """Returns what the cluster has, in words (`str`)."""
    import ray

    has = ray.cluster_resources()
    units = {"machine": len(ray.nodes()), "CPU core": int(has.get("CPU", 0)), "GPU": int(has.get("GPU", 0))}
    return "{}, {} and {}".format(*(counted(number, unit) for unit, number in units.items()))


def _check_reachable(address):
    """Raises a `ValueError` if nobody listens at HOST:PORT. Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ValueError(
            f"--address takes HOST:PORT of a Ray cluster, or auto; got {address}. Start the command on a machine of "
            "the cluster"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise ValueError(
            f"nobody answers at {address} ({error}): is it the address that `ray start --head` printed, and can this "
            "machine reach it?"
        ) from None
