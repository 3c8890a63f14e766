// What is stored: found by text, model, API, age and run, a page at a time.

const LIMIT = 50;
const AGES = {
  "": "Any age",
  "newer-600": "Newest 10 minutes",
  "newer-3600": "Newest hour",
  "newer-86400": "Newest day",
  "newer-604800": "Newest week",
  "older-86400": "Older than a day",
  "older-604800": "Older than a week",
  "older-2592000": "Older than 30 days",
};

function options(chosen, named) {
  if (chosen && !named.some(([value]) => value === chosen)) named.push([chosen, seen(chosen)]);
  return named.map(([value, label]) => el("option", { value, selected: value === chosen }, label));
}

function field(label, id, control) {
  return el("p", {}, el("label", { for: id }, label), control);
}

function select(name, label, chosen, named) {
  const control = el(
    "select",
    { id: `by-${name}`, name, onchange: (event) => event.target.form.requestSubmit() },
    options(chosen, named),
  );
  return field(label, `by-${name}`, control);
}

function searchForm(params, info, runs) {
  const names = [...new Set(info.models.map((model) => model.name).filter((name) => name))];
  return el(
    "form",
    {
      role: "search",
      class: "search",
      onsubmit: (event) => {
        event.preventDefault();
        location.hash = `#/entries${query(Object.fromEntries(new FormData(event.target)))}`;
      },
    },
    field(
      "Text in prompt or answer",
      "by-text",
      el("input", {
        type: "search",
        id: "by-text",
        name: "text",
        value: params.text ?? "",
        autocomplete: "off",
      }),
    ),
    select("model", "Model", params.model ?? "", [
      ["", "All"],
      ["current", "The present one"],
      ["other", "All others"],
      ...names.map((name) => [name, seen(name)]),
    ]),
    select("api", "API", params.api ?? "", [
      ["", "All"],
      ...Object.keys(info.dialects).map((name) => [name, name]),
    ]),
    select("age", "Age", params.age ?? "", Object.entries(AGES)),
    runs.length || params.run
      ? select("run", "Run", params.run ?? "", [
          ["", "Any"],
          ...runs.slice(0, 500).map((run) => [run.name, run.name]),
        ])
      : null,
    el("p", {}, el("button", { type: "submit" }, "Search")),
  );
}

function meta(entry) {
  return el(
    "p",
    { class: "meta" },
    el(
      "span",
      {},
      `${seen(entry.model ?? "unnamed model")}${entry.is_current ? "" : " (inactive)"}`,
    ),
    el("span", {}, entry.api),
    el("span", {}, counted(entry.samples, "sample")),
    el("span", {}, counted(entry.tokens, "token")),
    el("span", {}, size(entry.bytes)),
    el("span", {}, ago(entry.last_stored_at)),
  );
}

function item(entry) {
  return el(
    "li",
    {},
    el("a", { href: `#/entry/${entry.key}`, dir: "auto" }, seen(entry.request).trim() || "(empty)"),
    el("p", { class: "answer", dir: "auto" }, seen(entry.answer).trim() || "(empty)"),
    meta(entry),
  );
}

async function entries(rest, params, signal) {
  const [edge, age] = (params.age ?? "").split("-");
  const at = age ? (Date.now() / 1000 - Number(age)).toFixed(0) : null;
  const { text, model, api, run, cursor } = params;
  const wanted = {
    text,
    model,
    api,
    run,
    cursor,
    limit: LIMIT,
    since: edge === "newer" ? at : null,
    until: edge === "older" ? at : null,
  };
  const [found, info, runs] = await Promise.all([
    ask(`entries${query(wanted)}`, signal),
    ask("info", signal),
    ask("runs", signal),
  ]);
  const isAll = !text && !model && !api && !run && !age;
  const shown = found.entries.length;
  const more = `#/entries${query({ ...params, cursor: found.next })}`;
  let summary = isAll
    ? counted(found.total, "entry", "entries")
    : `${counted(shown, "entry", "entries")} on this page`;
  if (!shown) summary = isAll ? "Nothing is stored yet." : "Nothing was found.";
  return {
    title: "Entries",
    content: [
      searchForm(params, info, runs.runs),
      el("p", { class: "quiet", role: "status" }, cursor ? `${summary}, further back` : summary),
      found.stopped ? el("p", { class: "note" }, seen(found.stopped)) : null,
      shown ? el("ol", { class: "entries" }, found.entries.map(item)) : null,
      el(
        "p",
        { class: "actions" },
        cursor
          ? el(
              "a",
              { class: "button", href: `#/entries${query({ ...params, cursor: null })}` },
              "Newest",
            )
          : null,
        found.next
          ? el("a", { class: "button", href: more }, found.stopped ? "Search on" : "Older")
          : null,
      ),
    ],
  };
}
