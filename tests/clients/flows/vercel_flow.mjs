// Vercel's `ai` SDK: text, streams, objects, tools, embeddings.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, key] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "headrace", baseURL: `${url}/v1`, apiKey: key, supportsStructuredOutputs: true });
const model = provider("tgi");
const common = { model, temperature: 0, maxRetries: 0 };
const prompt = "What is the capital of France? Answer in one word.";

const answer = await generateText({ ...common, prompt, maxOutputTokens: 16 });
assert.match(answer.text, /Paris/);
assert.ok(answer.usage.outputTokens > 0);
let text = "";
for await (const part of streamText({ ...common, prompt, maxOutputTokens: 16 }).textStream) text += part;
assert.equal(text, answer.text);

const { object } = await generateObject({ ...common, prompt, maxOutputTokens: 400, schema: z.object({ city: z.string().max(20) }) });
assert.equal(typeof object.city, "string");

const called = await generateText({
  ...common, prompt: "What is the weather in Paris?", maxOutputTokens: 400, toolChoice: "required",
  tools: { get_weather: tool({ description: "The weather of a city.", inputSchema: z.object({ city: z.string().max(20) }) }) },
});
assert.equal(called.toolCalls[0].toolName, "get_weather");
assert.equal(typeof called.toolCalls[0].input.city, "string");

const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("tgi"), values: ["a dog", "a puppy"], maxRetries: 0 });
assert.equal(embeddings.length, 2);
console.log("done");
