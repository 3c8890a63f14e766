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

// What is asked for by the fields of the form, as the proxy takes it.
function wantedOf(params) {
  const { text, model, api, run, cursor } = params;
  const [edge, age] = (params.age ?? "").split("-");
  const at = age ? (Date.now() / 1000 - Number(age)).toFixed(0) : null;
  const ages = { since: edge === "newer" ? at : null, until: edge === "older" ? at : null };
  return { text, model, api, run, cursor, limit: LIMIT, ...ages };
}

function isAll({ text, model, api, run, age }) {
  return !text && !model && !api && !run && !age;
}

function summary(found, params) {
  const count = found.entries.length,
    further = params.cursor ? ", further back" : "";
  if (!count && found.stopped) return "Nothing was found yet.";
  if (!count)
    return isAll(params) && !params.cursor ? "Nothing is stored yet." : "Nothing was found.";
  if (isAll(params)) return `${counted(found.total, "entry", "entries")}${further}`;
  return `${counted(count, "entry", "entries")} on this page${further}`;
}

// Goes on until something is found, everything was looked at, or somebody goes elsewhere.
async function searchOn(params, signal) {
  const began = Date.now();
  try {
    for (;;) {
      tell(`Searching for ${duration((Date.now() - began) / 1000)}…`);
      const found = await ask(`entries${query(wantedOf(params))}`, signal);
      if (found.entries.length || found.next === null) break;
      params = { ...params, cursor: found.next };
    }
    tell("");
    location.hash = `#/entries${query(params)}`;
  } catch (error) {
    if (!signal.aborted) tell(error.message, "bad");
  }
}

function pages(found, params, signal) {
  const at = (cursor) => `#/entries${query({ ...params, cursor })}`;
  const link = (cursor, label) => el("a", { class: "button", href: at(cursor) }, label);
  const onward = { ...params, cursor: found.next };
  return el(
    "p",
    { class: "actions" },
    params.cursor ? link(null, "Newest") : null,
    found.next && !found.stopped ? link(found.next, "Older") : null,
    found.next && found.stopped ? button("Search on", () => searchOn(onward, signal)) : null,
  );
}

async function entries(rest, params, signal) {
  const [found, info, { runs }] = await Promise.all([
    ask(`entries${query(wantedOf(params))}`, signal),
    ask("info", signal),
    ask("runs", signal),
  ]);
  return {
    title: "Entries",
    content: [
      searchForm(params, info, runs),
      el("p", { class: "quiet", role: "status" }, summary(found, params)),
      found.stopped ? el("p", { class: "note" }, seen(found.stopped)) : null,
      found.entries.length ? el("ol", { class: "entries" }, found.entries.map(item)) : null,
      pages(found, params, signal),
    ],
  };
}
