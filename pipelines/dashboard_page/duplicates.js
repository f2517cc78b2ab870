// Duplicates: how large the clusters are, and each of them as a strip, the survivor marked and why it won

import { get } from "./api.js";
import { choice, count, h, section, show } from "./dom.js";
import { duplicates } from "./sample.js";

const KINDS = [["", "any kind"], ["exact", "exact"], ["perceptual", "perceptual"], ["semantic", "semantic"], ["error_image", "error image"], ["eval_set", "evaluation set"]];
const ORDERS = [["largest", "largest first"], ["smallest", "smallest first"], ["farthest", "farthest members first"]];
const AT_ONCE = 20;

export async function duplicatesPage(place, { asked }) {
  const { sizes } = await get("cluster-sizes");
  const list = h("div", { class: "clusters" });
  const more = h("button", { onclick: () => add() }, "more");
  const total = h("p", { class: "said" });
  let first = 0;

  async function add() {
    const filter = Object.fromEntries(Object.entries({ kind: asked.kind, order: asked.order, at_least: asked.at_least, at_most: asked.at_most }).filter(([, value]) => value));
    const said = await get("clusters", { ...filter, first, count: AT_ONCE });
    first += said.clusters.length;
    list.append(...said.clusters.map(clusterOf));
    total.textContent = `${count(said.total)} clusters`;
    more.hidden = first >= said.total;
  }

  const set = (name) => (value) => goTo({ ...asked, [name]: value });
  const typed = (name, label) => h("label", { class: "choice" }, label, h("input", { type: "number", min: 2, value: asked[name] ?? "", name, onchange: (event) => goTo({ ...asked, [name]: event.target.value }) }));
  show(
    place,
    section("Cluster sizes", "A cluster is a survivor and the samples that dedup dropped for it.", sizeBars(sizes)),
    section("Clusters", null, h("div", { class: "filters" }, choice("with", KINDS, asked.kind ?? "", set("kind")), choice("sorted", ORDERS, asked.order ?? "largest", set("order")), typed("at_least", "at least"), typed("at_most", "at most")), total, list, more),
  );
  await add();
}

function goTo(asked) {
  const set = Object.entries(asked).filter(([, value]) => value !== "" && value !== undefined);
  location.hash = `#/duplicates?${new URLSearchParams(set)}`;
}

function sizeBars(sizes) {
  if (!sizes.length) return h("p", { class: "said" }, "no cluster has two members");
  const most = Math.max(...sizes.map((size) => size.clusters));
  return h("div", { class: "narrow" }, sizes.map((size) => {
    const name = size.low === size.high ? `${size.low} members` : `${size.low} – ${size.high} members`;
    const content = [h("span", { class: "name" }, name), h("span", { class: "bar" }, h("i", { class: "dropped", style: { width: `${(100 * size.clusters) / most}%` } })), h("span", { class: "number" }, count(size.clusters))];
    return h("div", { class: "line" }, h("a", { class: "row", href: `#/duplicates?at_least=${size.low}&at_most=${size.high}` }, content));
  }));
}

function clusterOf(cluster) {
  const hidden = cluster.members - cluster.tiles.length;
  return h("article", { class: "cluster" }, h("h3", {}, `${count(cluster.members)} members`, hidden ? h("small", {}, `${cluster.tiles.length} shown`) : null, h("a", { href: `#/browse?cluster_id=${cluster.cluster_id}` }, "all")), duplicates(cluster.tiles));
}
