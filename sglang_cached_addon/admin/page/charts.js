// Counters over time, as small charts that are also texts.

const RANGES = { "10 minutes": 10, hour: 60, day: 1440 }; // how many seconds a bar stands for
let range = "hour";
const BARS = 60;

const OUTCOMES = {
  // the members of /cache/stats, as people call them
  hits: "Hit",
  partial_hits: "Partial",
  collapsed: "Collapsed",
  misses: "Miss",
  bypasses: "Bypass",
  denied: "Denied",
};
const LOOKED_UP = ["hits", "partial_hits", "collapsed", "misses", "denied"];

// What was counted between the points, in bars of so many seconds, the last one of which `now` is
// in. A counter that has fallen has begun anew.
function bars(points, seconds, now) {
  const start = (Math.floor(now / seconds) + 1 - BARS) * seconds;
  const made = Array.from({ length: BARS }, (_, at) => ({ time: start + at * seconds }));
  for (let i = 1; i < points.length; i += 1) {
    const before = points[i - 1],
      point = points[i];
    const at = Math.floor((point.time - start) / seconds);
    if (at < 0 || at >= BARS) continue;
    for (const [name, value] of Object.entries(point)) {
      if (name === "time") continue;
      const more = value < before[name] ? value : value - before[name];
      made[at][name] = (made[at][name] ?? 0) + more;
    }
  }
  for (const bar of made) {
    bar.requests = sum(bar, Object.keys(OUTCOMES));
    const all = sum(bar, LOOKED_UP);
    bar.hit_rate = share(bar.hits ?? 0, all);
  }
  return made;
}

function sum(bar, names) {
  return names.reduce((total, name) => total + (bar[name] ?? 0), 0);
}

function share(part, all) {
  return all ? part / all : null;
}

// A round number that is not below the value.
function ceiling(value) {
  const power = value > 10 ? 10 ** Math.floor(Math.log10(value)) : 1;
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10]
    .map((factor) => Math.ceil(factor * power))
    .find((round) => round >= value);
}

// The same for seconds, which people count otherwise.
function ceilingOfSeconds(value) {
  const round = [
    1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200,
  ];
  return round.find((seconds) => seconds >= value) ?? 86_400 * ceiling(value / 86_400);
}

function clock(time) {
  return new Date(time * 1000).toLocaleTimeString("en", {
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
  });
}

function spanned() {
  return range === "10 minutes" ? range : `1 ${range}`;
}

const WIDTH = 600,
  HEIGHT = 100;

// Bars of some members on top of each other.
function stacks(made, names, top) {
  const width = WIDTH / BARS;
  return made.flatMap((bar, at) => {
    let y = HEIGHT;
    return names
      .filter((name) => bar[name])
      .map((name) => {
        const height = (HEIGHT * bar[name]) / top;
        y -= height;
        return svg("rect", { class: `is-${name}`, x: at * width + 1, y, width: width - 2, height });
      });
  });
}

// A line through what is known, and a dot where it is known of one bar alone.
function line(made, name, top) {
  const at = (i) => [((i + 0.5) * WIDTH) / BARS, HEIGHT - (HEIGHT * made[i][name]) / top];
  const known = [...made.keys()].filter((i) => made[i][name] !== null);
  const path = known.map((i) => at(i).join(" ")).join(" L ");
  return known.length
    ? [svg("path", { class: `is-${name}`, d: `M ${path} ${known.length > 1 ? "" : "h 0.01"}` })]
    : [];
}

function plot(label, drawn) {
  const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
  const lines = [0, HEIGHT / 2, HEIGHT].map((y) => `M 0 ${y} H ${WIDTH}`).join(" ");
  const grid = svg("path", { class: "grid", d: lines });
  return svg("svg", { ...box, role: "img", "aria-label": label }, grid, drawn);
}

function legend(names) {
  const colour = (name) => svg("rect", { class: `is-${name}`, width: 10, height: 10, rx: 2 });
  const item = (name) =>
    el("li", {}, svg("svg", { viewBox: "0 0 10 10" }, colour(name)), OUTCOMES[name]);
  return el("ul", { class: "legend", "aria-hidden": "true" }, names.map(item));
}

// A chart: its title, what it came to in all, what the upmost line stands for, what is drawn, and
// what that says in words.
function chart(title, total, top, drawn, said, names = []) {
  const label = `${title} over ${spanned()}: ${said}`;
  const hidden = { "aria-hidden": "true" };
  return el(
    "figure",
    {},
    el("figcaption", {}, el("span", {}, title), el("strong", {}, total)),
    el("div", { class: "plot" }, el("span", { class: "top", ...hidden }, top), plot(label, drawn)),
    el(
      "div",
      { class: "times", ...hidden },
      el("span", {}, `${spanned()} ago`),
      el("span", {}, "now"),
    ),
    names.length ? legend(names) : null,
  );
}

function ofRate(made) {
  const rates = made.map((bar) => bar.hit_rate).filter((rate) => rate !== null);
  const [low, high] = [Math.min(...rates), Math.max(...rates)].map(percent);
  const said = `between ${low} and ${high}, lately ${percent(rates.at(-1))}`;
  const total = percent(share(totalOf(made, ["hits"]), totalOf(made, LOOKED_UP)));
  return chart(
    "Hit rate",
    total,
    "100 %",
    line(made, "hit_rate", 1),
    rates.length ? said : "no requests",
  );
}

function ofRequests(made) {
  const names = Object.keys(OUTCOMES).filter((name) => totalOf(made, [name]));
  const top = ceiling(highest(made, "requests"));
  const said = names.map(
    (name) => `${number(totalOf(made, [name]))} ${OUTCOMES[name].toLowerCase()}`,
  );
  const drawn = stacks(made, names, top);
  return chart(
    "Requests",
    short(totalOf(made, names)),
    short(top),
    drawn,
    said.join(", ") || "none",
    names,
  );
}

function ofAmount(made, title, name, shown, round) {
  const top = round(highest(made, name)),
    total = shown(totalOf(made, [name]));
  const said = `${total}, at most ${shown(highest(made, name))} in ${duration(RANGES[range])}`;
  return chart(title, total, shown(top), stacks(made, [name], top), said);
}

function totalOf(made, names) {
  return made.reduce((total, bar) => total + sum(bar, names), 0);
}

function highest(made, name) {
  return Math.max(...made.map((bar) => bar[name] ?? 0));
}

function charts(made) {
  return [
    ofRate(made),
    ofRequests(made),
    ofAmount(made, "Tokens saved", "tokens_saved", short, ceiling),
    ofAmount(made, "Upstream time saved", "upstream_seconds_saved", duration, ceilingOfSeconds),
  ];
}

// The same in numbers.
function numbers(made) {
  const outcomes = (bar) => Object.keys(OUTCOMES).map((name) => number(bar[name] ?? 0));
  const saved = (bar) => [number(bar.tokens_saved ?? 0), duration(bar.upstream_seconds_saved ?? 0)];
  const rows = made
    .filter((bar) => bar.requests)
    .reverse()
    .map((bar) => [clock(bar.time), ...outcomes(bar), percent(bar.hit_rate), ...saved(bar)]);
  const columns = [
    "From",
    ...Object.values(OUTCOMES),
    "Hit rate",
    "Tokens saved",
    "Upstream time saved",
  ];
  const figures = [...columns.keys()].slice(1);
  return rows.length
    ? table("Counts over time", columns, rows, figures, "wide")
    : el("p", { class: "quiet" }, "No requests.");
}
