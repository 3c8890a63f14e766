// OpenAI's and Anthropic's clients for Node: reads lines with calls, makes one after the other, and
// writes a line with what it got of each: the header X-Cache, and the answer or its events.

import { createInterface } from "node:readline";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const usual = { apiKey: "none", maxRetries: 0, timeout: 60_000 };

async function ask(clients, name, body) {
  const path = name.split(".");
  const method = path.pop();
  const api = path.reduce((object, member) => object[member], clients);
  const { data, response } = await api[method](body).withResponse();
  const answer = body.stream ? await all(data) : data;
  delete answer.output_text; // what Node's client alone makes of a response
  return [response.headers.get("x-cache"), answer];
}

async function all(events) {
  const found = [];
  for await (const event of events) {
    found.push(event);
  }
  return found;
}

for await (const line of createInterface({ input: process.stdin })) {
  const { url, calls } = JSON.parse(line);
  const clients = {
    anthropic: new Anthropic({ ...usual, baseURL: url }),
    openai: new OpenAI({ ...usual, baseURL: `${url}/v1` }),
  };
  const said = [];
  for (const [name, body] of calls) {
    said.push(await ask(clients, name, body));
  }
  console.log(JSON.stringify(said));
}
