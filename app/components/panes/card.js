// The card of a position: what the model is, and what it is worth. All text goes through textContent.

const ARROWS = { up: "\u25b2", down: "\u25bc", same: "" };

function make(tag, className, parent, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

/** A line of [text, kind] pairs; kind "sub" is lowered, "num" a number that the sliders set. */
function drawFormula(parent, line) {
  const row = make("div", "line", parent);
  for (const [text, kind] of line) {
    if (kind === "sub") make("sub", "", row, text);
    else make("span", kind, row, text);
  }
}

function drawRecipe(root, recipe) {
  const part = make("section", "recipe", root);
  const head = make("div", "head", part);
  make("h3", "title", head, recipe.title);
  make("span", `badge ${recipe.is_measured ? "measured" : "predicted"}`, head, recipe.badge);
  const formula = make("div", "formula", part);
  for (const line of recipe.formula) drawFormula(formula, line);
  const list = make("ul", "shares", part);
  for (const share of recipe.shares) {
    const item = make("li", "", list);
    make("span", "name", item, share.name);
    make("span", "amount", item, share.text);
  }
  make("p", "note", part, recipe.note);
}

function drawMetrics(root, data) {
  const part = make("section", "worth", root);
  if (data.rows.length) drawTable(part, data);
  make("p", "note", part, data.note);
}

function drawTable(parent, data) {
  const table = make("table", "metrics", parent);
  make("caption", "hidden", table, `Metrics of ${data.title}, and their difference to ${data.reference}`);
  const head = make("tr", "", make("thead", "", table));
  for (const [text, className] of [["", "name"], [data.badge, "value"], [`vs ${data.reference}`, "delta"], ["", ""]]) {
    make("th", className, head, text).scope = "col";
  }
  const body = make("tbody", "", table);
  for (const row of data.rows) {
    const line = make("tr", "", body);
    const name = make("th", "name", line, row.label);
    name.scope = "row";
    make("span", "unit", name, row.unit);
    make("td", row.is_predicted ? "value predicted" : "value", line, row.value);
    const delta = make("td", `delta ${row.tone}`, line);
    make("span", "arrow", delta, ARROWS[row.direction]).setAttribute("aria-hidden", "true");
    make("span", "", delta, row.delta);
    make("td", `words ${row.tone}`, line, row.words);
  }
}

const SVG = "http://www.w3.org/2000/svg";

function mark(tag, attributes, parent, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

/** One line per policy over the layers, with a dot on each layer that names it. */
function drawLayers(root, layers) {
  const part = make("section", "layers", root);
  const [width, height, left, bottom, top] = [600, 220, 44, 30, 10];
  const all = layers.series.flatMap((series) => series.values);
  const [low, high] = [Math.min(0, ...all), Math.max(...all) * 1.05 || 1];
  const x = (i) => left + ((width - left - 10) * i) / Math.max(1, layers.names.length - 1);
  const y = (value) => height - bottom - ((height - bottom - top) * (value - low)) / (high - low);
  const picture = mark("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": layers.label }, part);
  for (let k = 0; k <= 4; k++) {
    const value = low + ((high - low) * k) / 4;
    mark("line", { class: "grid", x1: left, x2: width - 10, y1: y(value), y2: y(value) }, picture);
    mark("text", { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, picture, value.toFixed(2));
  }
  mark("text", { class: "tick", x: left, y: height - 8 }, picture, layers.names[0]);
  const end = { class: "tick", x: width - 10, y: height - 8, "text-anchor": "end" };
  mark("text", end, picture, layers.names[layers.names.length - 1]);
  for (const series of layers.series) {
    const points = series.values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    mark("polyline", { points, fill: "none", stroke: series.color, "stroke-width": 2 }, picture);
    series.values.forEach((value, i) => {
      const dot = mark("circle", { cx: x(i), cy: y(value), r: 3, fill: series.color }, picture);
      mark("title", {}, dot, `${layers.names[i]}, ${series.name}: ${value.toFixed(3)}`);
    });
  }
  const legend = make("ul", "shares", part);
  for (const series of layers.series) {
    const item = make("li", "", legend);
    make("span", "dot", item).style.background = series.color;
    make("span", "name", item, series.name);
  }
}

const mounted = new WeakMap();

export default function ({ data, parentElement }) {
  let root = mounted.get(parentElement);
  if (!root) {
    root = make("div", "card", parentElement);
    mounted.set(parentElement, root);
  }
  const shown = JSON.stringify(data);
  if (root.dataset.shown === shown) return;
  root.dataset.shown = shown;
  root.replaceChildren();
  if (data.recipe) drawRecipe(root, data.recipe);
  if (data.metrics) drawMetrics(root, data.metrics);
  if (data.layers) drawLayers(root, data.layers);
}
