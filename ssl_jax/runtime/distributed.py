"""Several processes, on one machine or on many, that make one run.

Every process runs the same program on its own devices; `jax.distributed` makes them know each other, and a
mesh goes over the devices of all. How a process learns that it is one of several, first come first served:

1. `--coordinator=HOST:PORT --num_processes=N --process_id=I`, or the environment's JAX_COORDINATOR_ADDRESS,
   JAX_NUM_PROCESSES and JAX_PROCESS_ID (set by `launch.local` and by a Kubernetes JobSet). Each may come by
   either way.
2. A step of SLURM (`srun`) with several tasks, one for each GPU.
3. A TPU pod.

A process that is alone starts nothing.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.interruption import StopSignal

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
# The processes of a run may end minutes apart: the first of them writes the report.
END_SECONDS = 600
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the variables that gRPC obeys, in its order
WITHOUT_PROXY = ("no_grpc_proxy", "no_proxy")  # hosts that it reaches directly; the second where no first is
PATIENCE_SECONDS = 20  # after which a process says that it waits for others


class Place(NamedTuple):
    """Where a process stands among those of its run.

    Attributes:
      coordinator: "host:port" of process 0, where all processes meet.
      num_processes: of the run.
      process_id: which of them this is, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def place(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """What the flags, or else JAX's variables of the environment, say; None where they say nothing.

    Raises:
      InputError: a part is missing, is given twice and differs, or cannot be.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    parts = {}
    for name, variable in VARIABLES.items():
        flag, value = given[name], environment.get(variable) or None
        if value is not None and name != "coordinator":
            value = _integer(variable, value)
        if None not in (flag, value) and flag != value:
            raise InputError(
                f"--{name}={flag} contradicts {variable}={value} of the environment; remove one of them"
            )
        parts[name] = value if flag is None else flag
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts):
        return None
    if missing:
        listing = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
        raise InputError(f"a run of several processes also needs {listing}")
    found = Place(**parts)
    if not re.fullmatch(r".+:\d+", found.coordinator):
        raise InputError(f"the coordinator must be HOST:PORT, such as node1:8476, not {found.coordinator!r}")
    if found.num_processes < 1 or not 0 <= found.process_id < found.num_processes:
        raise InputError(
            f"process_id={found.process_id} of num_processes={found.num_processes} is out of range; the "
            "processes are numbered from 0 to num_processes - 1"
        )
    return found


def _integer(variable: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{variable}={value} of the environment must be a whole number") from None


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any; to be called before any computation.

    Args:
      coordinator, num_processes, process_id: see `place`.
      timeout_seconds: how long to wait for the others.

    Raises:
      InputError: see `place`; or the others cannot be reached.
    """
    found = place(coordinator, num_processes, process_id)
    if found is not None:
        if found.num_processes > 1:
            _check_coordinator(found, timeout_seconds)
            _pass_by_proxies(found)
            _initialize(
                timeout_seconds,
                coordinator_address=found.coordinator,
                num_processes=found.num_processes,
                process_id=found.process_id,
                cluster_detection_method="deactivate",
            )
    elif all(name in os.environ for name in SLURM_STEP) and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        _initialize(timeout_seconds, cluster_detection_method="slurm")
    elif importlib.util.find_spec("libtpu") and not os.environ.get("JAX_PLATFORMS", "tpu").startswith("cpu"):
        # On a machine without TPU jax finds no cluster, and the process is alone.
        with contextlib.suppress(ValueError):
            _initialize(timeout_seconds)


def _check_coordinator(found: Place, timeout_seconds: int) -> None:
    """Raises InputError where jax itself would end the program with a page of C++."""
    host, _, port = found.coordinator.rpartition(":")
    if found.process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"process 0 cannot listen at port {port} ({error}); choose another port for the coordinator"
            ) from None
        return
    last = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= last:
                raise InputError(
                    f"process {found.process_id} does not reach the coordinator, process 0, at "
                    f"{found.coordinator} within {timeout_seconds} seconds ({error}); check the address, and "
                    "that process 0 has started"
                ) from None
        time.sleep(0.2)


def _pass_by_proxies(found: Place) -> None:
    """Lets gRPC, by which jax talks to the coordinator, reach it directly.

    gRPC would send even what is for localhost to a proxy, and processes of one run reach each other without.
    """
    if _proxy() is not None:
        host = found.coordinator.rpartition(":")[0].strip("[]")
        os.environ[WITHOUT_PROXY[0]] = ",".join(filter(None, [_hosts_without_proxy(), host]))


def _proxy() -> str | None:
    return next((name for name in PROXIES if os.environ.get(name)), None)


def _hosts_without_proxy() -> str:
    return next((os.environ[name] for name in WITHOUT_PROXY if os.environ.get(name)), "")


def _initialize(timeout_seconds: int, **arguments: Any) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPUs; others have their own
    waiting = threading.Timer(PATIENCE_SECONDS, _say_what_is_awaited, (timeout_seconds,))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=timeout_seconds, shutdown_timeout_seconds=END_SECONDS
        )
    finally:
        waiting.cancel()
    atexit.register(_leave_if_failed)


def _say_what_is_awaited(timeout_seconds: int) -> None:
    said = f"waiting for the other processes of the run; after {timeout_seconds} seconds this one gives up"
    if _proxy() is not None:
        said += (
            f". {_proxy()} is set, and that proxy may be in the way: {WITHOUT_PROXY[0]} must list the hosts "
            f"of the run, and lists {_hosts_without_proxy() or 'none'}"
        )
    print(said, file=sys.stderr, flush=True)


# --- Ending together


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """A failure inside ends this process at once.

    At the end of a program jax waits for the other processes, and they may be waiting for this one in the
    midst of a computation. Told to stop (SystemExit), all end at the same step, and nobody waits in vain.
    """
    global _status
    try:
        yield
    except Exception as error:
        _status = 2 if isinstance(error, InputError) else 1
        raise


_status = None


def _leave_if_failed() -> None:
    # The interpreter is ending: the error has been printed.
    if _status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)


class StopTogether(StopSignal):
    """A `StopSignal` that all processes of a run receive at the same step, whichever was told.

        with StopTogether() as stop:
            while not stop.at(step):
                ...

    Of several processes SIGTERM is jax's, which lets them agree; SIGINT (Ctrl-C) and SIGHUP are passed on as
    SIGTERM, and act as usual the second time.
    """

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            return super().__enter__()
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._pass_on)
        return self

    def _pass_on(self, number, frame):
        del number, frame
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def at(self, step: int) -> bool:
        """Whether to stop before the step after `step`; all processes ask at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None


# --- Talking to each other


def gather(value: Any) -> list[Any]:
    """What each process has to say, by process: values that JSON knows. All processes make the same calls."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(max(sizes)), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """What is inside is done by process 0 before the others do it."""
    if jax.process_index() != 0:
        multihost_utils.sync_global_devices("process 0 goes first")
    yield
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices("process 0 goes first")
