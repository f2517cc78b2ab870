// The frame of the page: tabs, the state of the tables, and which page is shown

import { exported, get, post } from "./api.js";
import { browsePage } from "./browse.js";
import { distributionsPage } from "./distributions.js";
import { count, h, show } from "./dom.js";
import { duplicatesPage } from "./duplicates.js";
import { funnelPage } from "./funnel.js";
import { labellingPage } from "./labelling.js";
import { samplePage } from "./sample.js";
import { trainingPage } from "./training.js";
import { whatIfPage } from "./what_if.js";

const PAGES = {
  funnel: ["Funnel", funnelPage],
  distributions: ["Distributions", distributionsPage],
  "what-if": ["What if", whatIfPage],
  browse: ["Browse", browsePage],
  duplicates: ["Duplicates", duplicatesPage],
  labelling: ["Labelling", labellingPage],
  training: ["Training", trainingPage],
};
const IN_EXPORT = ["funnel", "distributions", "what-if"];

let leave = () => {};
let turn = 0;

async function open() {
  const own = ++turn;
  leave();
  leave = () => {};
  const [path, query] = location.hash.replace(/^#\//, "").split("?");
  const [name, rest] = path ? path.split("/") : ["funnel"];
  const asked = Object.fromEntries(new URLSearchParams(query ?? ""));
  const main = document.getElementById("main");
  const place = h("div", { class: `page ${name}` });
  try {
    const overview = await get("overview");
    if (own !== turn) return;
    head(overview, name);
    show(main, notes(overview), place);
    const page = name === "sample" ? samplePage : PAGES[name]?.[1];
    if (!page) throw new Error(`there is no page ${name}`);
    const left = await page(place, { asked, rest, overview, isShown: () => own === turn });
    if (overview.fragments_read < overview.fragments && !overview.error) watch(own);
    if (own === turn) leave = left ?? (() => {});
    else if (left) left();
  } catch (error) {
    if (own === turn) show(main, h("p", { class: "error", role: "alert" }, error.message));
  }
  if (own === turn) document.body.dataset.ready = location.hash || "#/funnel";
}

function head(overview, current) {
  const pages = Object.entries(PAGES).filter(([name]) => !exported || IN_EXPORT.includes(name));
  const tabs = pages.map(([name, [title]]) => h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, title));
  const reading = overview.fragments_read < overview.fragments;
  const state = reading ? reads(overview) : `${count(overview.rows)} samples`;
  const again = h("button", { class: "quiet", title: "read what is new in the tables", onclick: (event) => refresh(event.target) }, "Refresh");
  show(
    document.getElementById("head"),
    h("div", { class: "brand" }, h("b", {}, "Darkroom"), h("span", {}, overview.name)),
    h("nav", {}, tabs),
    h("div", { class: "state" }, h("span", { class: reading ? "badge" : "" }, state), exported ? null : again),
  );
  document.title = `${overview.name} – Darkroom`;
}

function watch(own) {
  setTimeout(async () => {
    if (exported || own !== turn) return;
    const said = await get("progress");
    if (own !== turn) return;
    if (said.error || said.fragments_read === said.fragments) return open();
    document.querySelector(".state span").textContent = reads(said);
    return watch(own);
  }, 1000);
}

const reads = (overview) => `reading tables: ${count(overview.fragments_read)} of ${count(overview.fragments)} parts`;

async function refresh(button) {
  button.disabled = true;
  button.textContent = "Reading …";
  try {
    await post("refresh", {});
  } catch (error) {
    button.disabled = false;
    button.textContent = "Refresh";
    show(document.getElementById("main"), h("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  open();
}

function notes(overview) {
  if (overview.error) return h("p", { class: "error", role: "alert" }, overview.error);
  if (!overview.notes.length) return null;
  const missing = overview.tables.some((table) => table.state !== "complete");
  const listed = h("ul", {}, overview.notes.map((note) => h("li", {}, note)));
  return h("details", { class: "notes", open: missing }, h("summary", {}, `${overview.notes.length} notes on this run`), listed);
}

addEventListener("hashchange", () => {
  delete document.body.dataset.ready;
  open();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", open);
open();
