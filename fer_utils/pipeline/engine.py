"""The papermill engine that the runner uses: how it talks to the kernel of a notebook."""

import collections
import contextlib
import logging
import os
import tempfile
from typing import TextIO

import psutil
from jupyter_client import KernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager
from papermill.log import logger

from fer_utils.pipeline.outputs import LEFT_OUT, MAX_CHARACTERS, count_characters, merge_streams
from fer_utils.widgets import HEADLESS

# Lets the threads of PyTorch sleep while they wait for each other. By default they spin, so that, while other programs
# use the cores, they keep each other from working. Kernels in JupyterLab get this from setup_env.sh.
WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
SOCKETS = "FER_SOCKETS"  # environment variable of a kernel and its children: the folder of its sockets, unique to it


class HeadlessClient(PapermillNotebookClient):
    """A notebook client for notebooks that nobody looks at. It differs from papermill's in three ways.

    Output widgets are ignored: what is printed into one becomes output of the cell. With them, nbclient sometimes waits
    forever. It answers the widget on the channel on which it waits for the end of the cell, and may miss that end
    (https://github.com/jupyter/nbclient/issues/312).

    The outputs of a cell are limited to MAX_CHARACTERS, so a cell that prints without end does not fill the memory.

    The pieces of a stream are merged by `merge_streams`, because nbclient takes hours for a line of a few megabytes.
    """

    def __init__(self, *arguments: object, sockets: str, **options: object) -> None:
        """sockets: an empty folder with a short path. All other arguments are those of PapermillNotebookClient."""
        super().__init__(*arguments, on_cell_executed=merge_streams, **options)
        self.widget_registry = {}
        self.sockets = sockets
        self.characters = collections.Counter()  # index of a cell -> characters of its outputs

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> NotebookNode | None:
        """Append the output in a kernel's message to `outs`, the outputs of a cell, or what the limit leaves of it."""
        if msg["msg_type"] == "error":  # always kept, and the last output
            return super().output(outs, msg, display_id, cell_index)
        room = MAX_CHARACTERS - self.characters[cell_index]
        if room <= 0:
            return None
        size = count_characters(msg["content"])
        self.characters[cell_index] += size
        if size <= room:
            return super().output(outs, msg, display_id, cell_index)
        start = msg["content"]["text"][:room] if msg["msg_type"] == "stream" else ""
        outs.append(new_output("stream", name=msg["content"].get("name", "stdout"), text=f"{start}\n{LEFT_OUT}\n"))
        return outs[-1]

    def clear_output(self, outs: list, msg: dict, cell_index: int) -> None:
        """Remove the outputs of a cell, now or when the next one arrives."""
        super().clear_output(outs, msg, cell_index)
        self.characters[cell_index] = 0

    def create_kernel_manager(self) -> KernelManager:
        """Connect to the kernel through socket files, because kernels that start together may choose the same ports."""
        manager = super().create_kernel_manager()
        manager.connection_file = f"{self.sockets}/kernel.json"
        manager.transport, manager.ip = "ipc", f"{self.sockets}/kernel"
        return manager


class HeadlessEngine(NBClientEngine):
    """Execute a notebook with HeadlessClient, and with FER_HEADLESS=1 in the kernel's environment."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        stdout_file: TextIO,
        stderr_file: TextIO,
        cell_seconds: int,
        **_: object,
    ) -> None:
        """Execute all cells. papermill calls this with the options of `execute_notebook`."""
        logging.getLogger("asyncio").disabled = True  # it would complain about tasks of a cell that was stopped
        with tempfile.TemporaryDirectory(prefix="fer-") as sockets:
            client = HeadlessClient(
                nb_man,
                sockets=sockets,
                kernel_name=kernel_name,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
                timeout=cell_seconds,
                startup_timeout=120,
                iopub_timeout=120,  # the default of 4 seconds is too short while all cores are busy
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # no messages about its own start and end
                log=logger,
            )
            try:
                client.execute(env=WAIT_ASLEEP | os.environ | {HEADLESS: "1", SOCKETS: sockets})
            finally:
                kill_descendants(sockets)


def kill_descendants(sockets: str) -> None:
    """Kill all processes that a kernel has started, directly or not, and that have outlived it. sockets: its folder.

    They are found by the environment that they inherited, because a process that a cell detaches has another parent.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or it belongs to another user
            if process.environ().get(SOCKETS) == sockets:
                process.kill()
