// Runs: how far each has come, and what can be done with it.

async function act(what, label, path, method, body, done) {
  if ((await confirmed(what, label)) === null) return;
  try {
    await ask(path, undefined, method, body && JSON.stringify(body));
    tell(done);
  } catch (error) {
    tell(error.message, "bad");
  }
  await show();
}

function actions(run) {
  const path = `runs/${encodeURIComponent(run.name)}`,
    { name } = run;
  return el(
    "div",
    { class: "actions" },
    button(
      "Rewind…",
      () =>
        act(
          `Rewind ${name}? Its next calls get the stored samples again, from the first one on.`,
          "Rewind",
          `${path}/rewind`,
          "POST",
          undefined,
          `Rewound ${name}.`,
        ),
      { "aria-label": `Rewind ${name}…` },
    ),
    button(
      "Fresh…",
      () =>
        act(
          `Begin ${name} anew behind what is stored now? Its next calls get new samples.`,
          "Begin",
          path,
          "POST",
          { fresh: true },
          `${name} begins behind what is stored now.`,
        ),
      { "aria-label": `Begin ${name} fresh…` },
    ),
    button(
      "Delete…",
      () =>
        act(
          `Forget ${name}? Its samples stay.`,
          "Delete",
          path,
          "DELETE",
          undefined,
          `Forgot ${name}.`,
        ),
      { class: "danger", "aria-label": `Delete ${name}…` },
    ),
  );
}

function rows(found) {
  return found.map((run) => [
    el("a", { href: `#/entries${query({ run: run.name })}` }, run.name),
    number(run.calls),
    number(run.places),
    number(run.reused),
    number(run.generated),
    ago(run.last),
    run.fresh_since === null ? "–" : ago(run.fresh_since),
    actions(run),
  ]);
}

const SHOWN_RUNS = 200;

// The runs that were used last.
function latest({ runs: found }) {
  if (!found.length) return [el("p", { class: "quiet" }, "No run is known.")];
  const columns = [
    "Run",
    "Calls",
    "Places taken",
    "Reused",
    "Generated",
    "Last used",
    "Fresh since",
  ];
  const shown = found.sort((a, b) => b.last - a.last).slice(0, SHOWN_RUNS);
  const rest = `These are the last ${SHOWN_RUNS} of ${number(found.length)} runs.`;
  return [
    table("Runs", [...columns, ""], rows(shown), [1, 2, 3, 4]),
    found.length > SHOWN_RUNS ? el("p", { class: "quiet" }, rest) : "",
  ];
}

async function runs(rest, params, signal) {
  const place = el("div", {}, ...latest(await ask("runs", signal)));
  keep(5, signal, async () => update(place, ...latest(await ask("runs", signal))));
  const what =
    "A run is a named pass over what is stored: its k-th equal call gets the k-th sample.";
  return { title: "Runs", content: [el("p", { class: "quiet" }, what), place] };
}
