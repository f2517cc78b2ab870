// The funnel: rows at each step, drops by reason, splits, the speed of each step, and other runs beside it

import { exported, get } from "./api.js";
import { choice, count, h, link, section, seconds, share, show, words } from "./dom.js";

export async function funnelPage(place, { asked }) {
  const said = await get("funnel");
  const split = h("div", {});
  const chosen = asked.by ?? "source";
  show(
    place,
    section("Funnel", null, legend(), h("div", { class: "columns" }, [said, ...said.beside].map(funnelOf))),
    section("Where the drops are", null, choice("by", [["source", "source"], ["language", "language"], ["host", "domain"]], chosen, (by) => splitBy(split, by)), split),
    section("Steps", "As the last run of each step recorded them.", h("div", { class: "columns" }, [said, ...said.beside].map(stepsOf))),
  );
  await splitBy(split, chosen);
}

function legend() {
  const kinds = [["kept", "kept"], ["defect", "defect: broken, or not to be had"], ["policy", "policy: a choice of the settings"]];
  return h("p", { class: "legend" }, kinds.map(([kind, told]) => h("span", {}, h("i", { class: `dot ${kind}` }), told)));
}

function funnelOf(said) {
  const isOther = said.beside === undefined;
  const rows = [line("rows in", said.rows_in, said.rows_in, said.rows_in, {}, isOther)];
  for (const stage of said.stages) {
    if (!stage.rows) continue;
    rows.push(h("div", { class: "stage" }, h("span", {}, stage.stage), h("span", {}, `– ${count(stage.rows)}`), h("span", {}, `${count(stage.left)} left`)));
    const most = Math.max(...said.stages.flatMap((one) => one.reasons.map((reason) => reason.rows)));
    for (const reason of stage.reasons) rows.push(reasonLine(stage, reason, most, said.rows_in, isOther));
  }
  if (said.undecided > 0) rows.push(line("not decided yet", said.undecided, said.rows_in, said.rows_in, {}, isOther));
  rows.push(line("rows kept", said.rows_kept, said.rows_in, said.rows_in, { kept: "yes" }, isOther));
  return h("div", { class: "funnel-of" }, h("h3", {}, said.name), rows);
}

function line(name, rows, most, whole, filter, isOther) {
  const content = [h("span", { class: "name" }, name), h("span", { class: "bar" }, h("i", { class: "kept", style: { width: `${(100 * rows) / most}%` } })), h("span", { class: "number" }, count(rows)), h("span", { class: "number quiet" }, share(rows, whole))];
  return h("div", { class: "line total" }, isOther || exported ? h("div", { class: "row" }, content) : rowLink(filter, content));
}

function reasonLine(stage, reason, most, whole, isOther) {
  const kind = reason.is_defect ? "defect" : "policy";
  const content = [
    h("span", { class: "name", title: kind }, words(reason.reason)),
    h("span", { class: "bar" }, h("i", { class: kind, style: { width: `${Math.max(0.5, (100 * reason.rows) / most)}%` } })),
    h("span", { class: "number" }, count(reason.rows)),
    h("span", { class: "number quiet" }, share(reason.rows, whole)),
  ];
  return h("div", { class: "line", "data-reason": reason.reason }, isOther || exported ? h("div", { class: "row" }, content) : rowLink({ stage: stage.stage, reason: reason.reason }, content));
}

function rowLink(filter, content) {
  const made = link("browse", filter, content);
  made.className = "row";
  return made;
}

async function splitBy(place, by) {
  const said = await get("split", { by });
  const found = new Set(said.values.flatMap((value) => Object.keys(value.outcomes)));
  const stages = [...said.stages, "undecided"].filter((name) => found.has(name));
  const heads = [by === "host" ? "domain" : by, "rows", "kept", "", ...stages];
  const lines = said.values.map((value) => {
    const kept = value.outcomes.kept ?? 0;
    const name = value.value === null ? h("i", {}, "others or none") : exported ? value.value : link("browse", { [by]: value.value }, value.value);
    const cells = stages.map((stage) => {
      const rows = value.outcomes[stage] ?? 0;
      const isLink = rows && value.value !== null && stage !== "undecided" && !exported;
      return h("td", { class: "number" }, isLink ? link("browse", { [by]: value.value, stage }, count(rows)) : count(rows));
    });
    const bar = h("span", { class: "bar thin" }, h("i", { class: "kept", style: { width: `${(100 * kept) / value.rows}%` } }));
    return h("tr", {}, h("td", {}, name), h("td", { class: "number" }, count(value.rows)), h("td", { class: "number" }, share(kept, value.rows)), h("td", { class: "wide" }, bar), cells);
  });
  show(place, h("table", {}, h("thead", {}, h("tr", {}, heads.map((name, at) => h("th", { class: at ? "number" : "" }, name)))), h("tbody", {}, lines)));
}

function stepsOf(said) {
  const lines = said.steps.map((step) => h("tr", {}, h("td", {}, step.table), h("td", { class: "number" }, count(step.rows)), h("td", { class: "number" }, seconds(step.seconds)), h("td", { class: "number" }, step.rows_per_s === null ? h("span", { class: "quiet", title: `${step.fragments_made} parts were made; the others were there` }, "in part") : count(Math.round(step.rows_per_s)))));
  const heads = ["table", "rows", "time", "rows/s"].map((name, at) => h("th", { class: at ? "number" : "" }, name));
  return h("div", {}, h("h3", {}, said.name), h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines)));
}
