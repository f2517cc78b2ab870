// Elements and words: text goes in as text, never as markup

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function show(place, ...children) {
  place.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return place;
}

export const count = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));

export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 10000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

export const share = (part, whole) => (whole && part === 0 ? "0 %" : whole ? `${((100 * part) / whole).toFixed(part / whole < 0.1 ? 2 : 1)} %` : "–");

export const words = (name) => String(name).replaceAll("_", " ");

export function seconds(value) {
  if (value < 100) return `${value.toFixed(1)} s`;
  return value < 6000 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

export function link(page, asked, ...children) {
  const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== null && value !== "")).toString();
  return h("a", { href: `#/${page}${query ? `?${query}` : ""}` }, ...children);
}

export function section(title, said, ...children) {
  return h("section", {}, h("h2", {}, title), said ? h("p", { class: "said" }, said) : null, ...children);
}

export function choice(label, options, chosen, onchange) {
  const listed = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  return h("label", { class: "choice" }, label, h("select", { onchange: (event) => onchange(event.target.value) }, listed));
}
