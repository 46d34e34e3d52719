"""``headrace serve``: an HTTP server for one model."""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.cli import flags
from headrace.cli.assembly import Assembly, assemble
from headrace.cli.logs import start_logging
from headrace.cli.phases import Phases
from headrace.config import SECTIONS, Config, ModelSettings, ServerSettings
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.api import App

log = logging.getLogger("headrace.start")

ABOUT = """\
Serve a language model over HTTP, in OpenAI's dialect: /v1/chat/completions, /v1/completions, /v1/models; /health and
/metrics for whoever looks after it. Every option can also be set in a TOML file (--config) or as HEADRACE_<NAME>;
`headrace config explain` shows where each value came from. SIGTERM finishes what is running, then ends."""

EXAMPLES = """\
  headrace serve
  headrace serve ./SmolLM2-360M-Instruct --served-model-name smol --max-num-seqs 64
  headrace serve model.gguf --host 0.0.0.0 --port 80 --max-model-len 8192 --kv-cache-memory 4GiB
  HEADRACE_API_KEY=secret headrace serve Qwen/Qwen3-0.6B --config production.toml
"""


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean end.

    Raises:
        HeadraceError: the server cannot start; the message says what to do.
    """
    config = flags.read(flags.parser("headrace serve", ABOUT, SECTIONS, EXAMPLES), argv)
    phases = Phases()
    settings = config.section(ServerSettings)
    start_logging(settings.log_level)
    _check_port(settings.host, settings.port)
    assembly = assemble(config, phases, lambda: _import_http(phases))
    try:
        from headrace.api.server import listen, serve

        app = _app(config, assembly)
        sock = listen(settings.host, settings.port)
        serve(app, sock, lambda: _announce(assembly, sock, phases))
    finally:
        assembly.close()
    return 0


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


def _app(config: Config, assembly: Assembly) -> App:
    from headrace.api import App, Models, Served, constant, host
    from headrace.api import ServerSettings as ApiSettings
    from headrace.wire.limits import Limits

    settings, checkpoint = config.section(ServerSettings), assembly.checkpoint
    served = Served(
        names=settings.served_model_name or _names(config.section(ModelSettings).model, checkpoint.name),
        words=assembly.words,
        limits=Limits(assembly.max_model_len, assembly.backend.vocab_size),
        created=int(time.time()),
        sampling_defaults=checkpoint.text.sampling_defaults,
    )
    http = ApiSettings(
        api_keys=settings.api_key,
        request_timeout=settings.request_timeout or None,
        grace_period=settings.grace_period,
    )
    model = constant(host(assembly.engine, served, assembly.recorder, http))
    return App(Models([model], http), assembly.recorder, http)


def _names(typed: str | None, name: str) -> tuple[str, ...]:
    """What requests may call the model when nobody said: its name, and the alias that it was served by."""
    return (name,) if typed is None or "/" in typed or typed in (name, ".", "..") else (name, typed)


def _announce(assembly: Assembly, sock: socket.socket, phases: Phases) -> None:
    gc.freeze()  # what is loaded stays: a full collection then takes microseconds, not 10 ms in the middle of a step
    for name, seconds in phases.seconds.items():
        assembly.recorder.on_startup_phase(name, seconds)
    spec, (host, port) = assembly.checkpoint.spec, sock.getsockname()[:2]
    log.info(
        "%s: %s, %.1f M parameters, context %d, kernels %s",
        assembly.checkpoint.name,
        spec.architecture,
        spec.parameters / 1e6,
        assembly.max_model_len,
        assembly.backend.isa,
    )
    shown = f"[{host}]" if ":" in host else host
    log.info("ready on http://%s:%d after %.2f s (%s)", shown, port, phases.total, phases)
