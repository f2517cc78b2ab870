// Labelling by keyboard: good or bad for a score, near its cut-off first, and how the labels agree with the score

import { get, post } from "./api.js";
import { chart, curveSpec } from "./charts.js";
import { choice, count, h, section, short, show, words } from "./dom.js";
import { picture } from "./tiles.js";

const KEYS = { g: "good", ArrowRight: "good", b: "bad", ArrowLeft: "bad" };

export async function labellingPage(place, { asked, overview }) {
  const numbers = overview.numbers.filter((one) => !one.computed).map((one) => one.name);
  const preferred = ["aesthetic", "nsfw_prob", "watermark_prob", "clip_similarity", "sharpness"];
  const score = asked.score ?? preferred.find((name) => numbers.includes(name)) ?? numbers[0];
  const stage = h("div", { class: "labelling" });
  const state = h("p", { class: "said" });
  const curve = h("div", {});
  const done = [];
  let queue = await get("label-queue", { score });

  function draw() {
    const tile = queue.tiles[0];
    state.textContent = `${count(queue.labelled)} labelled in ${queue.file}; nearest to ${short(queue.around)} first`;
    if (!tile) {
      show(stage, h("p", { class: "said" }, "nothing is left to label for this score"));
      return;
    }
    const button = (label, key) => h("button", { class: `label ${label}`, onclick: () => label_(label) }, label, h("kbd", {}, key));
    show(
      stage,
      h("div", { class: "large", "data-uid": tile.uid }, picture(tile, 1024)),
      h("p", { class: "caption" }, tile.caption ?? h("i", {}, "without caption")),
      h("p", {}, words(score), " ", h("b", {}, short(tile.value))),
      h("div", { class: "buttons" }, button("bad", "b ←"), h("button", { onclick: skip }, "skip", h("kbd", {}, "s")), button("good", "g →"), h("button", { class: "quiet", disabled: !done.length, onclick: undo }, "undo", h("kbd", {}, "u"))),
    );
  }

  async function label_(label) {
    const tile = queue.tiles.shift();
    if (!tile) return;
    done.push(tile);
    const said = await post("label", { score, uid: tile.uid, label });
    queue.labelled = said.labelled;
    if (!queue.tiles.length) queue = await get("label-queue", { score });
    draw();
    await drawCurve();
  }

  function skip() {
    queue.tiles.push(queue.tiles.shift());
    draw();
  }

  async function undo() {
    const tile = done.pop();
    if (!tile) return;
    const said = await post("label", { score, uid: tile.uid, label: null });
    queue.labelled = said.labelled;
    queue.tiles = [tile, ...queue.tiles.filter((other) => other.uid !== tile.uid)];
    draw();
    await drawCurve();
  }

  async function drawCurve() {
    const said = await get("label-curve", { score });
    if (said.points.length < 2) show(curve, h("p", { class: "said" }, "it needs two labels or more"));
    else await chart(curve, curveSpec(said.points));
  }

  let busy = Promise.resolve();
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    const work = KEYS[event.key] ? () => label_(KEYS[event.key]) : { s: skip, u: undo }[event.key];
    if (!work) return;
    event.preventDefault();
    busy = busy.then(work).catch((error) => show(stage, h("p", { class: "error", role: "alert" }, error.message)));
  }

  show(
    place,
    section("Labelling", "By keyboard: g or → good, b or ← bad, s skip, u undo.", choice("score", numbers.map((name) => [name, words(name)]), score, (name) => { location.hash = `#/labelling?score=${name}`; }), state, stage),
    section("Calibration", "For tenths of the labelled samples by score, the share that is labelled good.", curve),
  );
  addEventListener("keydown", pressed);
  draw();
  await drawCurve();
  return () => removeEventListener("keydown", pressed);
}
