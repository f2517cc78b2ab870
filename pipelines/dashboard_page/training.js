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
  const grids = gridSlider();
  show(place, section("Runs", null, records), section("Series", null, grid), grids.element, said.has_samples ? section("Pictures", "What python -m train.sample drew last.", h("img", { class: "drawn", src: "/drawn", alt: "pictures of the trained model" })) : null);

  async function fetchNew() {
    const found = [];
    for (const run of said.runs) {
      const points = await get("training-points", { of: run.of, run: run.run, since: since.get(run.name) });
      since.set(run.name, points.next);
      for (const [name, series] of Object.entries(points.series)) found.push([name, series.map(([step, value]) => ({ run: run.name, step, value }))]);
    }
    await add(found);
  }

  const fetchGrids = async () => grids.update((await get("training-runs")).runs);

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

// One slider through the steps of all runs; each run shows what it had drawn by then. It follows the newest step until it is moved
function gridSlider() {
  const cards = h("div", { class: "cards" });
  const label = h("output", {});
  const slider = h("input", { type: "range", id: "grid-step", min: "0", max: "0", step: "1", "aria-label": "step of the grids" });
  const element = section("Grids", "The same prompts and the same noise, drawn by the averaged weights as they learned.", h("label", {}, slider, label), cards);
  const shown = new Map();
  let runs = [];
  let steps = [];
  let follows = true;
  element.hidden = true;

  function draw() {
    const chosen = steps[Number(slider.value)];
    label.textContent = `step ${count(chosen)}`;
    for (const run of runs) {
      const step = run.grids.filter((each) => each <= chosen).at(-1) ?? run.grids[0];
      const { image, caption } = shown.get(run.name) ?? card(run);
      const address = `/grids/${encodeURIComponent(run.run)}/${step}?${new URLSearchParams({ of: run.of })}`;
      caption.textContent = `${run.name}, step ${count(step)}`;
      if (image.getAttribute("src") !== address) image.src = address;
    }
  }

  function card(run) {
    const made = { image: h("img", { class: "drawn", alt: `grid of ${run.name}` }), caption: h("h3", {}) };
    cards.append(h("article", { class: "card", "data-grid": run.name }, made.caption, made.image));
    shown.set(run.name, made);
    return made;
  }

  slider.addEventListener("input", () => {
    follows = Number(slider.value) === steps.length - 1;
    draw();
  });
  const update = (found) => {
    const chosen = steps[Number(slider.value)];
    runs = found.filter((run) => run.grids.length);
    steps = [...new Set(runs.flatMap((run) => run.grids))].sort((a, b) => a - b);
    if (!steps.length) return;
    element.hidden = false;
    slider.max = String(steps.length - 1);
    slider.value = String(follows ? steps.length - 1 : steps.indexOf(chosen));
    draw();
  };
  return { element, update };
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
