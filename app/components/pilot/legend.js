// The legend: a switch for every series, one row per iteration.

const LINES = { front: "Pareto front", predicted: "predicted" };

class Legend {
  constructor(node, owner) {
    this.node = node;
    this.owner = owner;
    this.buttons = new Map();
    node.addEventListener("click", (event) => {
      const id = event.target.closest("button")?.dataset.series;
      if (id) owner.toggle(id);
    });
  }

  /** Rows are made anew only when there are other series; so a button keeps its focus. */
  draw(model) {
    const entries = [
      ...model.series.filter((s) => s.kind === "sft"),
      { id: "front", label: LINES.front, iteration: null },
      { id: "predicted", label: LINES.predicted, iteration: null },
      ...model.series.filter((s) => s.kind !== "sft"),
    ];
    const drawn = entries.map((entry) => entry.id).join();
    if (drawn !== this.drawn) this.build(entries);
    this.drawn = drawn;
    for (const [id, button] of this.buttons) setAll(button, { "aria-pressed": String(!model.hidden.has(id)) });
  }

  build(entries) {
    this.buttons.clear();
    const rows = new Map();
    for (const entry of entries) {
      const heading = entry.iteration === null ? "" : `Iteration ${entry.iteration}`;
      if (!rows.has(heading)) rows.set(heading, html("div", { class: "row" }, html("span", {}, heading)));
      const button = html("button", { type: "button", "data-series": entry.id, title: "Show or hide" },
        symbolOf(entry), entry.label);
      this.buttons.set(entry.id, button);
      rows.get(heading).append(button);
    }
    this.node.replaceChildren(...rows.values());
  }
}

/** The small picture beside a name. */
function symbolOf({ id, kind, shape, color, towards }) {
  const picture = svg("svg", { class: `symbol ${kind ?? id}`, viewBox: "-12 -7 24 14", "aria-hidden": "true" });
  setAll(picture, { "--c": color ?? "var(--ink)" });
  if (id === "front") picture.append(svg("path", { class: "front-line", d: "M-11 5V1H1V-5H11" }));
  else if (id === "predicted") {
    picture.append(svg("rect", { class: "band", x: -11, y: -5, width: 22, height: 10 }));
    picture.append(svg("path", { class: "predicted", d: "M-11 0H11" }));
  } else if (kind === "training") picture.append(svg("path", { class: "run", d: "M-11 0H11" }));
  else {
    if (towards) picture.append(svg("path", { class: `liti ${kind} ${towards}`, d: "M-11 0H11" }));
    picture.append(svg("path", { class: "point", d: glyph(shape, 4.4) }));
  }
  return picture;
}
