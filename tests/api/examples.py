"""A good request for every route of the server. A route without one fails tests/api/test_matrix.py: add it here.

``{id}`` in a path stands for ``tiny``. Bodies must be answered with 2xx by the fake engine, and be short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MESSAGES = [{"role": "user", "content": "a"}]


@dataclass(frozen=True)
class Example:
    """``body`` None: the route reads none. ``status`` is what a good key gets: 403 where the server has it off,
    404 where ``tiny`` is nothing."""

    body: dict[str, Any] | None = None
    status: int = 200
    any_media_type: bool = False
    """The dialect's clients send JSON under any name, or under none."""
    ignores_unknown: bool = False
    """The dialect says that unknown fields are ignored; whoever sets this says where."""


GET = Example()
EXAMPLES: dict[tuple[str, str], Example] = {
    # OpenAI
    ("POST", "/v1/chat/completions"): Example({"messages": MESSAGES, "max_tokens": 2}),
    ("POST", "/v1/completions"): Example({"prompt": "a", "max_tokens": 2}),
    ("POST", "/v1/embeddings"): Example({"input": "a"}),
    ("POST", "/v1/responses"): Example({"input": "a", "max_output_tokens": 2}),
    ("GET", "/v1/responses/{id}"): Example(status=404),
    ("POST", "/v1/responses/{id}"): Example(status=404),
    ("DELETE", "/v1/responses/{id}"): Example(status=404),
    ("GET", "/v1/models"): GET,
    ("GET", "/v1/models/{id}"): GET,
    # ours
    ("GET", "/"): GET,
    ("GET", "/health"): GET,
    ("GET", "/health/live"): GET,
    ("GET", "/health/ready"): GET,
    ("GET", "/metrics"): GET,
    ("GET", "/openapi.json"): GET,
    ("GET", "/admin/models"): GET,
    ("POST", "/admin/models/{id}"): Example({"action": "load"}),
    # TGI
    ("POST", "/"): Example({"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    ("POST", "/generate"): Example({"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    ("POST", "/generate_stream"): Example({"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    ("GET", "/info"): GET,
    ("POST", "/tokenize"): Example({"prompt": "a"}),
    ("POST", "/chat_tokenize"): Example({"messages": MESSAGES}),
    # vLLM
    ("POST", "/detokenize"): Example({"tokens": [97]}),
    ("GET", "/version"): GET,
    ("GET", "/load"): GET,
    ("POST", "/score"): Example({"text_1": "a", "text_2": "b"}),
    ("POST", "/v1/score"): Example({"text_1": "a", "text_2": "b"}),
    ("POST", "/rerank"): Example({"query": "a", "documents": ["b"]}),
    ("POST", "/v1/rerank"): Example({"query": "a", "documents": ["b"]}),
    ("POST", "/v2/rerank"): Example({"query": "a", "documents": ["b"]}),
    # Ollama
    ("POST", "/api/generate"): Example(
        {"model": "tiny", "prompt": "a", "options": {"num_predict": 2}}, any_media_type=True
    ),
    ("POST", "/api/chat"): Example(
        {"model": "tiny", "messages": MESSAGES, "options": {"num_predict": 2}}, any_media_type=True
    ),
    ("POST", "/api/embed"): Example({"model": "tiny", "input": "a"}, any_media_type=True),
    ("POST", "/api/embeddings"): Example({"model": "tiny", "prompt": "a"}, any_media_type=True),
    ("GET", "/api/tags"): GET,
    ("GET", "/api/ps"): GET,
    ("GET", "/api/version"): GET,
    ("POST", "/api/show"): Example({"model": "tiny"}, any_media_type=True),
    ("POST", "/api/pull"): Example({"model": "tiny"}, status=403, any_media_type=True),
    ("POST", "/api/copy"): Example({"source": "tiny", "destination": "b"}, status=403, any_media_type=True),
    ("DELETE", "/api/delete"): Example({"model": "tiny"}, status=403, any_media_type=True),
    # Anthropic
    ("POST", "/v1/messages"): Example({"model": "tiny", "messages": MESSAGES, "max_tokens": 2}),
    ("POST", "/v1/messages/count_tokens"): Example({"model": "tiny", "messages": MESSAGES}),
}
