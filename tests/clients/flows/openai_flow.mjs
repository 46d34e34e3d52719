// The `openai` client on Node: completions, chat, streams, tools, structured output, embeddings, responses, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const models = await client.models.list();
const model = models.data[0].id;
const messages = [{ role: "user", content: "What is the capital of France? Answer in one word." }];

const answer = await client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0 });
assert.match(answer.choices[0].message.content, /Paris/);
const stream = await client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0, stream: true });
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, answer.choices[0].message.content);

const city = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"], additionalProperties: false };
const held = await client.chat.completions.create({
  model, messages, max_tokens: 400, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "city", schema: city, strict: true } },
});
assert.equal(typeof JSON.parse(held.choices[0].message.content).city, "string");

const tools = [{ type: "function", function: { name: "get_weather", description: "The weather of a city.", parameters: city } }];
const runner = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", max_tokens: 400, temperature: 0 });
const called = await runner.finalMessage();
assert.equal(called.tool_calls[0].function.name, "get_weather");
assert.equal(typeof JSON.parse(called.tool_calls[0].function.arguments).city, "string");

const embedded = await client.embeddings.create({ model, input: ["a dog", "a puppy"] });
assert.equal(embedded.data.length, 2);
assert.ok(Math.abs(embedded.data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);

const response = await client.responses.create({ model, input: messages[0].content, max_output_tokens: 16, temperature: 0 });
assert.match(response.output_text, /Paris/);
let told = "";
for await (const event of await client.responses.create({ model, input: messages[0].content, max_output_tokens: 16, temperature: 0, stream: true }))
  if (event.type === "response.output_text.delta") told += event.delta;
assert.equal(told, response.output_text);

await assert.rejects(client.chat.completions.create({ model: "no-such-model", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
await assert.rejects(
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
console.log("done");
