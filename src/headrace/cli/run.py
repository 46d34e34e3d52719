"""``headrace run``: a chat in the terminal. The engine runs in this process; there is no server and no port."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ClassVar

from msgspec import Struct, field

from headrace.cli import flags
from headrace.cli.assembly import Assembly, assemble
from headrace.cli.logs import start_logging
from headrace.cli.phases import Phases
from headrace.config import SECTIONS, CacheSettings, Config, MachineSettings, ModelSettings, integer, knob, number
from headrace.errors import ConfigError, EngineError, HeadraceError, InvalidRequest, UnsupportedModel
from headrace.types import Request, SamplingParams, TokenEvent
from headrace.wire.calls import Conversation

ABOUT = """\
Chat with a model in this terminal; the answer streams. In the chat, /help lists the commands, Ctrl-C stops an answer
and Ctrl-D leaves. When standard input is not a terminal, all of it is one question, and the answer goes to standard
output."""

EXAMPLES = """\
  headrace run
  headrace run ./my-model --system "Answer in one sentence."
  echo "Why is the sky blue?" | headrace run --max-tokens 100
"""

HELP = """\
/help   this list
/clear  forget the conversation
/exit   leave (or Ctrl-D)
Ctrl-C  stop the answer"""

MOST_INPUT = 8 << 20
"""Bytes of a question on standard input; the HTTP side takes no more either."""

_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
"""What a model may not send to a terminal: whatever moves the cursor or changes a mode. Tab and newline may pass."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How the model answers."""

    TITLE: ClassVar[str] = "chat"

    system: str | None = knob(None, "System message that every conversation begins with.", env=False)
    temperature: float | None = knob(
        None,
        "0 always takes the likeliest token. auto is what the model's makers recommend, else 0.7.",
        number,
        minimum=0,
        maximum=2,
        env=False,
    )
    max_tokens: int | None = knob(
        None, "Longest answer. auto is what the context leaves.", integer, unit="tokens", minimum=1, env=False
    )


SHOWN = (ModelSettings, ChatSettings, MachineSettings, CacheSettings)


def run(argv: Sequence[str]) -> int:
    """Chat until the end of input.

    Raises:
        HeadraceError: the model cannot be loaded; or, without a terminal, the question cannot be answered.
    """
    parser = flags.parser("headrace run", ABOUT, SHOWN, EXAMPLES)
    config = flags.read(parser, argv, (*SECTIONS, ChatSettings))
    question = None if sys.stdin.isatty() else _read_question()
    start_logging("warning")
    assembly = assemble(config, Phases(), model=_one(config))
    try:
        if not assembly.words.can_chat:
            name = assembly.checkpoint.name
            raise UnsupportedModel(f"{name} has no chat template: it continues texts; serve it and use /v1/completions")
        chat = Chat(assembly, config.section(ChatSettings))
        if question is None:
            _converse(chat)
        else:
            _show(chat.ask(question))
    finally:
        assembly.close()
    return 0


def _read_question() -> str:
    data = sys.stdin.buffer.read(MOST_INPUT + 1)
    if len(data) > MOST_INPUT:
        raise ConfigError(f"run: standard input has more than {MOST_INPUT} bytes, the limit of one question")
    try:
        question = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"run: standard input is not UTF-8: {error.reason} at byte {error.start}") from None
    if not question:
        raise ConfigError("run: nothing on standard input; pipe a question in, or start it in a terminal")
    return question


class Chat(Struct):
    """A conversation with the model of an assembly, whose engine it starts."""

    assembly: Assembly
    settings: ChatSettings
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    _events: SimpleQueue[Sequence[TokenEvent]] = field(default_factory=SimpleQueue)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.clear()
        self.assembly.engine.start(self._events.put)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = []
        if self.settings.system is not None:
            self.messages = [{"role": "system", "content": self.settings.system}]

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Closing the iterator stops the model; what was said until then is remembered.

        Raises:
            InvalidRequest: the conversation does not fit into the context any more, or the template refuses it.
            EngineError: the engine failed.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        request = self._request(Conversation(tuple(asked)))
        output = self.assembly.words.open_output(request.sampling, request.prompt)
        self.assembly.engine.submit(request)
        said: list[str] = []
        finished = False
        try:
            while not finished:
                for event in self._events.get():
                    if event.request_id != request.id:
                        continue
                    finished = event.finish is not None
                    if event.error is not None:
                        raise EngineError(event.error)
                    said.append(output.push(event).text)
                    yield said[-1]
        finally:
            if not finished:
                self.assembly.engine.abort(request.id)
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _request(self, conversation: Conversation) -> Request:
        prompt = tuple(self.assembly.words.encode_chat(conversation))
        room = self.assembly.max_model_len - len(prompt)
        if room < 1:
            raise InvalidRequest(
                f"the conversation has {len(prompt)} tokens, and the context holds {self.assembly.max_model_len},"
                " answer included; /clear begins a new one"
            )
        text = self.assembly.checkpoint.text
        chosen = dict(text.sampling_defaults)
        if self.settings.temperature is not None or "temperature" not in chosen:
            chosen["temperature"] = 0.7 if self.settings.temperature is None else self.settings.temperature
        sampling = SamplingParams(
            max_tokens=min(room, self.settings.max_tokens or room),
            temperature=chosen["temperature"],
            top_k=int(chosen.get("top_k", 0)),
            top_p=chosen.get("top_p", 1.0),
            min_p=chosen.get("min_p", 0.0),
            repetition_penalty=chosen.get("repetition_penalty", 1.0),
            eos_token_ids=text.eos_token_ids,
        )
        return Request(f"run-{next(self._numbers)}", prompt, sampling, time.monotonic())


def _converse(chat: Chat) -> None:
    with contextlib.suppress(ImportError):  # not every Python has it; without it there is no history
        import readline  # noqa: F401  (importing it gives input() line editing and history)

    print(f"{chat.assembly.checkpoint.name}. /help lists the commands.")
    while True:
        try:
            line = input(">>> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if line == "/exit":
            return
        if line == "/clear":
            chat.clear()
        elif line.startswith("/"):
            print(HELP)
        elif line:
            _answer(chat, line)


def _answer(chat: Chat, question: str) -> None:
    """One answer at the terminal: neither an error nor Ctrl-C ends the conversation."""
    answer = chat.ask(question)
    try:
        _show(answer)
    except KeyboardInterrupt:
        answer.close()
        print(" (stopped)")
    except HeadraceError as error:
        print(f"error: {error}", file=sys.stderr)


def _show(answer: Iterator[str]) -> None:
    terminal = sys.stdout.isatty()
    for piece in answer:
        sys.stdout.write(piece.translate(_CONTROL) if terminal else piece)
        sys.stdout.flush()
    print()


def _one(config: Config) -> str | None:
    models = config.section(ModelSettings).model
    if len(models) > 1:
        raise ConfigError("model: a chat is with one model")
    return models[0] if models else None
