"""Execute one notebook with papermill, check that every code cell ran, and clean the result for publication."""

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
from fer_utils.pipeline.outputs import shorten, shorten_line

KERNEL = "python3"


class StageFailed(Exception):
    """A stage failed; the message names the cell and says what went wrong."""


class TimeIsUp(KeyboardInterrupt):
    """The time limit of the run is over. Being an interrupt, it also stops the cell that is running and its kernel."""


@contextlib.contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Raise TimeIsUp inside the block when the deadline is reached. Works in the main thread only.

    deadline: in seconds since the epoch, or infinity for no limit.
    """
    if deadline == float("inf"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeIsUp

    earlier_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, deadline - time.time()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier_handler)


@contextlib.contextmanager
def measure_memory() -> Iterator[dict[str, int]]:
    """Measure the resident memory of all child processes during the block.

    Yields a dict that holds the maximum in MB under "peak_memory_mb" after the block.
    """
    facts, finished = {"peak_memory_mb": 0}, threading.Event()
    watcher = threading.Thread(target=_watch_memory, args=(facts, finished), daemon=True)
    watcher.start()
    try:
        yield facts
    finally:
        finished.set()
        watcher.join()


def _watch_memory(facts: dict[str, int], finished: threading.Event) -> None:
    import psutil

    runner = psutil.Process()
    while not finished.wait(0.5):
        total = 0
        for child in runner.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since the list was made
                total += child.memory_info().rss
        facts["peak_memory_mb"] = max(facts["peak_memory_mb"], round(total / 1e6))


# --- Execute ----------------------------------------------------------------------------------------------------------


def check_kernel() -> None:
    """UsageError unless notebooks would run with this Python, which has fer_utils and the locked packages."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    repair = f"run: {sys.executable} -m ipykernel install --sys-prefix"
    if importlib.util.find_spec("ipykernel") is None:
        raise UsageError(f"this Python has no ipykernel; run: {sys.executable} -m pip install ipykernel")
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel:
        raise UsageError(f"Jupyter finds no kernel named {KERNEL}; {repair}") from None
    executable = spec.argv[0]
    if Path(executable).is_absolute() and _find_prefix(executable) != sys.prefix:
        place = f"{spec.resource_dir} starts {executable}"
        raise UsageError(f"the kernel {KERNEL} belongs to another Python ({place}); delete that folder, or {repair}")


def _find_prefix(executable: str) -> str | None:
    """Return the environment (sys.prefix) of a Python; None when that Python does not start."""
    command = [executable, "-c", "import sys; print(sys.prefix)"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run_notebook(
    notebook: Path, target: Path, parameters: Mapping[str, object], cell_seconds: int, log: TextIO
) -> None:
    """Execute a notebook in its own folder and write it, with outputs, to `target`.

    cell_seconds: the time limit of one cell. log: where the kernel's output goes while it runs.
    StageFailed when a cell fails; `target` then holds the notebook up to that cell. TimeIsUp when training stopped
    because the run's time is up.
    """
    try:
        _execute(notebook, target, parameters, cell_seconds=cell_seconds, stdout_file=log, stderr_file=log)
    except Exception as error:  # papermill, nbclient and zmq raise many unrelated types when a kernel does not answer
        if getattr(error, "ename", "") == "OutOfTime":  # raised by fer_utils.training after an epoch
            raise TimeIsUp from error
        raise StageFailed(f"{find_last_cell(target)}: {explain_error(error, cell_seconds)}") from error
    check_completed(target)


def _execute(notebook: Path, target: Path, parameters: Mapping[str, object], **options: object) -> None:
    """Call papermill with HeadlessEngine. options: those of HeadlessEngine."""
    import papermill  # slow, like the engine, so it is imported only when something has to run
    from papermill.engines import papermill_engines

    from fer_utils.pipeline.engine import HeadlessEngine

    papermill_engines.register("headless", HeadlessEngine)
    papermill.execute_notebook(
        _escape_braces(notebook),
        _escape_braces(target),
        parameters=dict(parameters),
        engine_name="headless",
        kernel_name=KERNEL,
        language="python",
        cwd=notebook.parent,
        progress_bar=False,
        **options,
    )


def _escape_braces(path: Path) -> str:
    """Escape braces in a path, because papermill would replace what is between them."""
    return str(path).replace("{", "{{").replace("}", "}}")


def explain_error(error: Exception, cell_seconds: int) -> str:
    """Say why papermill did not finish; what it raised without a known reason goes to the log with its traceback."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return shorten_line(f"{error.ename}: {error.evalue}")
    if isinstance(error, CellTimeoutError):
        return f"it ran longer than {cell_seconds / 60:.3g} minutes and was stopped"
    if isinstance(error, DeadKernelError):
        return "the kernel died (killed, or out of memory)"
    explanation = f"papermill stopped with {type(error).__name__}: {error}; the log has the details"
    logging.exception(explanation)
    return explanation


# --- Check ------------------------------------------------------------------------------------------------------------


def check_completed(notebook: Path) -> None:
    """StageFailed unless every code cell of an executed notebook ran without an error.

    papermill does not check this: it reports success after sys.exit(0), and after a cell with the tag skip-execution.
    """
    for number, cell in enumerate(_read_code_cells(notebook), start=1):
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        if errors:
            message = shorten_line(f"{errors[0]['ename']}: {errors[0]['evalue']}")
            raise StageFailed(f"{_describe_cell(number, cell)}: {message}")
        if cell["execution_count"] is None:
            raise StageFailed(f"{_describe_cell(number, cell)}: it was not executed")


def find_last_cell(notebook: Path) -> str:
    """Describe the last cell that papermill started."""
    description = "its start"
    try:
        cells = _read_code_cells(notebook)
    except ValueError:  # the file is incomplete because the disk is full
        return "an unknown cell"
    for number, cell in enumerate(cells, start=1):
        if cell["metadata"]["papermill"]["start_time"]:
            description = _describe_cell(number, cell)
    return description


def _read_code_cells(notebook: Path) -> list[dict]:
    """Return the code cells that messages count: without empty ones, and without the one that papermill added."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.is_file() else []
    return [
        cell
        for cell in cells
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).strip()
        and "injected-parameters" not in cell["metadata"]["tags"]
    ]


def _describe_cell(number: int, cell: dict) -> str:
    first_line = "".join(cell["source"]).strip().splitlines()[0]
    return f"code cell {number} (first line: {first_line[:60]!r})"


# --- Clean ------------------------------------------------------------------------------------------------------------


def clean_notebook(notebook: Path, names: Mapping[str, str]) -> None:
    """Make an executed notebook identical on every machine, and shorter: no absolute paths, times or dead widgets.

    names: absolute path -> the text that replaces it; "" for a folder makes paths below it relative.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for key in ("papermill", "widgets"):
        content["metadata"].pop(key, None)
    for cell in content["cells"]:
        _clean_cell(cell)
    text = json.dumps(_replace_paths(content, names), indent=1, ensure_ascii=False) + "\n"
    atomic_write(notebook, text.encode())


def _clean_cell(cell: dict) -> None:
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


def shrink_picture(data: dict[str, str], limit: int = 100_000) -> None:
    """Replace a large PNG by a JPEG if that is smaller. reports/figures/ keeps the PNG.

    data: MIME type -> picture in base64, as in a notebook file. limit: number of base64 characters of a large PNG.
    """
    png = data.get("image/png", "")
    if len(png) > limit:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
        jpeg = base64.b64encode(buffer.getvalue()).decode()
        if len(jpeg) < len(png):
            del data["image/png"]
            data["image/jpeg"] = jpeg


def _replace_paths(value: object, names: Mapping[str, str]) -> object:
    """Replace the paths in all texts of a JSON value, except in pictures, where a match would be an accident."""
    if isinstance(value, str):
        for path, name in names.items():
            value = _replace_path(value, path, name)
        return value
    if isinstance(value, list):
        return [_replace_paths(item, names) for item in value]
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _replace_paths(item, names) for key, item in value.items()}
    return value


def _replace_path(text: str, path: str, name: str) -> str:
    for spelling in (path, path.encode("unicode_escape").decode()):  # papermill writes parameters with escapes
        begin, end = r"(?<![\w.~-])" + re.escape(spelling), r"(?![\w.-])"
        if not name:
            text = re.sub(begin + "/", "", text)
        text = re.sub(begin + end, lambda _: name or ".", text)
    return text
