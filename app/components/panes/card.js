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
}
