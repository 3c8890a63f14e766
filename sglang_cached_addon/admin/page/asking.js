// Asks the proxy. The admin token, where one is wanted, is kept for this tab alone.

const TOKEN = "sglang-cached admin token";

class Refused extends Error {} // without the right token

// Header fields are sent as Latin-1: these are the bytes of UTF-8.
function bearer(token) {
  return `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}`;
}

// Whole numbers beyond 2^53 stay as they were written, where the browser can do that.
function exact(name, value, context) {
  const isRounded =
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return isRounded && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

// The JSON that a route answers; `path` is relative to that of the page.
async function ask(path, signal, method = "GET", body = undefined) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: bearer(token) } : {};
  const answer = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  const text = await answer.text();
  let found = null;
  try {
    found = JSON.parse(text, exact);
  } catch {
    throw new Error(`The proxy answered ${path} with ${answer.status}, and no JSON.`);
  }
  if (answer.ok) return found;
  const message =
    found?.error?.message ?? found?.message ?? `The proxy answered with ${answer.status}.`;
  throw new (answer.status === 401 ? Refused : Error)(message);
}

function query(members) {
  const given = Object.entries(members).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

// Calls it again and again until the signal says that nobody looks any more; not while the tab is
// hidden. What fails is told of, and tried again.
async function keep(seconds, signal, act) {
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    if (signal.aborted || document.hidden) continue;
    try {
      await act();
      lost(null, signal);
    } catch (error) {
      lost(error, signal);
    }
  }
}

let isLost = false;

function lost(error, signal) {
  if (signal.aborted) return;
  if (error instanceof Refused) return void show();
  if (error) tell(`The proxy does not answer; this is what it said last. ${error.message}`, "bad");
  else if (isLost) tell("");
  isLost = error !== null;
}

// Says something in the line above the view.
function tell(message, kind = "") {
  const notice = document.getElementById("notice");
  notice.textContent = message;
  notice.className = kind;
}

// Has somebody confirm what cannot be undone: null for who does not, else whether the `choice` was
// taken, where there is one.
function confirmed(what, label, choice = "") {
  const dialog = document.getElementById("confirm");
  const box = el("input", { type: "checkbox", id: "choice" });
  let answer = null;
  const agree = () => {
    answer = box.checked;
    dialog.close();
  };
  const cancel = button("Cancel", () => dialog.close(), { autofocus: true });
  dialog.replaceChildren(
    el("p", { id: "confirm-what" }, what),
    choice ? el("p", { class: "choice" }, box, el("label", { for: "choice" }, choice)) : "",
    el("p", { class: "actions" }, cancel, button(label, agree, { class: "danger" })),
  );
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(answer), { once: true });
  });
}
