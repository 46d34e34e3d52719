"""``headrace serve``: an HTTP server for one model or several."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.cli import flags
from headrace.cli.beside import Beside
from headrace.cli.hosting import Hosting, api_settings, host_models
from headrace.cli.logs import start_logging
from headrace.cli.phases import Phases
from headrace.cli.shelf import shelf_of
from headrace.config import SECTIONS, Config, ServerSettings
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.metrics import Recorder

log = logging.getLogger("headrace.start")
_HEAD_START = 0.1
"""Seconds that belong to the requests that have waited for the server, before what can wait is prepared."""
_PREPARING = 0.0005
"""Seconds after which what is prepared beside the first requests leaves the interpreter to them, when they want it."""

ABOUT = """\
Serve language models over HTTP, in OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models; /health and
/metrics for whoever looks after it. Every option can also be set in a TOML file (--config) or as HEADRACE_<NAME>;
`headrace config explain` shows where each value came from. SIGTERM finishes what is running, then ends."""

EXAMPLES = """\
  headrace serve
  headrace serve ./SmolLM2-360M-Instruct --served-model-name smol --max-num-seqs 64
  headrace serve small=./SmolLM2-360M-Instruct big=Qwen/Qwen3-0.6B --pin small --memory-budget 6GiB --keep-alive 10m
  headrace serve model.gguf --host 0.0.0.0 --port 80 --max-model-len 8192 --kv-cache-memory 4GiB
  HEADRACE_API_KEY=secret headrace serve Qwen/Qwen3-0.6B --config production.toml
"""


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean end.

    Raises:
        HeadraceError: the server cannot start; the message says what to do.
    """
    config = flags.read(flags.parser("headrace serve", ABOUT, SECTIONS, EXAMPLES), argv)
    gc.disable()  # until all is loaded: nothing that a start builds is garbage
    try:
        _serve(config)
    finally:
        gc.enable()
    return 0


def _serve(config: Config) -> None:
    phases = Phases()
    settings = config.section(ServerSettings)
    start_logging(settings.log_level)
    _check_port(settings.host, settings.port)
    hosting = host_models(config, phases, lambda: _import_http(phases))
    try:
        from headrace.api import App
        from headrace.api.server import listen, serve

        app = App(hosting.models, hosting.recorder, api_settings(config), shelf_of(config, hosting.models))
        sock = listen(settings.host, settings.port)
        late: list[Beside[None]] = []

        def started() -> None:
            _announce(hosting.recorder, hosting.about, sock, phases)
            late.append(Beside(lambda: _prepare(hosting), lambda: signal.raise_signal(signal.SIGTERM)))

        serve(app, sock, started)
        for work in late:
            work.result()
    finally:
        hosting.models.close()


def _prepare(hosting: Hosting) -> None:
    """What the first chat needs and other requests do not: the template, and jinja2 for it. One that does not compile
    ends the server. A chat that comes sooner does it itself."""
    time.sleep(_HEAD_START)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_PREPARING)
    try:
        hosting.prepare()
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()  # what is loaded stays: a full collection then takes microseconds, not 10 ms amid a step
        gc.enable()


def _import_http(phases: Phases) -> None:
    with phases.phase("import http"):
        import headrace.api.server
        import headrace.wire.limits  # noqa: F401  (they are wanted loaded, not named)


def _check_port(host: str, port: int) -> None:
    """Say that the port is taken before a model is loaded, not after."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None


def _announce(recorder: Recorder, about: str, sock: socket.socket, phases: Phases) -> None:
    for name, seconds in phases.seconds.items():
        recorder.on_startup_phase(name, seconds)
    host, port = sock.getsockname()[:2]
    log.info("%s", about)
    shown = f"[{host}]" if ":" in host else host
    log.info("ready on http://%s:%d after %.2f s (%s)", shown, port, phases.total, phases)
