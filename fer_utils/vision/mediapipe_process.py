"""Run MediaPipe in its own process: check that it is installed, and prepare the process."""

import multiprocessing
import os
import signal
import threading
from importlib import metadata

INSTALL = "install the version named in requirements.lock (there is none for Linux on ARM)"


class LandmarksUnavailable(RuntimeError):
    """MediaPipe cannot be used here; the message is one sentence that says why and what to do."""


def mediapipe_version() -> str:
    """Return the installed version of MediaPipe without importing it; LandmarksUnavailable if there is none."""
    try:
        return metadata.version("mediapipe")
    except metadata.PackageNotFoundError:
        raise LandmarksUnavailable(f"MediaPipe is not installed; {INSTALL}") from None


def prepare_worker() -> None:
    """Set up a worker process: silence it, leave Ctrl-C to its parent, and end it when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MediaPipe's C++ code logs to stderr, and no option prevents it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent process has ended, for whatever reason, then end this process."""
    multiprocessing.parent_process().join()
    os._exit(1)
