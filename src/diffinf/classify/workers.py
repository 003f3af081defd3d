"""Jobs in worker processes of one thread each.

A worker is `python -m diffinf.classify.workers`: unlike a multiprocessing pool it does not import the
caller's script again, so a script needs no main guard. Jobs and answers are lines of JSON; large arrays go
through files.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import IO, Any

from diffinf.errors import UserError
from diffinf.progress import progress_bar
from diffinf.training.loop import DivergedError

Job = Mapping[str, Any]
Report = Callable[[int], None]
Work = Callable[[Job, Report], dict[str, Any]]

_MARK = "@diffinf "  # tells answers from what a library may print
_REPORT_EVERY = 10  # units of work
_ERRORS: dict[str, type[Exception]] = {e.__name__: e for e in (UserError, DivergedError)}


def run_jobs(
    target: str,
    jobs: Sequence[Job],
    *,
    workers: int,
    units: int,
    description: str | None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Run jobs and return their answers in the same order.

    Args:
        target: "module:function"; the function takes the job and a callback for the units of work done so
            far, and returns a dictionary that JSON knows.
        jobs: what JSON knows.
        workers: processes at once on a CPU. With 1, or on another device, the jobs run here, one after the
            other.
        units: units of work a job has, for the progress bar.
        description: of the progress bar; None shows none.
        device: where the jobs compute.

    Raises:
        UserError, DivergedError: raised by a job.
        RuntimeError: a worker failed; the message ends with what it printed.
    """
    with progress_bar(description or "", units * len(jobs) if description else 0) as advance:
        if device != "cpu" or workers <= 1 or len(jobs) <= 1:
            return [_run_here(target, job, _Share(advance, units), device) for job in jobs]
        return _run_there(target, jobs, min(workers, len(jobs)), [_Share(advance, units) for _ in jobs])


class _Share:
    """A job's share of a common bar: takes absolute counts, passes on what is new."""

    def __init__(self, advance: Report, units: int) -> None:
        self.advance, self.units, self.done = advance, units, 0

    def __call__(self, done: int) -> None:
        self.advance(min(done, self.units) - self.done)
        self.done = min(done, self.units)


def _run_here(target: str, job: Job, share: _Share, device: str) -> dict[str, Any]:
    import torch

    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)  # as in a worker: results must not depend on the number of workers
    try:
        answer = _function(target)(job, share)
    finally:
        torch.set_num_threads(threads)
    share(share.units)
    return answer


def _run_there(
    target: str, jobs: Sequence[Job], workers: int, shares: Sequence[_Share]
) -> list[dict[str, Any]]:
    lock = threading.Lock()
    waiting = iter(list(zip(range(len(jobs)), jobs, shares, strict=True)))
    answers: dict[int, dict[str, Any]] = {}
    processes: list[_Worker] = []

    def serve(worker: _Worker) -> None:
        while True:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            index, job, share = item

            def report(done: int, share: _Share = share) -> None:
                with lock:
                    share(done)

            answers[index] = worker.ask(job, report)
            report(share.units)

    pool = ThreadPoolExecutor(workers)
    try:
        processes.extend(_Worker(target) for _ in range(workers))
        tasks = [pool.submit(serve, worker) for worker in processes]
        for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
            task.result()
    finally:
        for worker in processes:
            worker.close()
        pool.shutdown()
    return [answers[index] for index in range(len(jobs))]


class _Worker:
    """The caller's end of a worker process."""

    def __init__(self, target: str) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            text=True,
        )

    def ask(self, job: Job, report: Report) -> dict[str, Any]:
        """Send a job and wait for its answer, passing on its progress."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # the worker is gone: its output ends below
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if not line.startswith(_MARK):
                continue
            message = json.loads(line[len(_MARK) :])
            if "done" in message:
                report(message["done"])
            elif "error" in message:
                raise _ERRORS[message["error"]](message["message"])
            else:
                answer: dict[str, Any] = message["answer"]
                return answer
        self.process.wait()
        self.errors.seek(0)
        printed = self.errors.read()[-4000:].decode(errors="replace")
        raise RuntimeError(f"a worker process ended with status {self.process.returncode}:\n{printed}")

    def close(self) -> None:
        self.process.kill()  # idle, or its work is not wanted any more: all that is worth keeping is on disk
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _function(target: str) -> Work:
    module, _, name = target.partition(":")
    function: Work = getattr(importlib.import_module(module), name)
    return function


def _serve(target: str) -> None:
    """A worker's life: jobs come in on stdin; when that ends, so does the worker, even amid a job."""
    import torch

    torch.set_num_threads(1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the caller was killed: do not go on beside the run that takes over from it

    def say(**message: Any) -> None:
        sys.stdout.write(_MARK + json.dumps(message) + "\n")
        sys.stdout.flush()

    def report(done: int) -> None:
        if done % _REPORT_EVERY == 0:
            say(done=done)

    threading.Thread(target=listen, daemon=True).start()
    work = _function(target)
    while True:
        job = json.loads(jobs.get())
        try:
            say(answer=work(job, report))
        except tuple(_ERRORS.values()) as error:
            say(error=type(error).__name__, message=str(error))


if __name__ == "__main__":
    _serve(sys.argv[1])
