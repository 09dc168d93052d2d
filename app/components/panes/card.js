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

function drawShares(parent, shares) {
  const list = make("ul", "shares", parent);
  for (const share of shares) {
    const item = make("li", "", list);
    make("span", "name", item, share.name);
    const bar = make("span", "bar", item);
    const fill = make("span", "fill", bar);
    fill.style.width = `${Math.min(100, Math.abs(100 * share.value)).toFixed(1)}%`;
    fill.style.background = share.color;
    make("span", "amount", item, share.text);
  }
}

function drawMetrics(parent, data) {
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
  const left = make("section", "recipe", root);
  const head = make("div", "head", left);
  make("h3", "title", head, data.title);
  make("span", `badge ${data.is_measured ? "measured" : "predicted"}`, head, data.badge);
  const formula = make("div", "formula", left);
  for (const line of data.formula) drawFormula(formula, line);
  if (data.shares.length) drawShares(left, data.shares);
  make("p", "note", left, data.shares_note);
  const right = make("section", "worth", root);
  if (data.rows.length) drawMetrics(right, data);
  make("p", "note", right, data.note);
}
