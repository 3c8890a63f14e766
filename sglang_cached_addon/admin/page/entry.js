// One entry: what was asked, and its samples side by side.

const SIDE_BY_SIDE = 24;

// A part of a content: its text, or all of it to who opens it.
function partOf(part) {
  if (typeof part === "string") return passage(part);
  if (typeof part?.text === "string") return passage(part.text);
  const summary = `${seen(part?.type ?? "part")}, ${size(JSON.stringify(part).length)}`;
  return folded(summary, () => json(part));
}

// What stands in a message, or is the prompt: text, parts, messages, token ids.
function said(content) {
  if (content === null || content === undefined) return null;
  if (typeof content === "string") return passage(content);
  if (!Array.isArray(content)) return json(content);
  if (content.some((part) => part?.role)) return conversation(content);
  if (typeof content[0] !== "number") return el("div", {}, content.map(partOf));
  return folded(counted(content.length, "token id"), () => passage(content.join(" "), "text code"));
}

function conversation(messages) {
  return el("ol", { class: "messages" }, messages.map(message));
}

function message(value) {
  const { role, content, ...others } = value ?? {};
  const more = Object.keys(others).length ? json(others) : null;
  return el("li", {}, el("h3", {}, seen(role ?? "message")), said(content), more);
}

const PROMPTS = ["prompt", "text", "input", "input_ids", "instructions", "system"];

function prompts(call) {
  const given = PROMPTS.filter((name) => call[name] !== undefined && call[name] !== null);
  return given.flatMap((name) => [el("h3", {}, name), said(call[name])]);
}

function fieldOf([name, value]) {
  const isPlain = typeof value !== "object" || value === null;
  const shown = isPlain ? passage(String(value), "text code") : json(value);
  return el("div", {}, el("dt", {}, seen(name)), el("dd", {}, shown));
}

function request(call) {
  if (!call) return [el("p", { class: "quiet" }, "What was asked is not kept.")];
  const { messages, ...others } = call;
  const isChat = Array.isArray(messages);
  const fields = Object.entries(isChat ? others : call).filter(([name]) => !PROMPTS.includes(name));
  return [
    isChat ? conversation(messages) : "",
    ...prompts(call),
    fields.length ? el("dl", { class: "fields" }, fields.map(fieldOf)) : "",
  ];
}

// What there is to tell of an answer that was generated; vectors and the like were not.
function generated(answer) {
  return [
    el("span", {}, seen(answer.finish_reason ?? "no finish reason")),
    el("span", {}, counted(answer.tokens, "token")),
  ];
}

function sample(answer, at) {
  const runs = answer.runs.flatMap((name) => [
    " ",
    el("a", { href: `#/entries${query({ run: name })}` }, seen(name)),
  ]);
  return el(
    "li",
    {},
    el(
      "article",
      { "aria-label": `Sample ${at}` },
      el("h3", {}, `Sample ${at}`),
      el(
        "p",
        { class: "meta" },
        ...(answer.finish_reason || answer.tokens ? generated(answer) : []),
        el("span", {}, duration(answer.seconds)),
        el("span", {}, ago(answer.stored_at)),
      ),
      passage(answer.text ?? ""),
      runs.length ? el("p", { class: "meta" }, "Used in", ...runs) : null,
      folded("As stored", () => json(answer.answer)),
    ),
  );
}

function samples(answers) {
  const list = el("ol", { class: "samples", start: 0 }, answers.slice(0, SIDE_BY_SIDE).map(sample));
  if (answers.length <= SIDE_BY_SIDE) return list;
  const more = button(`Show all ${number(answers.length)} samples`, () => {
    list.append(
      ...answers.slice(SIDE_BY_SIDE).map((answer, i) => sample(answer, i + SIDE_BY_SIDE)),
    );
    list.children[SIDE_BY_SIDE].querySelector("summary").focus();
    more.remove();
  });
  return el("div", {}, list, more);
}

async function discard(entry) {
  const what =
    `Delete this entry and its ${counted(entry.samples, "sample")}? ` +
    "The next such call is generated anew.";
  const choice = "Rewrite the file at once, so that no trace is left on the disk";
  const isAtOnce = await confirmed(what, "Delete", choice);
  if (isAtOnce === null) return;
  try {
    const done = await ask(
      `entries/${entry.key}${isAtOnce ? "?now=true" : ""}`,
      undefined,
      "DELETE",
    );
    const more = done.is_compacted ? "; the file is rewritten" : "";
    tell(`Deleted: ${counted(done.samples, "sample")}${more}.`);
    location.hash = "#/entries";
  } catch (error) {
    tell(error.message, "bad");
  }
}

async function entry(key, params, signal) {
  const found = await ask(`entries/${encodeURIComponent(key)}`, signal);
  return {
    title: "Entry",
    content: [
      el(
        "div",
        { class: "row" },
        meta(found),
        button("Delete…", () => discard(found), { class: "danger" }),
      ),
      el(
        "p",
        { class: "meta" },
        el("span", {}, "Key ", el("code", { class: "key" }, found.key)),
        el("span", {}, "First stored ", ago(found.stored_at)),
      ),
      el("h2", {}, "Request"),
      el("div", { class: "request" }, ...request(found.call)),
      el("h2", {}, counted(found.answers.length, "sample")),
      samples(found.answers),
    ],
  };
}
