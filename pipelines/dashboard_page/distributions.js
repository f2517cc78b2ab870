// Distributions: every number as kept against dropped with its cut-off, and what occurs most

import { exported, get } from "./api.js";
import { chart, histogramSpec } from "./charts.js";
import { count, h, link, section, share, short, show, words } from "./dom.js";

export async function distributionsPage(place, { isShown }) {
  const said = await get("distributions");
  const cards = said.numbers.map((number) => [number, h("div", { class: "plot" }), h("p", { class: "told" })]);
  const lists = said.words.map((word) => [word, h("div", {})]);
  const legend = h("p", { class: "legend" }, ["kept", "dropped", "undecided"].map((name) => h("span", {}, h("i", { class: `dot ${name}` }), name)), h("span", {}, h("i", { class: "dash" }), "cut-off"), h("span", { class: "quiet" }, "pale bars at the ends gather the outliers"));
  show(
    place,
    section("Scores and sizes", null, legend, h("div", { class: "cards" }, cards.map(([number, plot, told]) => h("article", { class: "card", "data-number": number.name }, h("h3", {}, words(number.name), number.unit ? h("small", {}, number.unit) : null), h("p", { class: "said", title: number.model ? `by ${number.model}` : "" }, describe(number)), plot, told)))),
    section("What occurs most", null, h("div", { class: "cards" }, lists.map(([word, list]) => h("article", { class: "card" }, h("h3", {}, word.meaning), list)))),
  );
  for (const [number, plot, told] of cards) {
    if (!isShown()) return;
    await drawNumber(number.name, plot, told);
  }
  for (const [word, list] of lists) {
    if (!isShown()) return;
    show(list, mostFrequent(await get("most-frequent", { name: word.name })));
  }
}

function describe(number) {
  const parts = [number.meaning, number.range ? `range ${number.range}` : "", number.direction, number.model ? `model ${number.model}${number.revision ? `, ${number.revision}` : ""}` : ""];
  return parts.filter(Boolean).join("; ");
}

async function drawNumber(name, plot, told) {
  const said = await get("histogram", { name });
  if (!said.rows) {
    show(plot, h("p", { class: "empty" }, "no values yet"));
    return;
  }
  const drawn = await chart(plot, histogramSpec(said));
  if (!exported) drawn.view.addEventListener("click", (event, item) => openBin(name, item));
  const cut = said.cut_offs.map(({ value, drops }) => `cut-off ${short(value)}, drops what is ${drops}`).join("; ") || "no cut-off set";
  told.textContent = `${count(said.rows)} values, ${short(said.lowest)} to ${short(said.highest)}; ${cut}`;
}

function openBin(name, item) {
  const datum = item?.datum;
  if (datum?.low === undefined) return;
  const kept = { kept: "yes", dropped: "no", undecided: "undecided" }[datum.outcome];
  const ends = [["low", datum.low], [datum.isLast ? "high" : "below", datum.high]].filter(([, value]) => value !== null);
  location.hash = `#/browse?${new URLSearchParams([["score", name], ...ends, ["kept", kept]])}`;
}

function mostFrequent(said) {
  if (!said.values.length) return h("p", { class: "empty" }, "no values yet");
  const most = said.values[0].rows;
  const lines = said.values.slice(0, 12).map((value) => {
    const bar = h("span", { class: "bar" }, h("i", { class: "kept", style: { width: `${(100 * value.kept) / most}%` } }), h("i", { class: "dropped", style: { width: `${(100 * (value.rows - value.kept)) / most}%` } }));
    const content = [h("span", { class: "name" }, value.value), bar, h("span", { class: "number" }, count(value.rows)), h("span", { class: "number quiet" }, share(value.kept, value.rows))];
    if (exported) return h("div", { class: "line" }, h("div", { class: "row" }, content));
    const made = link("browse", { [said.name]: value.key }, content);
    made.className = "row";
    return h("div", { class: "line" }, made);
  });
  const hidden = said.others + Math.max(0, said.values.length - 12);
  return [lines, hidden ? h("p", { class: "told" }, `and ${count(hidden)} others`) : null];
}
