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

async function runs(rest, params, signal) {
  const draw = (found) =>
    found.runs.length
      ? table(
          "Runs",
          ["Run", "Calls", "Places taken", "Reused", "Generated", "Last used", "Fresh since", ""],
          rows(found.runs.sort((a, b) => b.last - a.last)),
          [1, 2, 3, 4],
        )
      : el("p", { class: "quiet" }, "No run is known.");
  const place = el("div", {}, draw(await ask("runs", signal)));
  keep(5, signal, async () => update(place, draw(await ask("runs", signal))));
  return {
    title: "Runs",
    content: [
      el(
        "p",
        { class: "quiet" },
        "A run is a named pass over what is stored: its k-th equal call gets the k-th sample.",
      ),
      place,
    ],
  };
}
