"""vLLM's ``/tokenize`` and ``/detokenize``: bodies → what to encode or decode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.wire.calls import Conversation, Prompts
from headrace.wire.fields import Fields, check_text
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import parse_chat
from headrace.wire.refusals import refuse_unhonoured

TOKENIZE_FIELDS = frozenset({"model", "prompt", "add_special_tokens", "return_token_strs"})
DETOKENIZE_FIELDS = frozenset({"model", "tokens"})


def parse_tokenize(body: Mapping[str, Any], limits: Limits) -> tuple[Prompts | Conversation, bool]:
    """What to encode, and whether the tokens' texts are wanted beside their ids.

    A body with ``messages`` may have every field of a chat that shapes its prompt.

    Raises:
        InvalidRequest, Unsupported: naming the field, the limit and the fix.
    """
    fields = Fields(body)
    strings = fields.boolean("return_token_strs")
    if "messages" in body:
        chat = {name: value for name, value in body.items() if name != "return_token_strs"}
        return parse_chat(chat, limits, {}).content, strings
    refuse_unhonoured(body, TOKENIZE_FIELDS)
    text = check_text(fields.raw("prompt"), "prompt")
    return Prompts((text,), fields.boolean("add_special_tokens", True)), strings


def parse_detokenize(body: Mapping[str, Any], limits: Limits) -> tuple[int, ...]:
    """The ids to decode.

    Raises:
        InvalidRequest: naming the field, the limit and the fix.
    """
    refuse_unhonoured(body, DETOKENIZE_FIELDS)
    fields = Fields(body)
    ids = fields.token_ids("tokens", limits.max_model_len, limits.vocab_size)
    if ids is None:
        raise fields.wrong("tokens", "is missing; send a list of token ids")
    return ids
