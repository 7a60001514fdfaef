"""Whether a server on the internet is within reach: an answer within seconds, whatever is wrong with the network."""

import functools
import os
import threading
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit

OFFLINE = "FER_OFFLINE"  # environment variable: "1" means not to look at all
WEIGHTS_SERVER = "https://download.pytorch.org"  # where torchvision's weights lie
SECONDS = 3.0  # the longest that a look-up may take


def why_out_of_reach(url: str, seconds: float = SECONDS) -> str:
    """In a word, why the server of a URL does not answer; "" when it does. Each server is asked once per process.

    The limit includes the look-up of its name, for which operating systems take up to a minute and more: so all of it
    happens in a thread, which is left behind if need be.
    """
    if os.environ.get(OFFLINE) == "1":
        return f"{OFFLINE}=1"
    return _ask("{0.scheme}://{0.netloc}".format(urlsplit(url)), seconds)


@functools.cache
def _ask(server: str, seconds: float) -> str:
    reasons = [f"no answer within {seconds:g} seconds"]
    thread = threading.Thread(target=_knock, args=(server, seconds, reasons), daemon=True)
    thread.start()
    thread.join(seconds)
    return reasons[-1]


def _knock(server: str, seconds: float, reasons: list[str]) -> None:
    """Send one request, and append why it failed, or "": any answer will do, even that nothing is there."""
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=seconds).close()
        reasons.append("")
    except HTTPError:
        reasons.append("")
    except (OSError, HTTPException) as error:
        reasons.append(type(error).__name__)
