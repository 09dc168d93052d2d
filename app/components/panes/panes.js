// Panes of streamed text, side by side. All text goes through textContent: a model may write anything.

const STATES = {
  empty: "", waiting: "waiting", merging: "merging", sampling: "writing", scoring: "scoring", done: "done",
  stopped: "stopped", error: "failed",
};
const OTHER = 0.8; // share of new words from which on a text counts as another one altogether
const CELLS = 4e6; // of the table below: two texts of 2,000 words take some 50 ms
const BUSY = new Set(["waiting", "merging", "sampling", "scoring"]);

/** Split a text into words, runs of spaces and single signs, so that joining them gives the text again. */
export function pieces(text) {
  return text.match(/\s+|[\p{L}\p{N}\p{M}'_-]+|[^\s]/gu) || [];
}

/**
 * Mark which words of `text` are not in the longest common subsequence with `reference`: [[piece, isNew], ...]; null
 * where the two are too long for that.
 */
export function differences(reference, text) {
  const isWord = (piece) => !/^\s+$/.test(piece);
  const old = pieces(reference).filter(isWord);
  const all = pieces(text);
  const now = all.filter(isWord);
  if ((old.length + 1) * (now.length + 1) > CELLS) return null;
  const width = now.length + 1;
  const length = new Uint16Array((old.length + 1) * width); // length[i, j]: of the LCS of old[i:] and now[j:]
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      const below = length[(i + 1) * width + j];
      const right = length[i * width + j + 1];
      length[i * width + j] = old[i] === now[j] ? length[(i + 1) * width + j + 1] + 1 : Math.max(below, right);
    }
  }
  const isNew = new Array(now.length).fill(true);
  for (let i = 0, j = 0; i < old.length && j < now.length;) {
    if (old[i] === now[j]) {
      isNew[j] = false;
      i++;
      j++;
    } else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) {
      i++;
    } else {
      j++;
    }
  }
  let word = -1;
  const marked = all.map((piece) => (isWord(piece) ? [piece, isNew[++word]] : [piece, null]));
  // a space between two new words belongs to them, so that a changed phrase is one mark
  return marked.map(([piece, flag], k) => [
    piece, flag === null ? Boolean(k > 0 && marked[k - 1][1] && k + 1 < marked.length && marked[k + 1][1]) : flag,
  ]);
}

function make(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  parent.appendChild(node);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function buildPane(grid) {
  const root = make("section", "pane", grid);
  const head = make("header", "head", root);
  const title = make("h3", "title", head);
  const status = make("span", "status", head);
  status.setAttribute("aria-live", "polite");
  const recipe = make("p", "recipe", root);
  const body = make("div", "body", root);
  return { root, title, status, recipe, body, completions: [] };
}

function buildCompletion(body) {
  const root = make("article", "completion", body);
  const text = make("div", "text", root);
  text.tabIndex = 0;
  text.dir = "auto";
  text.setAttribute("role", "region");
  const foot = make("p", "foot", root);
  return { root, text, foot, shown: null, unmarked: [] };
}

/**
 * Draw a text, with marks where it differs from `reference` (null: no marks). Untouched while nothing has changed.
 * A text that has next to nothing in common with the other is not marked all over, nor is one that is too long:
 * `unmarked` says so under it.
 */
function drawText(view, text, reference) {
  const shown = JSON.stringify([text, reference]);
  if (view.shown === shown) return;
  view.shown = shown;
  const found = reference === null ? [] : differences(reference, text);
  const words = (found || []).filter(([piece]) => piece.trim());
  const isOther = words.length > 0 && words.filter(([, isNew]) => isNew).length > OTHER * words.length;
  view.unmarked = found === null ? [["differences", "not marked, too long"]] : isOther ? [["differs", "throughout"]] : [];
  if (reference === null || found === null || isOther) {
    view.text.textContent = text;
    return;
  }
  const runs = [];
  for (const [piece, isNew] of found) {
    if (!runs.length || runs[runs.length - 1].isNew !== isNew) runs.push({ isNew, pieces: [] });
    runs[runs.length - 1].pieces.push(piece);
  }
  const parts = document.createDocumentFragment();
  for (const run of runs) {
    const node = run.isNew ? document.createElement("mark") : document.createTextNode("");
    node.textContent = run.pieces.join("");
    parts.appendChild(node);
  }
  view.text.replaceChildren(parts);
}

function drawCompletion(view, completion, pane, reference, index) {
  drawText(view, completion.text, reference);
  const writing = BUSY.has(pane.state) && !completion.done && !pane.stale;
  view.root.classList.toggle("writing", writing);
  view.text.setAttribute("aria-label", `${pane.title}, completion ${index + 1}`);
  view.foot.replaceChildren();
  for (const [label, value] of [...completion.facts, ...view.unmarked]) {
    const fact = make("span", "fact", view.foot);
    make("span", "label", fact).textContent = label;
    make("span", "value", fact).textContent = value;
  }
}

function drawPane(view, pane, first, data) {
  view.root.classList.toggle("stale", pane.stale);
  view.root.classList.toggle("current", pane.is_current);
  view.root.dataset.state = pane.state;
  view.root.dataset.pane = pane.id;
  view.root.setAttribute("aria-label", pane.role ? `${pane.role}: ${pane.title}` : pane.title);
  view.root.setAttribute("aria-busy", String(BUSY.has(pane.state)));
  view.root.style.setProperty("--share", pane.share === null ? "50%" : `${Math.round(100 * pane.share)}%`);
  view.root.classList.toggle("plain", pane.share === null);
  put(view.title, pane.title);
  put(view.status, pane.status || STATES[pane.state]);
  put(view.recipe, pane.stale ? `Text of ${pane.stale_recipe}` : pane.recipe);
  const wanted = Math.max(1, pane.completions.length, data.num_completions);
  while (view.completions.length < wanted) view.completions.push(buildCompletion(view.body));
  while (view.completions.length > wanted) view.completions.pop().root.remove();
  view.completions.forEach((completion, k) => {
    const given = pane.completions[k] || { text: "", facts: [], done: false };
    const other = first && first.completions[k];
    const comparable = data.show_differences && other && other.done && given.done && pane.state !== "error";
    drawCompletion(completion, given, pane, comparable ? other.text : null, k);
    completion.text.dataset.hint = given.text ? "" : k === 0 ? pane.hint : "";
  });
}

function drawTrack(track, data) {
  track.root.hidden = data.position === null;
  if (data.position === null) return;
  track.dot.style.left = `${(100 * data.position).toFixed(1)}%`;
  track.dot.style.setProperty("--share", `${Math.round(100 * Math.min(1, data.position))}%`);
  track.root.setAttribute("aria-label", data.position_label);
}

const mounted = new WeakMap();

export default function ({ data, parentElement }) {
  let view = mounted.get(parentElement);
  if (!view) {
    const root = make("div", "panes", parentElement);
    const track = { root: make("div", "track", root) };
    track.root.setAttribute("role", "img");
    track.dot = make("span", "dot", track.root);
    view = { root, track, grid: make("div", "grid", root), panes: [] };
    mounted.set(parentElement, view);
  }
  view.root.style.setProperty("--lines", data.lines);
  view.root.style.setProperty("--columns", data.panes.length);
  view.root.style.setProperty("--end", data.end_color);
  drawTrack(view.track, data);
  while (view.panes.length < data.panes.length) view.panes.push(buildPane(view.grid));
  while (view.panes.length > data.panes.length) view.panes.pop().root.remove();
  data.panes.forEach((pane, k) => drawPane(view.panes[k], pane, k > 0 ? data.panes[0] : null, data));
}
