"""Tasks computed elsewhere: by processes of this machine, or by the workers of a Dask cluster.

Either way an answer comes as soon as it is there, what goes wrong with a task is its own answer, and what a process
was at when it died is computed by another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ntkp2p.base.compiled import in_use, use
from ntkp2p.base.errors import InputError
from ntkp2p.base.imports import needed

#: So long a cluster without workers is waited for, in seconds.
PATIENCE = 60

Answers = Generator[tuple[Any, Any], None, None]


@dataclass(frozen=True)
class Failure:
    """Why a task has no result, in one line."""

    reason: str
    #: Whether the reason is a defect of the program, rather than a mistake or the operating system.
    defect: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """With its kind where it is no user's mistake, for those say all themselves."""
        words = " ".join(str(error).split())
        explained = isinstance(error, InputError | OSError) and words
        return cls(words) if explained else cls(f"{type(error).__name__}: {words}", defect=True)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def locally(function: Callable[[Any], Any], tasks: Sequence[Any], count: int, /) -> Answers:
    """Every task with its result or `Failure`, as so many processes, which divide the processors, are done with them.

    Raises
    ------
    InputError
        If processes do not even start.
    """
    left = list(tasks)
    for _ in range(2):  # a process that dies takes all others with it, and their tasks start again
        for task, answer in _in_processes(function, left, min(count, len(left))):
            left.remove(task)
            yield task, answer
        if not left:
            return
    if len(left) == len(tasks) > 1:
        raise InputError(
            'no process could compute anything: a script calls sweep below if __name__ == "__main__": and its main '
            "file must be importable; if memory is short, take fewer workers"
        )
    for task in left:  # each by itself, to learn which one it is
        yield next(_in_processes(function, [task], 1), (task, Failure("its process dies: is it out of memory?")))


def _in_processes(function: Callable[[Any], Any], tasks: Sequence[Any], count: int) -> Answers:
    """The answers that there are until a process dies, if one does."""
    others = multiprocessing.active_children()
    # A program with threads, as JAX is, must not fork.
    begin = multiprocessing.get_context("spawn"), _begin, (max(1, processors() // count), in_use())
    pool = ProcessPoolExecutor(count, *begin)
    futures = {pool.submit(_answer, function, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        return
    finally:
        if not all(future.done() for future in futures):  # interrupted
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin(threads: int, compiled: Path | None) -> None:
    """Interrupts are for the process that gives the tasks; compiled programs are kept where it keeps them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["NPROC"] = str(threads)  # for XLA, which has not started yet
    threadpool_limits(threads)
    if compiled is not None:
        use(compiled)


def _answer(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except Exception as error:
        return Failure.of(error)


def on_cluster(function: Callable[[Any], Any], tasks: Sequence[Any], address: str, /) -> Answers:
    """The same by the workers of a Dask scheduler; what a worker was at when it died, another one computes.

    Raises
    ------
    ImportError
        Without dask.distributed.
    OSError
        If the address does not answer, no worker joins within a minute, or the scheduler is lost.
    """
    with needed("a Dask cluster", "cluster"):
        from distributed import Client
        from distributed import as_completed as as_they_end
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {address!r} ({error}): is it running there?") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise OSError(f"no worker came to {address} in {PATIENCE} s: start some, dask worker {address}") from error
        futures = {client.submit(function, task, pure=False): task for task in tasks}
        for future in as_they_end(list(futures), loop=client.loop):
            try:
                error = future.exception()
                answer = future.result() if error is None else Failure.of(error)
            except CancelledError as lost:  # not cancelled by us
                raise OSError(
                    f"the Dask scheduler at {address} was lost: start it, and the same sweep goes on with the cells "
                    "that are not finished"
                ) from lost
            # A result without a reference is not computed again when its worker dies.
            future.release()
            yield futures.pop(future), answer
