"""The papermill engine that the runner uses: how it talks to the kernel of a notebook."""

import os
import tempfile
from typing import TextIO

from jupyter_client import KernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager
from papermill.log import logger

from fer_utils.widgets import HEADLESS


class HeadlessClient(PapermillNotebookClient):
    """A notebook client without Output widgets: what is printed into such a widget becomes output of the cell.

    With Output widgets, nbclient sometimes waits forever. It answers the widget on the channel on which it waits for
    the end of the cell, and may miss that end (https://github.com/jupyter/nbclient/issues/312).
    """

    def __init__(self, *arguments: object, sockets: str, **options: object) -> None:
        """sockets: an empty folder with a short path. All other arguments are those of PapermillNotebookClient."""
        super().__init__(*arguments, **options)
        self.widget_registry = {}
        self.sockets = sockets

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
                coalesce_streams=True,  # otherwise printed text would be cut into different pieces in every run
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # no messages about its own start and end
                log=logger,
            )
            client.execute(env=os.environ | {HEADLESS: "1"})
