"""HTTP for one server: the application, its routes, admission, keys, health and the end of its life.

A composition root does::

    app = App(Models([constant(host(engine, served, recorder, settings))], settings), recorder, settings)
    serve(app, listen(host, port))

`headrace.api.server` is imported apart from this, because it brings uvicorn with it.
"""

from headrace.api.app import App
from headrace.api.hosting import Models
from headrace.api.settings import Served, ServerSettings
from headrace.api.versions import Loaded, Model, Version, constant, host

__all__ = ["App", "Loaded", "Model", "Models", "Served", "ServerSettings", "Version", "constant", "host"]
