"""The project's lock: only one run at a time may write to a project folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fer_utils.paths import atomic_write
from fer_utils.pipeline.notebooks import UsageError


@contextlib.contextmanager
def project_lock(root: Path) -> Iterator[None]:
    """Hold the project's lock during the block; UsageError, with the other run's pid, when another run holds it.

    The operating system releases the lock when its owner ends, for whatever reason. So neither the lock file nor the
    pid file says whether a run is in progress: both stay after a run.
    """
    lock = acquire_lock(root / "outputs" / "work")
    try:
        yield
    finally:
        lock.release()


def acquire_lock(folder: Path) -> FileLock:
    """Acquire the lock in a folder and write this process's pid beside it.

    UsageError when another run holds the lock, or when the folder cannot be written.
    """
    path, pid_file = folder / "lock", folder / "pid"
    lock = FileLock(path, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise UsageError(f"{path} is a link; delete it and run again")
        lock.acquire()
        atomic_write(pid_file, str(os.getpid()).encode())
    except Timeout:
        owner = pid_file.read_text() if pid_file.is_file() else "unknown"
        raise UsageError(f"another run is in progress here (pid {owner}); wait until it ends, or stop it") from None
    except OSError as error:
        lock.release()
        raise UsageError(f"cannot write to {folder} ({error.strerror}); make this possible and run again") from None
    return lock
