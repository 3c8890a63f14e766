// Makes elements, and texts for people. What comes from a prompt or an answer is only ever text.

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function button(label, act, attributes = {}) {
  return el("button", { type: "button", onclick: act, ...attributes }, label);
}

// A table of texts and nodes; the columns of `numbers` are numbers. Where it is wider than the
// screen it can be scrolled on its own, or, if it is one of `cards`, each row becomes a card. The
// roles are said again for browsers that forget them where tables are shown as cards.
function table(caption, columns, rows, numbers = [], kind = "cards") {
  const cell = (name, attributes, at, child) =>
    el(name, { ...attributes, class: numbers.includes(at) ? "number" : null }, child);
  const heads = columns.map((name, at) =>
    cell(
      "th",
      { scope: "col", role: "columnheader" },
      at,
      name || el("span", { class: "unseen" }, "More"),
    ),
  );
  const cells = (row) =>
    row.map((child, at) =>
      cell("td", { role: "cell", "data-label": columns[at] || null }, at, child),
    );
  return el(
    "div",
    { class: `scroll ${kind}`, role: "region", "aria-label": caption, tabindex: 0 },
    el(
      "table",
      { role: "table" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
      el(
        "tbody",
        { role: "rowgroup" },
        rows.map((row) => el("tr", { role: "row" }, cells(row))),
      ),
    ),
  );
}

// Texts of others

// Characters that cannot be seen, or that change the order in which others are shown.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u206f\\ufeff]",
  "g",
);
const JOINER = "\u200d"; // parts of an emoji, or of a word, stand on either side

function seen(text) {
  return String(text)
    .replaceAll("\r\n", "\n")
    .replace(UNSEEN, (character) =>
      character === JOINER
        ? character
        : `\u27e8${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`,
    );
}

const MUCH = 20_000;

// A text of any length, at first only its beginning, in its own direction.
function passage(text, kind = "text") {
  const whole = seen(text);
  const shown = el("div", { class: kind, dir: "auto" }, whole.slice(0, MUCH));
  if (whole.length <= MUCH) return whole ? shown : el("div", { class: "quiet" }, "(empty)");
  const more = button(`Show all ${number(whole.length)} characters`, () => {
    shown.textContent = whole;
    shown.tabIndex = -1;
    shown.focus({ preventScroll: true });
    more.remove();
  });
  return el("div", {}, shown, more);
}

// A value as JSON, on one line if it is short.
function json(value) {
  const line = JSON.stringify(value);
  return passage(line.length < 80 ? line : JSON.stringify(value, null, 2), "text code");
}

// What is written out only when somebody opens it.
function folded(summary, content) {
  const made = el("details", {}, el("summary", {}, summary));
  made.addEventListener("toggle", () => made.append(content()), { once: true });
  return made;
}

// Numbers and times

function number(value) {
  return value.toLocaleString("en");
}

function short(value) {
  const million = { notation: "compact", maximumSignificantDigits: 3 };
  return value.toLocaleString("en", value < 1_000_000 ? { maximumFractionDigits: 0 } : million);
}

function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

function percent(share) {
  return share === null
    ? "–"
    : `${(100 * share).toLocaleString("en", { maximumFractionDigits: 1 })} %`;
}

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) {
    bytes /= 1000;
    at += 1;
  }
  return `${bytes.toLocaleString("en", { maximumSignificantDigits: at ? 3 : 21 })} ${units[at]}`;
}

function duration(seconds) {
  if (seconds < 1) return seconds <= 0 ? "0 s" : `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 60)
    return `${seconds.toLocaleString("en", { maximumFractionDigits: seconds < 10 ? 1 : 0 })} s`;
  const minutes = Math.floor(seconds / 60),
    hours = Math.floor(minutes / 60),
    days = Math.floor(hours / 24);
  if (hours < 1) return `${minutes} min`;
  if (days < 1) return `${hours} h ${minutes % 60} min`;
  return days < 10 ? `${days} d ${hours % 24} h` : `${number(days)} d`;
}

// How long ago a Unix time was.
function ago(time) {
  if (time === null || time === undefined) return "–";
  const seconds = Date.now() / 1000 - time,
    at = new Date(time * 1000);
  const said =
    seconds < 5
      ? "just now"
      : `${duration(Math.floor(seconds)).split(" ").slice(0, 2).join(" ")} ago`;
  return el("time", { datetime: at.toISOString(), title: at.toLocaleString("en") }, said);
}
