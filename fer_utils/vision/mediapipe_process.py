"""MediaPipe in a process of its own: whether it is there, and how that process starts and ends."""

import multiprocessing
import os
import signal
import threading
from importlib import metadata

INSTALL = "install the version named in requirements.lock (there is none for Linux on ARM)"


class LandmarksUnavailable(RuntimeError):
    """MediaPipe cannot be used here; the message is one plain sentence that says why and what to do."""


def mediapipe_version() -> str:
    """The installed version of MediaPipe, which is not imported; LandmarksUnavailable when there is none."""
    try:
        return metadata.version("mediapipe")
    except metadata.PackageNotFoundError:
        raise LandmarksUnavailable(f"MediaPipe is not installed; {INSTALL}") from None


# --- Inside a worker --------------------------------------------------------------------------------------------------


def prepare_worker() -> None:
    """Keep a new worker quiet, leave Ctrl-C to its parent, and let it end with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MediaPipe's C++ code logs there and cannot be told not to
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
