"""Every route in words: what it is for, which body it takes, what it answers."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
TEXT, METRICS = "text/plain", "text/plain; version=0.0.4"


class Operation(Struct, frozen=True):
    """``body`` and ``answer`` name schemas; ``stream`` is the media type of an answer that comes piece by piece,
    ``media`` of one that comes whole."""

    summary: str
    body: str | None = None
    answer: str | None = None
    stream: str | None = None
    media: str = "application/json"
    error: str = "Error"
    open: bool = False
    """No key is asked for."""


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation("Answer a chat", "Chat", "ChatAnswer", SSE),
    ("POST", "/v1/completions"): Operation("Continue a text", "Completion", "CompletionAnswer", SSE),
    ("POST", "/v1/embeddings"): Operation("Embed texts", "Embeddings", "EmbeddingsAnswer"),
    ("POST", "/v1/responses"): Operation("Answer, and remember the answer", "Response", "ResponseAnswer", SSE),
    ("GET", "/v1/responses/{id}"): Operation("A response that is stored; below it, /input_items"),
    ("POST", "/v1/responses/{id}"): Operation("ID/cancel: end a response that is made in the background"),
    ("DELETE", "/v1/responses/{id}"): Operation("Forget a response"),
    ("GET", "/v1/models"): Operation("List the models"),
    ("GET", "/v1/models/{id}"): Operation("Describe one model"),
    ("POST", "/tokenize"): Operation(
        "Tokens of a text or a chat (vLLM's body, or TGI's with inputs)", "Tokenize", error="AnyError"
    ),
    ("POST", "/detokenize"): Operation("Text of tokens", "Detokenize", "DetokenizeAnswer"),
    **{("POST", path): Operation("Compare texts", "Score", "ScoreAnswer") for path in ("/score", "/v1/score")},
    **{
        ("POST", path): Operation("Order documents by relevance", "Rerank", "RerankAnswer")
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    },
    ("GET", "/version"): Operation("headrace's version"),
    ("GET", "/load"): Operation("Calls that are not answered yet"),
    ("GET", "/"): Operation("Whether the server is ready, in words", media=TEXT, open=True, error="TgiError"),
    ("GET", "/health"): Operation("Whether the server lives and is ready", open=True),
    ("GET", "/health/live"): Operation("Whether the step loop turns", open=True),
    ("GET", "/health/ready"): Operation("Whether requests are taken", open=True),
    ("GET", "/metrics"): Operation("Prometheus metrics", media=METRICS),
    ("GET", "/openapi.json"): Operation("This document"),
    ("POST", "/"): Operation("Continue a text (TGI)", "TgiGenerate", "TgiAnswer", SSE, error="TgiError"),
    ("POST", "/generate"): Operation("Continue a text (TGI)", "TgiGenerate", "TgiAnswer", error="TgiError"),
    ("POST", "/generate_stream"): Operation(
        "Continue a text, streamed (TGI)", "TgiGenerate", None, SSE, error="TgiError"
    ),
    ("GET", "/info"): Operation("The model and its limits (TGI)", error="TgiError"),
    ("POST", "/chat_tokenize"): Operation("A chat's prompt and its tokens (TGI)", "Chat", error="TgiError"),
    ("POST", "/api/generate"): Operation(
        "Answer a prompt (Ollama)", "OllamaGenerate", "OllamaGenerateAnswer", NDJSON, error="OllamaError"
    ),
    ("POST", "/api/chat"): Operation(
        "Answer a chat (Ollama)", "OllamaChat", "OllamaChatAnswer", NDJSON, error="OllamaError"
    ),
    ("POST", "/api/embed"): Operation("Embed texts (Ollama)", "OllamaEmbed", "OllamaEmbedAnswer", error="OllamaError"),
    ("POST", "/api/embeddings"): Operation("Embed one text (Ollama)", "OllamaEmbeddings", error="OllamaError"),
    ("GET", "/api/tags"): Operation("List the models (Ollama)", error="OllamaError"),
    ("GET", "/api/ps"): Operation("Models in memory (Ollama)", error="OllamaError"),
    ("GET", "/api/version"): Operation("The version of Ollama's interface that is spoken", error="OllamaError"),
    ("POST", "/api/show"): Operation("Describe one model (Ollama)", "OllamaName", error="OllamaError"),
    ("POST", "/api/pull"): Operation("Fetch a model (Ollama)", "OllamaPull", None, NDJSON, error="OllamaError"),
    ("POST", "/api/copy"): Operation("A second name for a model (Ollama)", "OllamaCopy", error="OllamaError"),
    ("POST", "/v1/messages"): Operation(
        "Answer a chat (Anthropic)", "Messages", "MessagesAnswer", SSE, error="AnthropicError"
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Tokens of a chat (Anthropic)", "CountTokens", "CountTokensAnswer", error="AnthropicError"
    ),
    ("GET", "/admin/models"): Operation("Every model and its state (an admin's key)"),
    ("POST", "/admin/models/{id}"): Operation("Load, unload or reload a model (an admin's key)", "AdminAction"),
    ("DELETE", "/api/delete"): Operation("Remove a model (Ollama)", "OllamaName", error="OllamaError"),
}
