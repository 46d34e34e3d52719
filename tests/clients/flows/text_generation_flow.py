"""TGI's own client, `text-generation`."""

import asyncio
import sys

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

url, key = sys.argv[1:3]
headers = {"Authorization": f"Bearer {key}"}
client = Client(url, headers=headers, timeout=60)

answer = client.generate("The capital of France is", max_new_tokens=8, decoder_input_details=True, top_n_tokens=2)
assert "Paris" in answer.generated_text, answer
assert answer.details.generated_tokens == len(answer.details.tokens) == len(answer.details.top_tokens) == 8, answer
assert len(answer.details.prefill) >= 5, answer.details.prefill
parts = list(client.generate_stream("The capital of France is", max_new_tokens=8))
assert "".join(part.token.text for part in parts if not part.token.special) == answer.generated_text
assert parts[-1].generated_text == answer.generated_text and parts[-1].details.generated_tokens == 8, parts[-1]
drawn = client.generate("Once", max_new_tokens=5, do_sample=True, best_of=2, temperature=0.8)
assert len(drawn.details.best_of_sequences) == 1, drawn
assert client.generate("Once", max_new_tokens=5, do_sample=True, seed=3).details.seed == 3
stopped = client.generate("1, 2, 3, 4,", max_new_tokens=30, stop_sequences=["7"])
assert stopped.details.finish_reason in ("stop_sequence", "length"), stopped
chat = client.chat([{"role": "user", "content": "What is the capital of France?"}], max_tokens=8)
assert chat.choices[0].message.content, chat


async def streamed() -> str:
    text = ""
    async for part in AsyncClient(url, headers=headers, timeout=60).generate_stream(
        "The capital of France is", max_new_tokens=8
    ):
        text += "" if part.token.special else part.token.text
    return text


assert asyncio.run(streamed()) == answer.generated_text
try:
    client.generate("x", max_new_tokens=10_000_000)
except ValidationError as caught:
    assert "max_new_tokens" in str(caught), caught
else:
    raise AssertionError("more tokens than the context holds were granted")
print("done")
