"""``headrace COMMAND``: dispatch, and what every command does with an error. Commands are imported when called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from headrace import __version__
from headrace.errors import ConfigError, HeadraceError

Command = Callable[[Sequence[str]], int]

COMMANDS = {
    "serve": "answer requests over HTTP, in OpenAI's dialect",
    "run": "chat with a model in this terminal",
    "pull": "fetch a model into the cache",
    "list": "show the models in the cache",
    "rm": "remove a model from the cache",
    "keys": "make, list and revoke API keys",
    "quantize": "write a copy of a model with fewer bits",
    "config": "explain where each setting came from",
    "watermark": "find a server's watermark in a text",
    "bench": "measure any OpenAI-compatible server under load",
}

EXAMPLES = """\
  headrace serve                                  serve the built-in default model on port 8000
  headrace serve ./my-model --port 9000           serve a directory of safetensors
  echo "Why is the sky blue?" | headrace run      one answer, no server
  headrace bench --url http://127.0.0.1:8000 --concurrency 1,16,64
"""


def usage() -> str:
    """What ``headrace --help`` prints."""
    rows = "\n".join(f"  {name:8} {about}" for name, about in COMMANDS.items())
    return (
        f"headrace {__version__}: serves language models, from weights to production traffic\n\n"
        f"usage: headrace COMMAND [OPTIONS]\n\ncommands:\n{rows}\n\nexamples:\n{EXAMPLES}\n"
        "headrace COMMAND --help explains a command's options.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code: 0 done, 1 failed, 2 wrongly called, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"headrace {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _fail(f"no command {words[0]!r}; known are {', '.join(COMMANDS)}", 2)
    try:
        command = cast(Command, import_module(f"headrace.cli.{words[0]}").run)
        return command(words[1:])
    except SystemExit as stop:  # argparse, after printing --help
        return stop.code if isinstance(stop.code, int) else 1
    except ConfigError as error:
        return _fail(str(error), 2)
    except HeadraceError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print(f"headrace: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
