"""Check within seconds whether a server on the internet can be reached, whatever is wrong with the connection."""

import functools
import os
import threading
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit

OFFLINE = "FER_OFFLINE"  # environment variable: "1" means that no server is contacted
WEIGHTS_SERVER = "https://download.pytorch.org"  # hosts torchvision's weights
SECONDS = 3.0  # time limit of one check


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
