// Shows the view that the address names: #/, #/entries?..., #/entry/KEY, #/runs.

const VIEWS = { "": overview, entries, entry, runs };
let leaving = new AbortController(),
  shownName = null,
  isLink = false;
const scrolled = new Map(); // how far, by address

function address() {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/");
  return {
    name,
    rest: rest.join("/"),
    params: Object.fromEntries(new URLSearchParams(search)),
  };
}

function tokenForm(message) {
  const box = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  return el(
    "form",
    {
      class: "token",
      onsubmit: (event) => {
        event.preventDefault();
        sessionStorage.setItem(TOKEN, box.value.trim());
        show();
      },
    },
    el("p", {}, message),
    field("Admin token", "token", box),
    el("p", { class: "quiet" }, "It is kept for this tab, until it is closed."),
    el("p", {}, el("button", { type: "submit" }, "Enter")),
  );
}

async function found({ name, rest, params }, signal) {
  try {
    const view = Object.hasOwn(VIEWS, name) ? VIEWS[name] : null;
    return view
      ? await view(rest, params, signal)
      : { title: "Not found", content: [el("p", {}, "There is no such view.")] };
  } catch (error) {
    if (error instanceof Refused) {
      const isWrong = sessionStorage.getItem(TOKEN) !== null;
      sessionStorage.removeItem(TOKEN);
      return {
        title: "Admin token",
        content: [
          tokenForm(
            isWrong
              ? "That is not the admin token."
              : "This proxy was started with an admin token.",
          ),
        ],
      };
    }
    return {
      title: "This cannot be shown",
      content: [el("p", { role: "alert" }, seen(error.message)), button("Try again", show)],
    };
  }
}

// Shows what the address names; what was there stays until it is known.
async function show() {
  leaving.abort();
  const { signal } = (leaving = new AbortController());
  const asked = address(),
    hash = location.hash,
    isNew = isLink;
  isLink = false;
  const main = document.getElementById("main");
  main.setAttribute("aria-busy", "true");
  const view = await found(asked, signal);
  if (signal.aborted) return;
  const focused = main.contains(document.activeElement) ? document.activeElement.id : "";
  main.replaceChildren(
    el("h1", { tabindex: -1 }, view.title),
    ...view.content.filter((part) => part),
  );
  main.removeAttribute("aria-busy");
  document.title = `${view.title} · sglang-cached`;
  document.getElementById("forget").hidden = sessionStorage.getItem(TOKEN) === null;
  mark(asked.name);
  const again = focused && document.getElementById(focused);
  if (again) again.focus();
  else if (shownName !== null && shownName !== asked.name)
    main.firstChild.focus({ preventScroll: true });
  if (document.getElementById("token")) document.getElementById("token").focus();
  scrollTo(0, isNew ? 0 : (scrolled.get(hash) ?? 0));
  shownName = asked.name;
  greet();
}

function mark(name) {
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href").slice(2);
    if (own === name || (own === "entries" && name === "entry"))
      link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// Says in the head which upstream is behind, and whether it answers.
async function greet() {
  const place = document.getElementById("upstream");
  try {
    const { upstream } = await ask("../health");
    place.className = upstream.state;
    place.textContent = upstream.url
      ? `${seen(upstream.url)} ${upstream.state === "unknown" ? "" : `is ${upstream.state}`}`
      : "";
  } catch {
    place.className = "down";
    place.textContent = "The proxy does not answer";
  }
}

history.scrollRestoration = "manual";
addEventListener(
  "scroll",
  () => {
    if (!document.getElementById("main").hasAttribute("aria-busy"))
      scrolled.set(location.hash, scrollY);
  },
  { passive: true },
);
addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  isLink = link.hash !== location.hash;
  tell("");
});
addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.getElementById("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  show();
});
setInterval(() => {
  if (!document.hidden) greet();
}, 10_000);
show();
