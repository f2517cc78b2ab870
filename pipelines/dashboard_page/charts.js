// Charts by Vega-Lite in the colours of the style sheet; expressions are interpreted, so that no page needs eval

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function config() {
  const axis = { labelColor: colour("quiet"), titleColor: colour("quiet"), gridColor: colour("line"), domainColor: colour("line") };
  const words = { labelFont: "inherit", titleFont: "inherit", labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" };
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...axis, ...words, tickColor: colour("line"), gridOpacity: 0.7, labelOverlap: true },
    legend: { labelColor: colour("ink"), titleColor: colour("quiet"), orient: "top", title: null },
  };
}

export async function chart(place, spec) {
  const whole = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", ...spec, config: config() };
  return window.vegaEmbed(place, whole, { ast: true, actions: false, renderer: "svg", mode: "vega-lite" });
}

const OUTCOMES = ["kept", "dropped", "undecided"];
const outcomeColours = () => ({ domain: OUTCOMES, range: [colour("kept"), colour("dropped"), colour("line-strong")] });

export function histogramSpec(said, height = 150) {
  const rows = said.bins.flatMap((bin) => OUTCOMES.map((outcome) => ({ ...span(bin, said), outcome, rows: bin[outcome] })));
  const drawn = rows.filter((row) => row.rows > 0);
  const layers = [{
    mark: { type: "bar", orient: "vertical", binSpacing: 0.6, cursor: "pointer" },
    encoding: {
      x: { field: "from", type: "quantitative", title: null, scale: { zero: false, nice: false }, axis: { grid: false, tickCount: 6 } },
      x2: { field: "to" },
      y: { field: "rows", type: "quantitative", stack: "zero", title: null, axis: { tickCount: 4, format: "~s" } },
      color: { field: "outcome", type: "nominal", scale: outcomeColours(), legend: null },
      opacity: { condition: { test: "datum.outlier", value: 0.45 }, value: 1 },
      tooltip: [{ field: "told", title: "value" }, { field: "outcome" }, { field: "rows", format: "," }],
    },
  }];
  if (said.cut_offs.length) {
    layers.push({
      data: { values: said.cut_offs.map(({ value, drops }) => ({ at: value, told: `cut-off ${value}: drops what is ${drops}` })) },
      mark: { type: "rule", color: colour("accent"), strokeWidth: 2, strokeDash: [4, 3] },
      encoding: { x: { field: "at", type: "quantitative" }, tooltip: [{ field: "told", title: "cut-off" }] },
    });
  }
  return { data: { values: drawn }, height, layer: layers };
}

function span(bin, said) {
  const outlier = bin.place < 0 || bin.low >= said.low + 40 * said.width - said.width / 2;
  const edge = (value, infinite) => (value === null ? infinite : Number(value.toPrecision(5)));
  const told = `${edge(bin.low, "-infinity")} to ${edge(bin.high, "infinity")}`;
  const place = bin.place < 0 ? -1.6 : outlier ? 40.6 : bin.place;
  const from = said.low + place * said.width;
  return { from, to: from + said.width, low: bin.low, high: bin.high, isLast: outlier && bin.place > 0, outlier, told: outlier ? `${told} (outliers)` : told };
}

export function linesSpec(points, title, height = 170) {
  const runs = [...new Set(points.map((point) => point.run))];
  return {
    data: { name: "points", values: points },
    height,
    mark: { type: "line", strokeWidth: 1.5, point: points.length < 2 * runs.length + 6 },
    encoding: {
      x: { field: "step", type: "quantitative", title: "step", axis: { grid: false } },
      y: { field: "value", type: "quantitative", title, scale: { zero: false } },
      color: { field: "run", type: "nominal", legend: runs.length > 1 ? {} : null, scale: { range: [colour("accent"), colour("dropped"), colour("kept"), colour("quiet")] } },
      tooltip: [{ field: "run" }, { field: "step" }, { field: "value", format: ".5~g" }],
    },
  };
}

export function curveSpec(points) {
  return {
    data: { values: points },
    height: 220,
    mark: { type: "line", point: true, color: colour("accent") },
    encoding: {
      x: { field: "score", type: "quantitative", title: "mean score", scale: { zero: false } },
      y: { field: "good", type: "quantitative", title: "share labelled good", scale: { domain: [0, 1] } },
      tooltip: [{ field: "score", format: ".4~g" }, { field: "good", format: ".0%" }, { field: "labels" }],
    },
  };
}

