"""The connection between Voila and the browser, without waiting."""

import asyncio

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """Sends every message at once, so that an answer to a frame of the webcam does not wait for 40 ms.

    By default, the network keeps a small message back until the browser has acknowledged the last one (Nagle's
    algorithm, RFC 896), and the browser's side waits up to 40 ms before it acknowledges anything.
    """

    def connect(self) -> asyncio.Future[None] | None:
        """Connect the browser with a kernel."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()
