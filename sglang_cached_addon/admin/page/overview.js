// The overview: what is counted, now and over time, and what is under way.

let points = [],
  began = null;

// What was counted since the last look; the proxy keeps a day of it.
async function past(signal) {
  const found = await ask(`history${query({ after: points.at(-1)?.time })}`, signal);
  const read = (row) =>
    Object.fromEntries([["time", row[0]], ...found.names.map((name, at) => [name, row[at + 1]])]);
  if (found.since !== began) points = []; // another process
  began = found.since;
  points.push(...found.points.map(read));
  points = points.filter((point) => point.time > found.present[0] - 86_700);
  return read(found.present);
}

function tiles(counts) {
  const { samples_from_cache: reused, samples_from_upstream: generated } = counts;
  const calls = sum(counts, LOOKED_UP),
    samples = reused + generated;
  const entries = counted(counts.num_keys, "entry", "entries");
  const rows = [
    ["Hit rate", percent(share(counts.hits, calls)), `of ${counted(calls, "request")}`],
    ["Samples reused", percent(share(reused, samples)), `${short(reused)} of ${short(samples)}`],
    ["Tokens saved", short(counts.tokens_saved), "not generated again"],
    ["Upstream time saved", duration(counts.upstream_seconds_saved), "not waited for again"],
    ["Stored", short(counts.total_responses), `samples in ${entries}`],
  ];
  return rows.map(([name, value, detail]) =>
    el(
      "div",
      {},
      el("dt", {}, name),
      el("dd", {}, el("strong", {}, value), el("span", {}, detail)),
    ),
  );
}

function flying(flights) {
  if (!flights.length) return el("p", { class: "quiet" }, "Nothing is being fetched.");
  const rows = flights.map((flight) => [
    seen(flight.path ?? flight.api ?? "–"),
    seen(flight.model ?? "–"),
    duration(Date.now() / 1000 - flight.since),
    number(flight.samples),
    number(flight.clients),
    flight.is_stream ? "yes" : "no",
    seen(flight.run || "–"),
    el("code", {}, seen(flight.id ?? "–")),
  ]);
  return table(
    "In flight",
    ["Path", "Model", "For", "Samples", "Clients", "Stream", "Run", "Request"],
    rows,
    [2, 3, 4],
  );
}

function reasons(info) {
  const rows = [
    ["not looked up", info.bypasses],
    ["not stored", info.not_stored],
  ].flatMap(([what, counts]) =>
    Object.entries(counts).map(([reason, count]) => [reason, what, number(count)]),
  );
  return rows.length
    ? [
        el("h2", {}, "Reasons"),
        table("Reasons", ["Reason", "What it kept from", "Requests"], rows, [2]),
      ]
    : [];
}

function models(info) {
  const rows = info.models.map((model) => {
    const isCurrent = model.fingerprint === info.model.fingerprint,
      name = seen(model.name ?? "unnamed");
    return [
      el("a", { href: `#/entries${query({ model: model.name })}` }, name),
      isCurrent ? "yes" : "–",
      number(model.samples),
      el("code", {}, model.fingerprint.slice(0, 12)),
      button("Clear…", () => clear(model, name), {
        "aria-label": `Clear ${name}…`,
        disabled: !model.samples,
      }),
    ];
  });
  return rows.length
    ? table("Models", ["Model", "Answers now", "Samples", "Fingerprint", ""], rows, [2])
    : el("p", { class: "quiet" }, "None was met yet.");
}

async function clear(model, name) {
  const what = `Clear ${name}: ${counted(model.samples, "sample")}?`;
  if ((await confirmed(what, "Clear")) === null) return;
  try {
    const done = await ask(`clear${query({ model: model.key })}`, undefined, "POST");
    const entries = counted(done.cleared_keys, "entry", "entries");
    tell(`Cleared: ${counted(done.cleared_responses, "sample")} in ${entries}.`);
  } catch (error) {
    tell(error.message, "bad");
  }
  await show();
}

function choice(name, draw) {
  const id = `range-${name.replace(" ", "-")}`;
  const box = el("input", {
    type: "radio",
    name: "range",
    id,
    checked: name === range,
    onchange: () => {
      range = name;
      draw();
    },
  });
  return [box, el("label", { for: id }, name === "10 minutes" ? name : `1 ${name}`)];
}

async function overview(rest, params, signal) {
  let [present, { flights }, info] = await Promise.all([
    past(signal),
    ask("flights", signal),
    ask("info", signal),
  ]);
  const place = (name, kind = "div") => el(kind, { class: name });
  const places = {
    tiles: place("tiles", "dl"),
    charts: place("charts"),
    numbers: place("numbers"),
    flights: place("flights"),
    models: place("models"),
    reasons: place("reasons"),
  };
  const draw = () => {
    const made = bars([...points, present], RANGES[range], present.time);
    places.tiles.replaceChildren(...tiles(present));
    places.charts.replaceChildren(...charts(made));
    update(places.numbers, numbers(made));
    update(places.flights, flying(flights));
  };
  const drawInfo = () => {
    update(places.models, models(info));
    update(places.reasons, ...reasons(info));
  };
  draw();
  drawInfo();
  keep(2, signal, async () => {
    [present, { flights }] = await Promise.all([past(signal), ask("flights", signal)]);
    draw();
  });
  keep(10, signal, async () => {
    info = await ask("info", signal);
    drawInfo();
  });
  const choices = Object.keys(RANGES).flatMap((name) => choice(name, draw));
  const legend = el("legend", { class: "unseen" }, "How far back");
  return {
    title: "Overview",
    content: [
      places.tiles,
      el(
        "div",
        { class: "row" },
        el("h2", {}, "Over time"),
        el("fieldset", { class: "choices" }, legend, choices),
      ),
      places.charts,
      el("details", {}, el("summary", {}, "The same in numbers"), places.numbers),
      el("h2", {}, "In flight"),
      places.flights,
      el("h2", {}, "Models"),
      places.models,
      places.reasons,
    ],
  };
}

// Shows what is new where it was, but leaves alone what somebody is about to use.
function update(place, ...content) {
  const { activeElement: focused } = document,
    selection = getSelection();
  const old = place.firstElementChild,
    isFocused = old !== null && old === focused;
  if (place.contains(focused) && !isFocused) return;
  if (!selection.isCollapsed && place.contains(selection.anchorNode)) return;
  const at = [old?.scrollLeft ?? 0, old?.scrollTop ?? 0];
  place.replaceChildren(...content);
  if (isFocused) place.firstElementChild?.focus({ preventScroll: true });
  place.firstElementChild?.scrollTo(...at);
}
