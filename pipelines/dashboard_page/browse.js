// Browse: filters, and a virtual grid in which any place of a list of any length is drawn at once

import { get } from "./api.js";
import { choice, count, h, show, words } from "./dom.js";
import { tileOf } from "./tiles.js";

const PAGE = 60;
const PAGES_KEPT = 40;
const TILE_PX = 172;
const MOST_HEIGHT_PX = 8_000_000;

export async function browsePage(place, { asked, overview }) {
  const grid = virtualGrid(asked);
  show(place, filters(asked, overview), grid.element);
  await grid.start();
  return grid.stop;
}

function filters(asked, overview) {
  const set = (name) => (value) => go({ ...asked, [name]: value });
  const values = (name) => [["", "any"], ...withChosen(overview.values[name] ?? [], asked[name]).map((value) => [value, words(value)])];
  const numbers = [["", "none"], ...overview.numbers.map((one) => [one.name, words(one.name)])];
  const typed = (name, label, kind) => h("label", { class: "choice" }, label, h("input", { type: kind, step: "any", value: asked[name] ?? "", name, onchange: (event) => go({ ...asked, [name]: event.target.value }) }));
  const rest = ["host", "license", "format", "bucket", "cluster_id", "below"].filter((name) => asked[name]);
  return h(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    h("label", { class: "choice grow" }, "search in captions", h("input", { type: "search", value: asked.text ?? "", name: "text", onchange: (event) => go({ ...asked, text: event.target.value }) })),
    choice("outcome", [["", "any"], ["yes", "kept"], ["no", "dropped"], ["undecided", "not decided yet"]], asked.kept ?? "", set("kept")),
    choice("stage", values("stage"), asked.stage ?? "", set("stage")),
    choice("reason", values("reason"), asked.reason ?? "", set("reason")),
    choice("source", values("source"), asked.source ?? "", set("source")),
    choice("language", values("language"), asked.language ?? "", set("language")),
    choice("score", numbers, asked.score ?? "", set("score")),
    asked.score ? [typed("low", "from", "number"), typed("high", "to", "number")] : null,
    choice("sorted by", [["", "place"], ...numbers.slice(1)], asked.sort ?? "", set("sort")),
    asked.sort ? choice("order", [["", "rising"], ["yes", "falling"]], asked.descending ?? "", set("descending")) : null,
    rest.map((name) => h("button", { class: "chip", title: "remove this filter", onclick: () => go({ ...asked, [name]: "" }) }, `${words(name)}: ${asked[name]} ×`)),
    Object.keys(asked).length ? h("button", { class: "quiet", onclick: () => go({}) }, "clear") : null,
  );
}

function withChosen(values, chosen) {
  return !chosen || values.includes(chosen) ? values : [chosen, ...values];
}

function go(asked) {
  const set = Object.entries(asked).filter(([, value]) => value !== "" && value !== undefined);
  location.hash = `#/browse?${new URLSearchParams(set)}`;
}

function virtualGrid(asked) {
  const pages = new Map();
  const inner = h("div", { class: "grid-rows" });
  const spacer = h("div", { class: "spacer" }, inner);
  const scroller = h("div", { class: "scroller", tabindex: 0 }, spacer);
  const total = h("span", { class: "total" });
  const jump = h("input", { type: "number", min: 1, name: "jump", placeholder: "place", onchange: (event) => moveTo(Number(event.target.value) - 1) });
  const element = h("div", {}, h("div", { class: "grid-head" }, total, h("label", { class: "choice inline" }, "jump to", jump)), scroller);
  const view = { rows: 0, columns: 1, top: 0, turn: 0, scaled: false };

  const perScreen = () => Math.ceil(scroller.clientHeight / TILE_PX) + 1;
  const lines = () => Math.ceil(view.rows / view.columns);
  const lastTop = () => Math.max(0, lines() - scroller.clientHeight / TILE_PX);
  const room = () => Math.max(1, spacer.clientHeight - scroller.clientHeight);

  function measure() {
    view.columns = Math.max(1, Math.floor(scroller.clientWidth / TILE_PX));
    const height = lines() * TILE_PX;
    view.scaled = height > MOST_HEIGHT_PX;
    spacer.style.height = `${Math.min(height, MOST_HEIGHT_PX)}px`;
    inner.style.gridTemplateColumns = `repeat(${view.columns}, 1fr)`;
    jump.max = view.rows;
  }

  function moveTo(number) {
    view.top = Math.min(lastTop(), Math.max(0, Math.floor(number / view.columns)));
    follow();
    draw();
  }

  function follow() {
    scroller.scrollTop = view.scaled ? (view.top / Math.max(1, lastTop())) * room() : view.top * TILE_PX;
    view.followed = scroller.scrollTop;
  }

  function scrolled() {
    if (Math.abs(scroller.scrollTop - view.followed) < 1) return draw();
    view.followed = -10;
    view.top = view.scaled ? (scroller.scrollTop / room()) * lastTop() : scroller.scrollTop / TILE_PX;
    draw();
  }

  function wheeled(event) {
    if (!view.scaled) return;
    event.preventDefault();
    view.top = Math.min(lastTop(), Math.max(0, view.top + event.deltaY / TILE_PX));
    follow();
    draw();
  }

  async function draw() {
    const own = ++view.turn;
    const firstLine = Math.floor(view.top);
    const first = firstLine * view.columns;
    const last = Math.min(view.rows, first + perScreen() * view.columns);
    const numbers = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) numbers.push(page);
    const found = await Promise.all(numbers.map(load));
    if (own !== view.turn) return;
    const tiles = found.flat().slice(first - numbers[0] * PAGE, last - numbers[0] * PAGE);
    inner.style.transform = `translateY(${view.scaled ? scroller.scrollTop - (view.top - firstLine) * TILE_PX : firstLine * TILE_PX}px)`;
    inner.dataset.first = first;
    const shown = view.rows ? `${count(first + 1)} – ${count(last)} of ${count(view.rows)}` : "no samples fit";
    total.textContent = shown;
    show(inner, tiles.map((tile) => tileOf(tile)));
  }

  async function load(page) {
    if (!pages.has(page)) {
      pages.set(page, get("samples", { ...asked, first: page * PAGE, count: PAGE }).then((said) => said.tiles));
      if (pages.size > PAGES_KEPT) pages.delete(pages.keys().next().value);
    }
    return pages.get(page);
  }

  async function start() {
    const said = await get("samples", { ...asked, first: 0, count: PAGE });
    pages.set(0, Promise.resolve(said.tiles));
    view.rows = said.rows;
    measure();
    await draw();
    scroller.addEventListener("scroll", scrolled);
    scroller.addEventListener("wheel", wheeled, { passive: false });
    addEventListener("resize", resized);
  }

  function resized() {
    measure();
    moveTo(Math.floor(view.top) * view.columns);
  }

  return { element, start, stop: () => removeEventListener("resize", resized) };
}
