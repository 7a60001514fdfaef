"""Run MediaPipe in processes of its own: check that it is installed, and start the processes."""

import contextlib
import os
import signal
import threading
from importlib import metadata

import psutil
from joblib.externals.loky import ProcessPoolExecutor

INSTALL = "install the version named in requirements.lock, or one that docs/running.md names for your system"


class LandmarksUnavailable(RuntimeError):
    """MediaPipe cannot be used here; the message is one sentence that says why and what to do."""


def mediapipe_version() -> str:
    """Return the installed version of MediaPipe without importing it; LandmarksUnavailable if there is none."""
    try:
        return metadata.version("mediapipe")
    except metadata.PackageNotFoundError:
        raise LandmarksUnavailable(f"MediaPipe is not installed; {INSTALL}") from None


def does_not_work(error: Exception) -> LandmarksUnavailable:
    """Return the error that says why MediaPipe cannot be imported or set up."""
    return LandmarksUnavailable(f"MediaPipe does not work ({type(error).__name__}: {error}); {INSTALL}")


def start_workers(n: int) -> ProcessPoolExecutor:
    """Return a pool of n worker processes, which start with the first job; a crash is a BrokenProcessPool.

    joblib's pool, unlike that of the standard library, does not import the user's script again in every process, so a
    script needs no `if __name__ == "__main__"`.
    """
    return ProcessPoolExecutor(n, initializer=_prepare_worker, initargs=(os.getpid(),))


def _prepare_worker(parent: int) -> None:
    """Set up a worker process: silence it, leave Ctrl-C to its parent, and end it when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MediaPipe's C++ code logs to stderr, and no option prevents it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait until the parent process has ended, for whatever reason, then end this process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(parent).wait()
    os._exit(1)
