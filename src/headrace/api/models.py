"""``/v1/models``: what is served, under all of its names."""

from __future__ import annotations

from typing import Any

from headrace.api.exchange import respond_json
from headrace.api.hosting import Entry, Models
from headrace.api.ports import Receive, Scope, Send
from headrace.errors import ModelNotFound


class ModelRoutes:
    """The list, and each entry by its id (which may contain slashes)."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every name as an entry of its own; the first is the root of the others."""
        entries = [_document(each) for each in self._models.entries]
        await respond_json(send, {"object": "list", "data": entries})

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One entry; 404 if the name is not served."""
        name = scope["headrace.rest"]
        found = next((each for each in self._models.entries if each.name == name), None)
        if found is None:
            raise ModelNotFound(f"The model `{name}` does not exist.", "model")
        await respond_json(send, _document(found))


def _document(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "headrace",
        "root": entry.root,
        "parent": None,
        "max_model_len": entry.max_model_len,
        "chat_format": entry.chat,
        "permission": [
            {
                "id": f"modelperm-{entry.name}",
                "object": "model_permission",
                "created": entry.created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
