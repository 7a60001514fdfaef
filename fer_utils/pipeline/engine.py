"""The papermill engine of a headless run: how the runner and a notebook's kernel talk to each other."""

import os
import tempfile
from typing import TextIO

from jupyter_client import KernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager
from papermill.log import logger

from fer_utils.widgets import HEADLESS


class HeadlessClient(PapermillNotebookClient):
    """A client that is no front end for Output widgets: what goes into them becomes output of the cell.

    nbclient would answer such a widget on the channel where it waits for the end of the cell, and now and then miss
    that end and wait forever (https://github.com/jupyter/nbclient/issues/312).
    """

    def __init__(self, *arguments: object, sockets: str, **options: object) -> None:
        """Take the arguments of PapermillNotebookClient. sockets: an empty folder with a short name."""
        super().__init__(*arguments, **options)
        self.widget_registry = {}
        self.sockets = sockets

    def create_kernel_manager(self) -> KernelManager:
        """Talk to the kernel through files: two kernels that start at the same moment would choose the same ports."""
        manager = super().create_kernel_manager()
        manager.connection_file = f"{self.sockets}/kernel.json"
        manager.transport, manager.ip = "ipc", f"{self.sockets}/kernel"
        return manager


class HeadlessEngine(NBClientEngine):
    """Executes a notebook with HeadlessClient; the kernel finds the variable FER_HEADLESS set."""

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
        """Execute all cells; papermill calls this with its own options and those given to `execute_notebook`."""
        with tempfile.TemporaryDirectory(prefix="fer-") as sockets:
            client = HeadlessClient(
                nb_man,
                sockets=sockets,
                kernel_name=kernel_name,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
                timeout=cell_seconds,
                startup_timeout=120,
                iopub_timeout=120,  # of 4 seconds by default, too short while all cores are busy
                coalesce_streams=True,  # else the pieces in which printed text arrived would differ from run to run
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # not what it says about its own start and end
                log=logger,
            )
            client.execute(env=os.environ | {HEADLESS: "1"})
