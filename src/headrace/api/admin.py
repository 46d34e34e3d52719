"""``/admin/models``: what is in memory, and load, unload and reload. Only for keys that are good for it.

No body names a file: a model is looked for again where the command line said it is, so that a key that leaks opens no
disk. A new version goes live by a new file (or a symbolic link that is turned) and ``reload``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.access import Scope as Access
from headrace.api.exchange import read_json, respond_json
from headrace.api.hosting import Models, Slot
from headrace.api.ports import Receive, Scope, Send
from headrace.api.routes import Route
from headrace.api.settings import ServerSettings
from headrace.errors import Forbidden, InvalidRequest, ModelFailed
from headrace.errors import ModelError as UnreadableModel
from headrace.wire.fields import Fields

ACTIONS = ("load", "unload", "reload")
_LONGEST = 16


class AdminRoutes:
    """``with_keys`` says whether callers must have a key; without keys these routes are closed to all."""

    def __init__(self, models: Models, settings: ServerSettings, *, with_keys: bool) -> None:
        self._models = models
        self._settings = settings
        self._with_keys = with_keys

    @property
    def routes(self) -> tuple[Route, ...]:
        """The table."""
        return (
            Route("GET", "/admin/models", self.list, access=Access.ADMIN),
            Route("POST", "/admin/models/{id}", self.act, access=Access.ADMIN),
        )

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every model and its state; sizes in bytes."""
        self._refuse_without_keys()
        document = {"budget": self._models.budget, "models": [_document(slot) for slot in self._models.slots]}
        await respond_json(send, document)

    async def act(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``{"action": "load" | "unload" | "reload"}``; answers when it is done, ``unload`` when it is decided."""
        self._refuse_without_keys()
        slot = self._models.find(scope["headrace.rest"])
        action = _action(await read_json(scope, receive, self._settings))
        if action == "load":
            await self._models.load(slot.name)
        elif action == "unload":
            self._models.unload(slot.name)
        else:
            try:
                await self._models.reload(slot.name)
            except UnreadableModel:
                raise ModelFailed(f"The files of `{slot.name}` cannot be read; the log says why.") from None
        await respond_json(send, _document(slot))

    def _refuse_without_keys(self) -> None:
        if not self._with_keys:
            raise Forbidden("this server has no API keys, and without them nobody may look after its models")


def _action(body: Mapping[str, Any]) -> str:
    unknown = sorted(body.keys() - {"action"})
    if unknown:
        raise InvalidRequest(f"{unknown[0][:64]} is not known here; the only field is action", unknown[0][:64])
    action = Fields(body).text("action", _LONGEST)
    if action not in ACTIONS:
        raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}", "action")
    return action


def _document(slot: Slot) -> dict[str, Any]:
    resident = slot.seat.resident
    return {
        "name": slot.name,
        "names": list(slot.names),
        "state": "reloading" if slot.reloading else resident.state.value,
        "version": slot.versions,
        "bytes": resident.bytes,
        "pinned": resident.pinned,
        "calls": resident.users,
        "waiting": resident.waiting,
        "keep_alive": resident.keep_alive,
        "load_seconds": round(slot.seat.load_seconds, 3),
    }
