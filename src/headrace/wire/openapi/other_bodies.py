"""The bodies of TGI's, Ollama's and the admin's routes as schemas."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.wire.limits import Limits
from headrace.wire.ollama_requests import CHAT_FIELDS, EFFORTS, GENERATE_FIELDS
from headrace.wire.openapi.parts import (
    ANY_OBJECT,
    INT32,
    MODEL,
    TOKEN,
    TRUE_OR_FALSE,
    Schema,
    answer,
    either,
    fields,
    integer,
    items,
    number,
    one_of_words,
    or_null,
    text,
)
from headrace.wire.sampling import SEED_MAX
from headrace.wire.tgi_requests import PARAMETERS

_LIMITS = Limits(max_model_len=1, vocab_size=1)
_STOP = text(least=1, most=_LIMITS.max_stop_chars)
_TGI: Mapping[str, Schema] = {
    "best_of": integer(1, _LIMITS.max_n),
    "temperature": number(0, 100, above=True),
    "repetition_penalty": number(0.01, 10),
    "frequency_penalty": number(-2, 2),
    "top_k": integer(1, INT32),
    "top_p": number(0, 1, above=True),
    "typical_p": {"enum": [1, 1.0], "description": "other values are refused: use top_p"},
    "do_sample": TRUE_OR_FALSE,
    "max_new_tokens": integer(1),
    "return_full_text": TRUE_OR_FALSE,
    "stop": items(_STOP, most=_LIMITS.max_stop),
    "truncate": integer(1),
    "watermark": TRUE_OR_FALSE,
    "details": TRUE_OR_FALSE,
    "decoder_input_details": TRUE_OR_FALSE,
    "seed": integer(0, SEED_MAX),
    "top_n_tokens": integer(0, _LIMITS.max_logprobs),
    "grammar": answer({"type": one_of_words("json", "json_object", "json_schema", "regex"), "value": {}}),
    "adapter_id": {"enum": [None], "description": "there are no adapters"},
}
_PARAMETERS = fields({name: _TGI[name] for name in sorted(PARAMETERS)})
_NAME = text(most=_LIMITS.max_name_chars)
_KEEP = either(
    number(-999_999_999, 999_999_999),
    {"type": "string", "pattern": "^-?([0-9]{1,9}|([0-9]{1,12}([.][0-9]{1,9})?(ns|us|ms|s|m|h)){1,4})$"},
)
_OPTIONS: Schema = {
    "type": "object",
    "description": "Ollama's options; each is honoured, or refused by name",
    "properties": {
        "num_predict": or_null(integer(-2, INT32)),
        "num_ctx": or_null(integer(0, INT32)),
        "seed": or_null(integer(-1, SEED_MAX)),
        "stop": or_null(either(_STOP, items(_STOP, most=_LIMITS.max_stop))),
        "temperature": or_null(number(0, 100)),
        "top_k": or_null(integer(-1, INT32)),
        "top_p": or_null(number(0, 1)),
        "min_p": or_null(number(0, 1)),
        "repeat_last_n": or_null(integer(-1, INT32)),
        "repeat_penalty": or_null(number(0.01, 10)),
        "presence_penalty": or_null(number(-2, 2)),
        "frequency_penalty": or_null(number(-2, 2)),
    },
}
_OLLAMA: Mapping[str, Schema] = {
    "model": MODEL,
    "options": _OPTIONS,
    "keep_alive": _KEEP,
    "stream": TRUE_OR_FALSE,
    "format": either(text(), ANY_OBJECT),
    "think": either(TRUE_OR_FALSE, one_of_words(*EFFORTS)),
    "logprobs": TRUE_OR_FALSE,
    "top_logprobs": integer(0, _LIMITS.max_logprobs),
    "truncate": {"enum": [False], "description": "nothing is ever cut"},
    "shift": {"enum": [False], "description": "nothing is ever cut"},
}


_OLLAMA_TEXT: Mapping[str, Schema] = {
    **_OLLAMA,
    "prompt": text(),
    "system": text(),
    "raw": TRUE_OR_FALSE,
    "context": items(TOKEN),
    "images": items({}, most=0),
    "messages": items(ANY_OBJECT, most=_LIMITS.max_messages),
    "tools": items(ANY_OBJECT),
    **{name: {"enum": [""], "description": "refused otherwise"} for name in ("suffix", "template")},
    **{name: {"enum": [0], "description": "no images are made"} for name in ("width", "height", "steps")},
}
_NAMES = (fields({"model": MODEL}, ("model",)), fields({"name": MODEL}, ("name",)))
_NAMED = either(*_NAMES)
_PULL: Mapping[str, Schema] = {
    "stream": TRUE_OR_FALSE,
    "insecure": {"enum": [False], "description": "models come over HTTPS"},
    **{name: {"enum": [""], "description": "refused otherwise"} for name in ("username", "password")},
}
BODIES: Mapping[str, Schema] = {
    "TgiGenerate": fields({"inputs": text(least=1), "parameters": _PARAMETERS, "stream": TRUE_OR_FALSE}, ("inputs",)),
    "OllamaGenerate": fields({name: _OLLAMA_TEXT[name] for name in sorted(GENERATE_FIELDS)}, ("model",)),
    "OllamaChat": fields({name: _OLLAMA_TEXT[name] for name in sorted(CHAT_FIELDS)}, ("model",)),
    "OllamaEmbed": fields(
        {
            "model": MODEL,
            "options": _OPTIONS,
            "keep_alive": _KEEP,
            "input": either(text(), items(text(), most=_LIMITS.max_prompts)),
            "truncate": TRUE_OR_FALSE,
            "dimensions": integer(1),
        },
        ("model",),
    ),
    "OllamaEmbeddings": fields(
        {"model": MODEL, "options": _OPTIONS, "keep_alive": _KEEP, "prompt": text()}, ("model",)
    ),
    "OllamaName": _NAMED,
    "OllamaPull": either(*({**each, "properties": {**each["properties"], **_PULL}} for each in _NAMES)),
    "AdminAction": fields({"action": one_of_words("load", "unload", "reload")}, ("action",)),
    "OllamaCopy": fields({"source": MODEL, "destination": _NAME}, ("source", "destination")),
}
ANSWERS: Mapping[str, Schema] = {
    "TgiAnswer": either(answer({"generated_text": text()}), items(answer({"generated_text": text()}))),
    "AnyError": either({"$ref": "#/components/schemas/Error"}, {"$ref": "#/components/schemas/TgiError"}),
    "TgiError": answer({"error": text(), "error_type": text()}),
    "OllamaGenerateAnswer": answer({"model": text(), "created_at": text(), "response": text(), "done": TRUE_OR_FALSE}),
    "OllamaChatAnswer": answer({"model": text(), "created_at": text(), "message": ANY_OBJECT, "done": TRUE_OR_FALSE}),
    "OllamaEmbedAnswer": answer({"embeddings": items(items({"type": "number"}))}),
    "OllamaError": answer({"error": text()}),
}
