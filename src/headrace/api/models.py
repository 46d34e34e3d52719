"""``/v1/models``: what is served, under all of its names."""

from __future__ import annotations

from typing import Any

from headrace.api.exchange import respond_json
from headrace.api.ports import Receive, Scope, Send
from headrace.api.settings import Served
from headrace.errors import ModelNotFound


class ModelRoutes:
    """The list, and each entry by its id (which may contain slashes)."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every name as an entry of its own; the first is the root of the others."""
        entries = [self._entry(name) for name in self._served.names]
        await respond_json(send, {"object": "list", "data": entries})

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One entry; 404 if the name is not served."""
        name = scope["headrace.rest"]
        if name not in self._served.names:
            raise ModelNotFound(f"The model `{name}` does not exist.", "model")
        await respond_json(send, self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._served.created,
            "owned_by": "headrace",
            "root": self._served.names[0],
            "parent": None,
            "max_model_len": self._served.limits.max_model_len,
            "permission": [
                {
                    "id": f"modelperm-{name}",
                    "object": "model_permission",
                    "created": self._served.created,
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
