// What the pages do besides being read: they refresh themselves, ask before what cannot be undone, and listen
// to the keyboard. All of them work without this.
"use strict";

const rows = () => [...document.querySelectorAll("[data-row]")];
const typing = (element) => element && element.matches("input:not([type=checkbox]), select, textarea");

// Refresh: the parts marked data-live are fetched anew, unless somebody is at work in them.
const busy = () => {
  const focus = document.activeElement;
  return document.hidden
    || document.querySelector("dialog[open], [data-live] input:checked, [data-live] details[open]")
    || (focus && focus.closest("[data-live]") && !focus.matches("a"))
    || !getSelection().isCollapsed;
};

const refresh = async () => {
  if (busy()) return;
  let answer;
  try {
    answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "follow" });
  } catch {
    return; // The server is away for a moment.
  }
  if (new URL(answer.url).pathname === "/login") return location.reload();
  if (!answer.ok || busy()) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const at = rows().indexOf(document.querySelector("[data-row].here"));
  const focus = document.activeElement?.closest("[data-live] a")?.getAttribute("href");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other) part.replaceWith(document.adoptNode(other));
  }
  if (focus) [...document.querySelectorAll("[data-live] a")].find((a) => a.getAttribute("href") === focus)?.focus();
  if (at >= 0) rows()[at]?.classList.add("here");
};

const every = Number(document.body.dataset.refresh);
if (every > 0) setInterval(refresh, every * 1000);

// A link that brings the token along, behind the #, which is never sent: to log in with one click.
const token = document.getElementById("token");
if (token && location.hash.length > 1) {
  token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  token.form.requestSubmit();
}

// Ask before what cannot be undone.
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-ask]");
  if (button && !confirm(button.dataset.ask)) event.preventDefault();
});

// All rows of the page at once.
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  for (const box of document.querySelectorAll("input[name=id]")) box.checked = event.target.checked;
});

// The keyboard.
const move = (by) => {
  const all = rows();
  if (!all.length) return;
  const here = all.findIndex((row) => row.classList.contains("here"));
  const next = all[Math.min(all.length - 1, Math.max(0, here < 0 ? 0 : here + by))];
  all.forEach((row) => row.classList.toggle("here", row === next));
  next.scrollIntoView({ block: "nearest" });
};

const current = () => document.querySelector("[data-row].here");
const help = document.getElementById("help");
let after = ""; // The key before, while it waits for another.
let timer;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && typing(event.target)) return event.target.blur();
  if (typing(event.target) || help?.open) return;
  const before = after;
  after = "";
  clearTimeout(timer);
  if (before === "g") {
    const link = document.querySelector(`header [data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      location.assign(link.href);
    }
    return;
  }
  const does = {
    "/": () => document.getElementById("search")?.focus(),
    "?": () => help?.showModal(),
    g: () => {
      after = "g";
      timer = setTimeout(() => (after = ""), 1500);
    },
    j: () => move(1),
    k: () => move(-1),
    x: () => current()?.querySelector("input[type=checkbox]")?.click(),
    n: () => document.querySelector("a[data-next]")?.click(),
    Enter: () => {
      if (!event.target.closest("a, button, summary, input")) current()?.querySelector("a")?.click();
    },
  }[event.key];
  if (!does) return;
  if (event.key !== "Enter") event.preventDefault();
  does();
});
