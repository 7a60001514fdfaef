"""Reach a server on the internet or give up within seconds, whatever is wrong with the connection."""

import functools
import hashlib
import os
import queue
import threading
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit

OFFLINE = "FER_OFFLINE"  # environment variable: "1" means that no server is contacted
WEIGHTS_SERVER = "https://download.pytorch.org"  # hosts torchvision's weights
SECONDS = 3.0  # time limit of one check
PATIENCE = 10.0  # seconds in which LEAST_BYTES of a download must arrive, again and again
LEAST_BYTES = 1_000_000


def why_out_of_reach(url: str, seconds: float = SECONDS) -> str:
    """Return in a few words why the server of a URL cannot be reached; "" if it can.

    Each server is contacted once per process. The time limit includes the DNS look-up.
    """
    if os.environ.get(OFFLINE) == "1":
        return f"{OFFLINE}=1"
    return server_problem("{0.scheme}://{0.netloc}".format(urlsplit(url)), seconds)


@functools.cache
def server_problem(server: str, seconds: float) -> str:
    """Contact a server and return why it cannot be reached; "" if it can. The result is cached."""
    reasons = [f"no answer within {seconds:g} seconds"]
    # A thread, because a DNS look-up can take more than a minute and has no time limit of its own.
    thread = threading.Thread(target=_request_head, args=(server, seconds, reasons), daemon=True)
    thread.start()
    thread.join(seconds)
    return reasons[-1]


def _request_head(server: str, seconds: float, reasons: list[str]) -> None:
    """Send one request and append the reason of its failure, or "" after any response."""
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=seconds).close()
        reasons.append("")
    except HTTPError:  # an error page is a response, too
        reasons.append("")
    except (OSError, HTTPException) as error:
        reasons.append(type(error).__name__)


# --- Download ---------------------------------------------------------------------------------------------------------


def download(url: str, path: Path, sha256: str, patience: float = PATIENCE) -> str:
    """Download a file; returns "" or, in a few words, why it failed. Nothing is left of a failed download.

    It is given up as soon as less than LEAST_BYTES arrive in `patience` seconds, whatever it is waiting for. sha256:
    the first hexadecimal digits of the file's checksum.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    parts: queue.Queue[bytes | str] = queue.Queue(maxsize=16)
    # A thread, because a DNS look-up and a connection that trickles have no time limit of their own.
    threading.Thread(target=_receive, args=(url, parts, patience), daemon=True).start()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            problem = _write_parts(parts, file, sha256, patience)
        if not problem:
            draft.replace(path)
        return problem
    except OSError as error:  # no space, or no permission
        return type(error).__name__
    finally:
        draft.unlink(missing_ok=True)


def _receive(url: str, parts: queue.Queue[bytes | str], patience: float) -> None:
    """Put the parts of a file into a queue as they arrive; at the end "" or the reason of a failure."""
    try:
        with urllib.request.urlopen(url, timeout=2 * patience) as response:  # the caller gives up before
            while part := response.read1(65_536):
                parts.put(part)
        parts.put("")
    except (OSError, HTTPException) as error:
        parts.put(type(error).__name__)


def _write_parts(parts: queue.Queue[bytes | str], file: BinaryIO, sha256: str, patience: float) -> str:
    """Write the parts until the last one; returns "" or why the file is not complete."""
    checksum, arrived, deadline = hashlib.sha256(), 0, time.monotonic() + patience
    while True:
        try:
            part = parts.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            return f"less than {LEAST_BYTES / 1e6:g} MB in {patience:g} seconds"
        if isinstance(part, str):
            is_complete = checksum.hexdigest().startswith(sha256)
            return part or ("" if is_complete else "the file that arrived has another checksum")
        file.write(part)
        checksum.update(part)
        arrived += len(part)
        if arrived >= LEAST_BYTES:
            arrived, deadline = 0, time.monotonic() + patience
