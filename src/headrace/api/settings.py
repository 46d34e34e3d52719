"""What the HTTP side is told at the start: the model that it serves, and the numbers of the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from headrace.api.ports import Words
from headrace.watermark import PUBLIC, Watermark
from headrace.wire.limits import Limits

PLACEHOLDER_NAMES = frozenset({"", "dummy", "tgi"})
"""What huggingface_hub's client and TGI's users send where there is only one model."""


class Served(Struct, frozen=True):
    """One model under one or more names; the first is its own."""

    names: tuple[str, ...]
    words: Words
    limits: Limits
    created: int
    """Unix time, for ``/v1/models``."""
    fingerprint: str = "headrace"
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    watermark: Watermark = PUBLIC
    """For calls that ask for a mark."""

    def name_for(self, asked: str | None) -> str:
        """The name that the answer to a call for ``asked`` carries."""
        return asked if asked in self.names else self.names[0]


class ServerSettings(Struct, frozen=True):
    """Times are seconds."""

    api_keys: tuple[str, ...] = ()
    """Any of them opens every route; without one and without a file of keys, nothing is asked for."""
    api_key_file: Path | None = None
    """Keys with scopes and quotas, one a line (`headrace.access.keys`)."""
    share_prefixes: bool = False
    """Whether a tenant's request may find what another tenant's has left in the prefix cache."""
    request_timeout: float | None = 3600.0
    """From arrival to the last token; a call may ask for less."""
    body_timeout: float = 30.0
    """For a body to arrive."""
    head_timeout: float = 15.0
    """For a request line and its headers to arrive."""
    max_head_bytes: int = 32 << 10
    keep_alive: float = 65.0
    """Idle connections; longer than the 60 s after which load balancers drop theirs, so that they do it first."""
    max_body_bytes: int = 8 << 20
    """A million token ids as JSON; parsing that holds the event loop for some 100 ms, and no longer."""
    max_preparing: int = 256
    """Calls that may read their body and be tokenised at once."""
    max_waiting: int = 1024
    """Calls that may wait for models to be loaded."""
    max_stored_bytes: int = 64 << 20
    """For responses that can be continued or looked up (`headrace.api.stored`)."""
    max_stream_buffer: int = 1 << 20
    """Bytes that wait for one slow reader before its stream is ended."""
    stall_timeout: float = 30.0
    """How long a reader may take nothing."""
    lame_duck: float = 1.0
    """After SIGTERM: not ready any more, still serving, so that load balancers notice before requests fail."""
    grace_period: float = 30.0
    """After that: for what is running to finish."""
