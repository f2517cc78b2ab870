// A sample as a tile: its thumbnail, blurred where it is unsafe until it is clicked, and what is known of it

import { pictureUrl, exported } from "./api.js";
import { h, link, short, words } from "./dom.js";

export function picture(tile, side) {
  if (!tile.has_picture) return h("div", { class: "no-picture" }, "no picture");
  const image = h("img", { src: pictureUrl(tile.number, side), alt: tile.caption ?? "without caption", loading: "lazy", decoding: "async" });
  const frame = h("div", { class: "frame" }, image);
  image.addEventListener("error", () => frame.replaceChildren(h("div", { class: "no-picture" }, "does not decode")));
  if (tile.is_unsafe) {
    frame.classList.add("unsafe");
    frame.append(h("button", { class: "reveal", title: "scored as unsafe", onclick: (event) => reveal(event, frame) }, "unsafe – show"));
  }
  return frame;
}

function reveal(event, frame) {
  event.preventDefault();
  event.stopPropagation();
  frame.classList.remove("unsafe");
  event.target.remove();
}

export function tileOf(tile, said = null) {
  const told = said ?? (tile.keep ? "kept" : tile.reason ? words(tile.reason) : "undecided");
  const content = [picture(tile, 192), h("div", { class: "told" }, h("i", { class: `dot ${outcome(tile)}` }), h("span", {}, told))];
  const title = tile.caption ?? "without caption";
  if (exported) return h("div", { class: "tile", title }, content);
  const made = link(`sample/${tile.uid}`, {}, content);
  made.className = "tile";
  made.title = title;
  return made;
}

export const outcome = (tile) => (tile.keep ? "kept" : tile.reason ? "dropped" : "undecided");

export function strip(tiles, saidOf = null) {
  if (!tiles.length) return h("p", { class: "said" }, "no samples here");
  return h("div", { class: "strip" }, tiles.map((tile) => tileOf(tile, saidOf ? saidOf(tile) : null)));
}

export const valued = (tile) => short(tile.value);
