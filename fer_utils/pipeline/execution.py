"""Run one notebook with papermill, and believe it only when every code cell has been executed without an error."""

import base64
import contextlib
import importlib.util
import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from PIL import Image

from fer_utils.paths import atomic_write
from fer_utils.pipeline.notebooks import UsageError

KERNEL = "python3"


class StageFailed(Exception):
    """A notebook did not run to its end; the message names the cell and what went wrong."""


class TimeIsUp(KeyboardInterrupt):
    """The time of the run is over. As an interrupt, it ends the cell that runs, and its kernel."""


@contextlib.contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Raise TimeIsUp within the block at the deadline (seconds since the epoch; infinity: never). Main thread only."""
    if deadline == float("inf"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, deadline - time.time()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_kernel() -> None:
    """UsageError unless notebooks would run with this very Python, where fer_utils and the pinned versions are."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    repair = f"run: {sys.executable} -m ipykernel install --sys-prefix"
    if importlib.util.find_spec("ipykernel") is None:
        raise UsageError(f"this Python has no ipykernel; run: {sys.executable} -m pip install ipykernel")
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel:
        raise UsageError(f"Jupyter finds no kernel named {KERNEL}; {repair}") from None
    executable = spec.argv[0]
    if Path(executable).is_absolute() and _prefix_of(executable) != sys.prefix:
        place = f"{spec.resource_dir} starts {executable}"
        raise UsageError(f"the kernel {KERNEL} belongs to another Python ({place}); delete that folder, or {repair}")


def run_notebook(
    notebook: Path, staged: Path, parameters: Mapping[str, object], cell_seconds: int, show: TextIO, log: TextIO
) -> None:
    """Execute a notebook in its own folder and write it, with outputs, to `staged`.

    cell_seconds: the longest that one cell may take. show, log: where the kernel's stdout and stderr go while it runs.
    Raises StageFailed, with the executed notebook so far in `staged`, or TimeIsUp.
    """
    import papermill  # imported here, as the engine: not needed when there is nothing to do, and slow
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.engines import papermill_engines

    from fer_utils.pipeline.engine import HeadlessEngine

    papermill_engines.register("headless", HeadlessEngine)
    problem = None
    try:
        papermill.execute_notebook(
            _escaped(notebook),
            _escaped(staged),
            parameters=dict(parameters),
            engine_name="headless",
            kernel_name=KERNEL,
            language="python",
            cwd=notebook.parent,
            progress_bar=False,
            stdout_file=show,
            stderr_file=log,
            cell_seconds=cell_seconds,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "OutOfTime":  # of fer_utils.train: it has stopped after an epoch
            raise TimeIsUp from error
        problem = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        problem = f"it ran longer than {cell_seconds / 60:.3g} minutes and was stopped"
    except DeadKernelError:
        problem = "the kernel died (killed, or out of memory)"
    except Exception as error:  # papermill, nbclient and zmq raise many unrelated types when a kernel does not answer
        problem = f"papermill gave up ({type(error).__name__}: {error}); details are in the log"
        logging.exception(problem)
    if problem:
        raise StageFailed(f"{last_started(staged)}: {problem}")
    check_completed(staged)


def check_completed(staged: Path) -> None:
    """StageFailed unless every code cell has been executed without an error.

    papermill itself takes a sys.exit(0) or a cell with the tag skip-execution for success.
    """
    for number, cell in enumerate(_code_cells(staged), start=1):
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        if errors:
            raise StageFailed(f"{_describe(number, cell)}: {errors[0]['ename']}: {errors[0]['evalue']}")
        if cell["execution_count"] is None:
            raise StageFailed(f"{_describe(number, cell)}: it was not executed")


def last_started(staged: Path) -> str:
    """The last cell that papermill started, in words."""
    started = "its start"
    try:
        cells = _code_cells(staged)
    except ValueError:  # half written, because the disk is full
        return "a cell that is not known"
    for number, cell in enumerate(cells, start=1):
        if cell["metadata"]["papermill"]["start_time"]:
            started = _describe(number, cell)
    return started


def clean_notebook(staged: Path, names: Mapping[str, str]) -> None:
    """Make an executed notebook the same on every machine, without absolute paths, times or dead widgets, and shorter.

    names: absolute path -> what to write instead of it; "" for a folder makes paths below it relative to it.
    """
    notebook = json.loads(staged.read_text(encoding="utf-8"))
    for key in ("papermill", "widgets"):
        notebook["metadata"].pop(key, None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            shrink_picture(data)
            if output["output_type"] == "stream":
                output["text"] = shorten("".join(output["text"]))
    text = json.dumps(_renamed(notebook, names), indent=1, ensure_ascii=False) + "\n"
    atomic_write(staged, text.encode())


def shorten(printed: str, most: int = 100) -> str:
    """What a cell printed, of more than `most` lines only the first and the last, and how many are left out."""
    lines, kept = printed.splitlines(keepends=True), most // 2
    if len(lines) <= most:
        return printed
    return "".join([*lines[:kept], f"[... {len(lines) - 2 * kept} lines left out ...]\n", *lines[-kept:]])


def shrink_picture(data: dict[str, str], limit: int = 100_000) -> None:
    """Turn a PNG of more than `limit` base64 characters into a JPEG if that is smaller; reports/figures keeps the PNG.

    data: a picture in base64 by its type, as Jupyter keeps it: "image/png", and afterwards perhaps "image/jpeg".
    """
    png = data.get("image/png", "")
    if len(png) > limit:
        small = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            image.convert("RGB").save(small, "JPEG", quality=88, subsampling=0)
        jpeg = base64.b64encode(small.getvalue()).decode()
        if len(jpeg) < len(png):
            del data["image/png"]
            data["image/jpeg"] = jpeg


@contextlib.contextmanager
def measure_memory() -> Iterator[dict[str, int]]:
    """Gives a dict that after the `with` block holds "peak_memory_mb": resident memory of all child processes."""
    facts, done = {"peak_memory_mb": 0}, threading.Event()
    watcher = threading.Thread(target=_watch_memory, args=(facts, done), daemon=True)
    watcher.start()
    try:
        yield facts
    finally:
        done.set()
        watcher.join()


def _watch_memory(facts: dict[str, int], done: threading.Event) -> None:
    import psutil

    runner = psutil.Process()
    while not done.wait(0.5):
        total = 0
        for child in runner.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                total += child.memory_info().rss
        facts["peak_memory_mb"] = max(facts["peak_memory_mb"], round(total / 1e6))


def _escaped(path: Path) -> str:
    """The path for papermill, which takes {} in it for something to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _prefix_of(executable: str) -> str | None:
    """Which environment (sys.prefix) a Python belongs to; None when it cannot be started."""
    command = [executable, "-c", "import sys; print(sys.prefix)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _code_cells(staged: Path) -> list[dict]:
    """The code cells as numbered for people: neither empty ones nor the one that papermill injected."""
    cells = json.loads(staged.read_text(encoding="utf-8"))["cells"] if staged.is_file() else []
    return [
        cell
        for cell in cells
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).strip()
        and "injected-parameters" not in cell["metadata"]["tags"]
    ]


def _describe(number: int, cell: dict) -> str:
    first_line = "".join(cell["source"]).strip().splitlines()[0]
    return f"code cell {number} (which begins with {first_line[:60]!r})"


def _renamed(value: object, names: Mapping[str, str]) -> object:
    """The value with the paths in all its texts replaced, but for images, where they could only match by accident."""
    if isinstance(value, str):
        for path, name in names.items():
            value = _rename_path(value, path, name)
        return value
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _renamed(item, names) for key, item in value.items()}
    return value


def _rename_path(text: str, path: str, name: str) -> str:
    for spelling in (path, path.encode("unicode_escape").decode()):  # papermill writes parameters escaped
        begin, end = r"(?<![\w.~-])" + re.escape(spelling), r"(?![\w.-])"
        if not name:
            text = re.sub(begin + "/", "", text)
        text = re.sub(begin + end, lambda _: name or ".", text)
    return text
