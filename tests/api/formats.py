"""Words of a model with a template of its own: what the fakes' plain template cannot have, tools and reasoning."""

from collections.abc import Sequence

from headrace.cli.chats import Chats
from headrace.constraint import Constraint
from headrace.text.output import OutputText
from headrace.text.template import ChatTemplate
from headrace.types import SamplingParams
from headrace.wire.calls import Conversation, Prompts
from tests.api.fakes import ByteWords
from tests.text.formats import templates


class FormatWords(ByteWords):
    """Bytes for tokens, and one of the templates of `tests.text.formats.templates`."""

    def __init__(self, template: str = "QWEN3") -> None:
        super().__init__()
        source = ChatTemplate({"default": getattr(templates, template)}, {"bos_token": "", "eos_token": ""})
        self._chats = Chats(self.tokenizer, source)

    def encode_chat(self, conversation: Conversation) -> Sequence[int]:
        return self._chats.encode(conversation)

    def constraint_of(
        self, content: Prompts | Conversation, asked: Constraint | None, prompt: Sequence[int]
    ) -> Constraint | None:
        return self._chats.constrain(content, asked, prompt) if isinstance(content, Conversation) else asked

    def open_output(
        self, sampling: SamplingParams, prompt: Sequence[int], content: Prompts | Conversation | None = None
    ) -> OutputText:
        if isinstance(content, Conversation):
            return self._chats.open_output(sampling, prompt, content)
        return super().open_output(sampling, prompt, content)
