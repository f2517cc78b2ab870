// What if: a slider and a typed value for each cut-off, exact counts down the funnel, pictures on both sides.
// Rules over the whole corpus take seconds to count: they follow once the cut-offs rest

import { exported, get, post } from "./api.js";
import { count, h, section, share, short, show, words } from "./dom.js";
import { strip, valued } from "./tiles.js";

export async function whatIfPage(place, { overview }) {
  const said = await get("sliders");
  const state = new Map(said.sliders.map((slider) => [slider.setting, slider.recorded]));
  const recorded = await get("counts");
  let recordedWhole = null;
  const parts = { total: h("div", { class: "answer" }), early: h("div", {}), buckets: h("div", {}), strips: h("div", {}), whole: h("p", { class: "said" }), saved: h("div", {}) };
  const rows = new Map(said.sliders.map((slider) => [slider.setting, sliderRow(slider, state, changed)]));
  const later = new Map(said.later.map((reason) => [reason, ruleRow(reason)]));
  let asking = false;
  let wanted = false;
  let looking = null;
  let resting = null;
  let counting = false;
  let wantedWhole = false;

  async function changed(slider, value) {
    state.set(slider.setting, value);
    rows.get(slider.setting).classList.toggle("changed", value !== slider.recorded);
    look(slider, value);
    wanted = true;
    clearTimeout(resting);
    if (said.later.length) resting = setTimeout(countWhole, 500);
    if (asking) return;
    asking = true;
    while (wanted) {
      wanted = false;
      await get("counts", asked(state, said.sliders)).then(tell, (error) => refuse(error));
    }
    asking = false;
  }

  function look(slider, value) {
    clearTimeout(looking);
    looking = setTimeout(() => sides(parts.strips, slider, value), 150);
  }

  function refuse(error) {
    show(parts.total, h("p", { class: "error", role: "alert" }, error.message));
  }

  function tell(found) {
    total(found, recorded.kept, found.rows_in, said.later.length ? "exact, before the rules over the whole corpus" : "exact");
    const stages = Object.entries(found.early).map(([stage, dropped]) => `${stage} ${count(dropped)}`);
    show(parts.early, `${count(found.rows_in)} came in; dropped before any cut-off: ${stages.join(", ") || "none"}; ${count(found.meets_cut_offs)} meet the cut-offs`);
    for (const cut of found.cut_offs) if (rows.has(cut.setting)) fill(rows.get(cut.setting), cut, found.meets_cut_offs);
    show(parts.buckets, bucketFill(found.buckets, recorded.buckets));
    for (const row of later.values()) fill(row, { dropped: null, left: null }, 0);
  }

  // the rules behind the cut-offs, one question at a time: the newest follows when the last is answered
  async function countWhole() {
    wantedWhole = true;
    if (counting) return;
    counting = true;
    while (wantedWhole) {
      wantedWhole = false;
      await countWholeOnce();
    }
    counting = false;
  }

  // what has been overtaken meanwhile is not shown
  async function countWholeOnce() {
    show(parts.whole, "counting the rules over the whole corpus …");
    try {
      recordedWhole ??= await get("whole-counts");
      const wished = asked(state, said.sliders);
      const found = isRecorded() ? recordedWhole : await get("whole-counts", wished);
      if (JSON.stringify(wished) !== JSON.stringify(asked(state, said.sliders))) return;
      total(found, recordedWhole.kept, recorded.rows_in, "exact");
      for (const rule of found.rules) fill(later.get(rule.reason), rule, recorded.meets_cut_offs);
      show(parts.buckets, bucketFill(found.buckets, recordedWhole.buckets));
      show(parts.whole);
    } catch (error) {
      if (!wantedWhole) show(parts.whole, h("span", { class: "error", role: "alert" }, error.message));
    }
  }

  const isRecorded = () => said.sliders.every(({ setting, recorded: value }) => state.get(setting) === value);

  function total(found, kept, rowsIn, badge) {
    const change = found.kept - kept;
    show(
      parts.total,
      h("div", {}, h("b", { id: "kept", "data-kept": found.kept }, count(found.kept)), ` of ${count(rowsIn)} kept (${share(found.kept, rowsIn)})`),
      h("div", { class: "quiet" }, change ? `${change > 0 ? "+" : "–"}${count(Math.abs(change))} against the recorded cut-offs` : "as with the recorded cut-offs"),
      h("span", { class: "badge exact", title: "counted over every row, nothing is sampled" }, badge),
    );
  }

  async function save() {
    try {
      const done = await post("save", asked(state, said.sliders));
      show(parts.saved, h("p", {}, "Written to ", h("code", {}, done.file), " under the root. With it: ", h("code", {}, `python pipelines/run.py --config ROOT/${done.file}`)), h("pre", {}, done.yaml));
    } catch (error) {
      show(parts.saved, h("p", { class: "error", role: "alert" }, error.message));
    }
  }

  show(
    place,
    section(
      "What if",
      "Move a cut-off, or type a value: the first cut-off that a sample fails counts, in this order.",
      parts.total,
      h("p", { class: "said" }, parts.early),
      h("div", { class: "sliders" }, h("div", { class: "slider heads" }, ["cut-off", "", "value", "drops", "left", ""].map((name) => h("span", {}, name))), [...rows.values()], [...later.values()]),
      parts.whole,
      exported ? null : h("p", {}, h("button", { id: "save", onclick: save }, "Save as config")),
      parts.saved,
    ),
    section("On either side of the cut-off", null, parts.strips),
    section("Aspect buckets", "What is kept, by height x width in px; the outline is what the recorded cut-offs keep.", parts.buckets),
  );
  tell(recorded);
  if (said.later.length) countWhole();
  const first = said.sliders.find((slider) => slider.recorded !== null && slider.rows) ?? null;
  if (first && !exported) await sides(parts.strips, first, first.recorded);
  if (exported) show(parts.strips, exported.strips.map(({ setting, value, sides: found }) => bothSides(setting, value, found)));
}

function asked(state, sliders) {
  return Object.fromEntries(sliders.map(({ setting }) => [setting, state.get(setting) === null ? "off" : String(state.get(setting))]));
}

function sliderRow(slider, state, changed) {
  const whole = Number.isInteger(slider.recorded) && Number.isInteger(slider.lowest) && slider.highest > 20;
  const [low, high] = [Math.min(slider.low ?? 0, slider.recorded ?? Infinity), Math.max(slider.high ?? 1, slider.recorded ?? -Infinity)];
  const step = whole ? 1 : (high - low) / 400 || 0.01;
  const start = slider.recorded ?? (slider.drops === "below" ? low : high);
  const range = h("input", { type: "range", min: low, max: high, step, value: start, "aria-label": words(slider.setting) });
  const typed = h("input", { type: "number", step: "any", value: slider.recorded ?? "", placeholder: "off", id: `typed-${slider.setting}`, "aria-label": `${words(slider.setting)}, typed` });
  const rounded = (text) => (whole ? Math.round(Number(text)) : Number(Number(text).toPrecision(5)));
  range.addEventListener("input", () => {
    typed.value = rounded(range.value);
    changed(slider, rounded(range.value));
  });
  typed.addEventListener("input", () => {
    if (typed.value !== "") range.value = typed.value;
    changed(slider, typed.value === "" ? null : Number(typed.value));
  });
  if (exported || !slider.rows) for (const input of [range, typed]) input.disabled = true;
  const off = h("button", { class: "quiet", title: "switch this cut-off off", onclick: () => { typed.value = ""; changed(slider, null); } }, "off");
  const back = h("button", { class: "quiet", title: "the recorded value", onclick: () => { typed.value = slider.recorded ?? ""; range.value = start; changed(slider, slider.recorded); } }, "reset");
  const name = h("span", { class: "name", title: slider.meaning }, words(slider.setting), h("small", {}, slider.rows ? `drops what is ${slider.drops}; values ${short(slider.lowest)} to ${short(slider.highest)}` : "no values yet"));
  return h("div", { class: "slider", "data-setting": slider.setting }, name, range, typed, h("span", { class: "dropped-count" }), leftOf(), exported || !slider.rows ? h("span") : h("span", { class: "buttons" }, back, off));
}

function fill(row, { dropped, left }, most) {
  row.querySelector(".dropped-count").textContent = dropped === null ? "…" : count(dropped);
  row.querySelector(".left-count").textContent = left === null ? "…" : count(left);
  row.querySelector(".bar i").style.width = `${most ? (100 * left) / most : 0}%`;
}

const leftOf = () => h("span", { class: "left" }, h("span", { class: "bar thin" }, h("i", { class: "kept" })), h("span", { class: "left-count" }));

function ruleRow(reason) {
  const name = h("span", { class: "name" }, words(reason), h("small", {}, "looks at the whole corpus; its value is in the settings"));
  return h("div", { class: "slider", "data-rule": reason }, name, h("span"), h("span"), h("span", { class: "dropped-count" }), leftOf(), h("span"));
}

async function sides(place, slider, value) {
  if (value === null) {
    show(place, h("p", { class: "said" }, `${words(slider.setting)} is off`));
    return;
  }
  const found = await get("near", { setting: slider.setting, value });
  show(place, bothSides(slider.setting, value, found));
}

function bothSides(setting, value, found) {
  return h("div", { class: "sides" }, h("div", {}, h("h3", {}, `just dropped by ${words(setting)} ${short(value)}`), strip(found.dropped, valued)), h("div", {}, h("h3", {}, "just kept"), strip(found.kept, valued)));
}

function bucketFill(buckets, recorded) {
  const before = Object.fromEntries(recorded.map((bucket) => [bucket.bucket, bucket.rows]));
  const now = Object.fromEntries(buckets.map((bucket) => [bucket.bucket, bucket.rows]));
  const names = [...new Set([...recorded, ...buckets].map((bucket) => bucket.bucket))];
  const most = Math.max(1, ...Object.values(before), ...Object.values(now));
  return h("div", { class: "buckets" }, names.map((name) => h("div", { class: "line" }, h("div", { class: "row" }, h("span", { class: "name" }, name), h("span", { class: "bar" }, h("i", { class: "kept", style: { width: `${(100 * (now[name] ?? 0)) / most}%` } }), h("i", { class: "outline", style: { width: `${(100 * (before[name] ?? 0)) / most}%` } })), h("span", { class: "number" }, count(now[name] ?? 0))))));
}
