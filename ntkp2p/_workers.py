"""Tasks computed elsewhere: by processes of this machine, or by the workers of a Dask cluster.

Either way an answer comes as soon as it is there, what goes wrong with a task is its own answer, and a process that
dies takes no other task with it than the one it was at, which is then given to another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from threadpoolctl import threadpool_limits

#: So long a cluster without workers is waited for, in seconds.
PATIENCE = 60

Answers = Generator[tuple[Any, Any], None, None]


@dataclass(frozen=True)
class Failure:
    """Why a task has no result, in one line."""

    reason: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """With its kind where it is no user's mistake, for those say all themselves."""
        words = " ".join(str(error).split())
        explained = isinstance(error, ValueError | TypeError | OSError | ImportError) and words
        return cls(words if explained else f"{type(error).__name__}: {words}")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def locally(
    function: Callable[[Any], Any], tasks: Sequence[Any], count: int, /, *, alike: Callable[[Any], Any]
) -> Answers:
    """Every task with its result or `Failure`, as so many processes are done with them.

    They divide the processors among themselves. Of tasks for which `alike` says the same a process takes one after
    another, and rather those that no other one has begun with.

    Raises
    ------
    RuntimeError
        If a process cannot start.
    """
    crew = _Crew(function, list(tasks), alike, max(1, processors() // count))
    try:
        for _ in range(min(count, len(tasks))):
            crew.start()
        while crew.workers:
            for worker in crew.ready():
                if (answer := crew.answer_of(worker)) is not None:
                    yield answer
    finally:
        for worker in crew.workers:
            worker.end()


class _Worker:
    """A process, and the task that it is at."""

    def __init__(self, function: Callable[[Any], Any], threads: int):
        context = multiprocessing.get_context("spawn")  # a program with threads, as JAX is, must not fork
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function, threads), daemon=True)
        with _deaf():
            self.process.start()
        other.close()  # so that the end of the process is the end of the connection
        self.started = False
        self.task: Any = None

    def begin(self, task: Any) -> None:
        self.task = task
        with suppress(OSError):  # it has died, which is heard of when its answer is awaited
            self.connection.send(task)

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Whoever is started within hears no interrupts from its first moment on, where the system has it so."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, function: Callable[[Any], Any], threads: int) -> None:
    """Compute what comes until nothing does. Interrupts are for the process that gave the tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["NPROC"] = str(threads)  # for XLA, which has not started yet
    threadpool_limits(threads)
    connection.send(None)  # started
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                answer = function(task)
            except Exception as error:
                answer = Failure.of(error)
            connection.send(answer)


@dataclass
class _Crew:
    """Processes, and the tasks that none of them has begun."""

    function: Callable[[Any], Any]
    pending: list[Any]
    alike: Callable[[Any], Any]
    threads: int

    def __post_init__(self):
        self.workers: list[_Worker] = []
        self.deaths: list[Any] = []

    def start(self) -> None:
        worker = _Worker(self.function, self.threads)
        self.workers.append(worker)
        self._employ(worker)

    def ready(self) -> list[_Worker]:
        """Those that have something to say, or have died; waits for one."""
        heard = wait([worker.connection for worker in self.workers])
        return [worker for worker in self.workers if worker.connection in heard]

    def answer_of(self, worker: _Worker) -> tuple[Any, Any] | None:
        """Its task and what came of it, and the next task for it; None if it has started, or its task is tried anew."""
        task = worker.task
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if not worker.started:
            worker.started = True
            return None
        self._employ(worker)
        return task, answer

    def _employ(self, worker: _Worker) -> None:
        if not self.pending:
            self.workers.remove(worker)
            worker.end()
            return
        last = None if worker.task is None else self.alike(worker.task)
        begun = [self.alike(other.task) for other in self.workers if other.task is not None]
        task = min(self.pending, key=lambda task: (self.alike(task) != last, self.alike(task) in begun))
        self.pending.remove(task)
        worker.begin(task)

    def _replace(self, dead: _Worker) -> tuple[Any, Failure] | None:
        """Another process for one that has died; its task is given out once more, and has failed if that kills, too."""
        dead.process.join()
        code = dead.process.exitcode or 0
        if not dead.started and code >= 0:  # nor was it killed
            raise RuntimeError(
                f"a process could not start (exit code {code}): a script calls sweep below "
                'if __name__ == "__main__": and its main file must be importable'
            )
        self.workers.remove(dead)
        dead.connection.close()
        again = dead.task not in self.deaths
        self.deaths.append(dead.task)
        if again:
            self.pending.append(dead.task)
        if self.pending:
            self.start()
        if again:
            return None
        return dead.task, Failure(f"its process died twice (exit code {code}): out of memory? take fewer workers")


def on_cluster(function: Callable[[Any], Any], tasks: Sequence[Any], address: str, /) -> Answers:
    """The same by the workers of a Dask scheduler; what a worker was at when it died, another one computes.

    Raises
    ------
    ImportError
        Without dask.distributed.
    OSError
        If nobody answers at the address, or no worker has come there in a minute.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ImportError("a cluster needs dask.distributed: pip install 'ntkp2p[cluster]'") from error
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
        for future in as_completed(list(futures), loop=client.loop):
            error = future.exception()
            answer = future.result() if error is None else Failure.of(error)
            # What nobody holds is not computed again when its worker dies.
            future.release()
            yield futures.pop(future), answer
