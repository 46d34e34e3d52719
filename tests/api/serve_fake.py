"""A server process with the fake engine, for tests that send signals; arguments: PACE LAME_DUCK GRACE (seconds)."""

import logging
import sys

from headrace.api import ServerSettings
from headrace.api.server import listen, serve
from tests.api.fakes import FakeEngine, app_of


def main() -> None:
    pace, lame_duck, grace = (float(word) for word in sys.argv[1:4])
    logging.basicConfig(level=logging.INFO)
    sock = listen("127.0.0.1", 0)
    app = app_of(FakeEngine(pace=pace), ServerSettings(lame_duck=lame_duck, grace_period=grace))
    serve(app, sock, lambda: print(sock.getsockname()[1], flush=True))


if __name__ == "__main__":
    main()
