// Training: every series that a run logs, runs beside each other; only points that are new are fetched

import { get } from "./api.js";
import { chart, linesSpec } from "./charts.js";
import { count, h, section, seconds, short, show, words } from "./dom.js";

const EVERY_MS = 5000;
const ORDER = ["loss", "val_loss", "images_per_s", "mfu", "data_wait", "memory", "lr", "grad_norm"];
const UNITS = { images_per_s: "images/s", lr: "learning rate", grad_norm: "gradient norm", val_loss: "validation loss" };

export async function trainingPage(place) {
  const said = await get("training-runs");
  if (!said.runs.length) {
    show(place, section("Training", "No run has logged anything under this root yet: python -m train.run base"));
    return () => {};
  }
  const plots = new Map();
  const grid = h("div", { class: "cards" });
  const since = new Map(said.runs.map((run) => [run.name, 0]));
  const records = h("table", {}, h("thead", {}, h("tr", {}, ["run", "steps", "samples", "global batch", "time", "validation loss, before and after"].map((name) => h("th", {}, name)))), h("tbody", {}, said.runs.map(recordOf)));
  const strips = h("div", { class: "cards" });
  const sliders = new Map();
  const drawn = section("Grids", "The same prompts and the same noise, drawn by the averaged weights as they learned.", strips);
  drawn.hidden = true;
  show(place, section("Runs", null, records), section("Series", null, grid), drawn, said.has_samples ? section("Pictures", "What python -m train.sample drew last.", h("img", { class: "drawn", src: "/drawn", alt: "pictures of the trained model" })) : null);

  async function fetchNew() {
    const found = [];
    for (const run of said.runs) {
      const points = await get("training-points", { of: run.of, run: run.run, since: since.get(run.name) });
      since.set(run.name, points.next);
      for (const [name, series] of Object.entries(points.series)) found.push([name, series.map(([step, value]) => ({ run: run.name, step, value }))]);
    }
    await add(found);
  }

  async function fetchGrids() {
    for (const run of (await get("training-runs")).runs) {
      if (!run.grids.length) continue;
      drawn.hidden = false;
      if (!sliders.has(run.name)) {
        sliders.set(run.name, gridSlider(run));
        strips.append(sliders.get(run.name).card);
      }
      sliders.get(run.name).update(run.grids);
    }
  }

  async function add(found) {
    const fresh = new Map();
    for (const [name, points] of found) fresh.set(name, [...(fresh.get(name) ?? []), ...points]);
    for (const name of [...fresh.keys()].sort((a, b) => place_(a) - place_(b))) {
      const plot = plots.get(name);
      if (plot) {
        plot.insert("points", fresh.get(name)).run();
        continue;
      }
      const box = h("div", { class: "plot" });
      grid.append(h("article", { class: "card", "data-series": name }, h("h3", {}, words(name)), box));
      plots.set(name, (await chart(box, linesSpec(fresh.get(name), UNITS[name] ?? words(name)))).view);
    }
  }

  await fetchNew();
  await fetchGrids();
  const timer = setInterval(() => fetchNew().then(fetchGrids).catch(() => clearInterval(timer)), EVERY_MS);
  return () => clearInterval(timer);
}

// A picture and a slider through the steps at which it was drawn; it follows the newest one until it is moved
function gridSlider(run) {
  const image = h("img", { class: "drawn", alt: `grid of ${run.name}` });
  const label = h("output", {});
  const slider = h("input", { type: "range", min: "0", step: "1", "aria-label": `step of ${run.name}` });
  let steps = [];
  let follows = true;
  const draw = () => {
    const step = steps[Number(slider.value)];
    label.textContent = `step ${count(step)}`;
    image.src = `/grids/${encodeURIComponent(run.run)}/${step}?${new URLSearchParams({ of: run.of })}`;
  };
  slider.addEventListener("input", () => {
    follows = Number(slider.value) === steps.length - 1;
    draw();
  });
  const update = (found) => {
    if (found.length === steps.length) return;
    steps = found;
    slider.max = String(steps.length - 1);
    if (follows) slider.value = slider.max;
    draw();
  };
  return { card: h("article", { class: "card", "data-grid": run.name }, h("h3", {}, run.name), image, h("label", {}, slider, label)), update };
}

const place_ = (name) => {
  const at = ORDER.findIndex((known) => name.startsWith(known));
  return at < 0 ? ORDER.length : at;
};

function recordOf(run) {
  const record = run.record;
  const losses = record.val_loss_before === undefined ? "–" : `${short(record.val_loss_before)} → ${record.val_loss_after === undefined ? "…" : short(record.val_loss_after)}`;
  const untrained = run.text_towers_untrained ? h("small", {}, "text towers untrained") : null;
  return h("tr", {}, h("td", {}, run.name, untrained), h("td", {}, `${count(record.steps_done)} of ${count(record.steps)}`), h("td", {}, count(record.samples)), h("td", {}, count(record.global_batch)), h("td", {}, record.seconds ? seconds(record.seconds) : "–"), h("td", {}, losses));
}
