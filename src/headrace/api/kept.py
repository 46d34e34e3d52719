"""The parts of uvicorn that serve: its server and its HTTP/1.1 connection, without its command line.

``import uvicorn`` imports click and multiprocessing for ``uvicorn`` the command: 20 to 25 ms of every start. Here the
package is entered without being run; whoever asks it for anything of its own (``uvicorn.run``) still finds it, because
it is run then.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def _enter(name: str) -> None:
    """Make a package's modules importable without running the package, until somebody wants something of itself."""
    spec = importlib.util.find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return  # it has been imported, or importing it will say what is wrong
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def run_now(attribute: str) -> Any:
        if attribute.startswith("__"):  # asked by the import system, of any module
            raise AttributeError(attribute)
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = run_now
    sys.modules[name] = package


_enter("uvicorn")

from uvicorn.config import Config  # noqa: E402  (not before the package has been entered)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle  # noqa: E402
from uvicorn.server import Server  # noqa: E402

__all__ = ["Config", "HttpToolsProtocol", "RequestResponseCycle", "Server"]
