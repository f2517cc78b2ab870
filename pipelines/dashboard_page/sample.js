// One sample: the picture, what became of it and why, its captions, scores, duplicates, history, and what looks like it

import { get } from "./api.js";
import { count, h, link, section, short, show, words } from "./dom.js";
import { outcome, picture, strip } from "./tiles.js";

const STEPS = { samples: "came in", captions: "caption", features: "measured", duplicates: "duplicates", scores: "scored", selection: "selected" };

export async function samplePage(place, { rest, isShown }) {
  const said = await get("sample", { uid: rest });
  const told = Object.fromEntries(said.history.map((table) => [table.table, Object.fromEntries(table.columns.map((column) => [column.name, column.value]))]));
  const like = h("div", {}, h("p", { class: "said" }, "looking …"));
  show(
    place,
    h("div", { class: "sample-top" }, h("div", { class: "large" }, picture(said.tile, 1024)), h("div", {}, verdict(said.tile), captions(told), origin(told), scores(said.history))),
    said.duplicates.length ? section("Duplicates", "The cluster, the survivor first.", duplicates(said.duplicates)) : null,
    section("More like this", "By cosine of the image embeddings.", like),
    section("History", "Everything that the tables say of this sample, in the order in which it was found out.", said.history.map(tableOf)),
  );
  const found = await get("like", { uid: rest });
  if (!isShown()) return;
  const badge = found.compared < found.of ? h("p", {}, h("span", { class: "badge" }, `sampled: compared with ${count(found.compared)} of ${count(found.of)}`)) : null;
  show(like, badge, found.tiles.length ? strip(found.tiles, (tile) => `cosine ${short(tile.value)}`) : h("p", { class: "said" }, "it has no embedding"));
}

function verdict(tile) {
  const said = tile.keep ? "kept" : tile.reason ? `dropped: ${words(tile.reason)}` : "not decided yet";
  return h("div", { class: "verdict" }, h("i", { class: `dot ${outcome(tile)}` }), h("b", {}, said), tile.stage ? h("span", { class: "quiet" }, `by ${tile.stage}`) : null, h("code", {}, tile.uid));
}

function captions(told) {
  const before = told.samples?.caption;
  const after = told.captions?.caption_clean;
  const same = before === after;
  return h("dl", { class: "captions" }, h("dt", {}, same ? "caption, unchanged" : "caption as it came"), h("dd", { class: "caption" }, before ?? h("i", {}, "none")), same ? null : [h("dt", {}, "caption after repair"), h("dd", { class: "caption" }, after ?? h("i", {}, "none"))]);
}

function origin(told) {
  const samples = told.samples ?? {};
  const size = told.features?.width_px ? `${told.features.width_px} x ${told.features.height_px} px` : null;
  const listed = [["source", samples.source], ["URL", samples.url], ["licence", samples.license], ["size", size], ["language", told.captions?.language]];
  return h("dl", { class: "facts" }, listed.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function scores(history) {
  const columns = history.find((table) => table.table === "scores")?.columns.filter((column) => typeof column.value === "number") ?? [];
  if (!columns.length) return null;
  return h("table", { class: "scores" }, h("tbody", {}, columns.map((column) => h("tr", { title: column.model ? `by ${column.model} ${column.revision ?? ""}` : "" }, h("th", {}, words(column.name)), h("td", { class: "number" }, short(column.value)), h("td", { class: "quiet" }, [column.range, column.direction].filter(Boolean).join(", "))))));
}

export function duplicates(members) {
  return h("div", { class: "strip" }, members.map((member) => {
    const said = member.is_survivor ? "survivor" : [words(member.kind ?? ""), distance(member), member.won_by ? `lost by ${words(member.won_by)}` : ""].filter(Boolean).join(", ");
    const made = link(`sample/${member.uid}`, {}, picture(member, 192), h("div", { class: "told" }, said));
    made.className = member.is_survivor ? "tile survivor" : "tile";
    made.title = member.caption ?? "without caption";
    return made;
  }));
}

function distance(member) {
  if (member.distance === null) return "";
  return member.kind === "perceptual" ? `${short(member.distance)} bits` : `distance ${short(member.distance)}`;
}

function tableOf(table) {
  if (table.note) return h("p", { class: "said" }, table.note);
  const rows = table.columns.map((column) => h("tr", {}, h("th", { title: column.meaning ?? "" }, words(column.name)), h("td", {}, typeof column.value === "number" ? short(column.value) : String(column.value)), h("td", { class: "quiet" }, [column.unit, column.range, column.direction, column.model, column.revision].filter(Boolean).join("; "))));
  return h("details", { class: "history" }, h("summary", {}, h("b", {}, STEPS[table.table] ?? table.table), h("span", { class: "quiet" }, ` table ${table.table}, ${table.columns.length} entries`)), h("table", {}, h("tbody", {}, rows)));
}
