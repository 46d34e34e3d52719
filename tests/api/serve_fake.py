"""A server process with the fake engine, for tests that send signals; arguments: PACE LAME_DUCK GRACE (seconds).

It says no more than first tokens, and what goes with them, until something, or the end, comes on standard input.
"""

import logging
import os
import sys
import threading

from headrace.api import ServerSettings
from headrace.api.server import listen, serve
from tests.api.fakes import FakeEngine, app_of


class Held(FakeEngine):
    """Goes on when it is told to."""

    def __init__(self, pace: float) -> None:
        super().__init__(pace=pace)
        self.go = threading.Event()

    def await_go(self) -> None:
        os.read(0, 1)
        self.go.set()

    def step(self) -> None:
        if self.go.is_set() or any(each.sent == 0 for each in self.running):
            super().step()


def main() -> None:
    pace, lame_duck, grace = (float(word) for word in sys.argv[1:4])
    logging.basicConfig(level=logging.INFO)
    sock = listen("127.0.0.1", 0)
    engine = Held(pace)
    threading.Thread(target=engine.await_go, daemon=True).start()
    app = app_of(engine, ServerSettings(lame_duck=lame_duck, grace_period=grace))
    serve(app, sock, lambda: print(sock.getsockname()[1], flush=True))


if __name__ == "__main__":
    main()
