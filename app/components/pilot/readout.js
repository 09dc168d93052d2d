// What the position means: predicted or measured values, the formula with its numbers, how much of each policy.

const MAX_TERMS = 4; // policies that the formula names one by one

class Readout {
  constructor(root) {
    this.state = root.querySelector(".state");
    this.values = root.querySelector(".values");
    this.formula = root.querySelector(".formula");
    this.bar = root.querySelector(".shares");
    this.parts = root.querySelector(".parts");
    this.announcement = root.querySelector(".announcement");
    this.cells = new Map();
    this.segments = [];
  }

  draw(model) {
    const here = model.here;
    this.drawValues(model, here);
    const ray = model.ray;
    const shares = ray?.line ? policyShares(model.geometry, ray.line) : knownShares(model);
    this.drawFormula(model, shares);
    this.drawShares(model, shares);
  }

  /** After a move has ended: say once where it ended. */
  announce(model) {
    const values = [...this.cells.values()].map((cell) => `${cell.name.textContent} ${cell.value.textContent}`);
    setText(this.announcement, `eta ${formatShare(model.place.eta)}, ${this.state.textContent}: ${values.join(", ")}`);
  }

  drawValues(model, here) {
    const metrics = [...new Set(["reward", "kl", model.y, model.x])];
    if (metrics.join() !== this.drawnMetrics) this.buildCells(metrics);
    this.drawnMetrics = metrics.join();
    let isMeasured = false;
    for (const metric of metrics) {
      const known = here.value(metric);
      const cell = this.cells.get(metric);
      setText(cell.value, known ? formatWithError(known.value, known.error) : "\u2013");
      cell.node.classList.toggle("predicted", Boolean(known && !known.isMeasured));
      isMeasured ||= Boolean(known?.isMeasured);
    }
    const why = model.whyNoPrediction;
    const measured = here.measured && `measured, n = ${here.measured.n}`;
    setText(this.state, isMeasured ? measured : why || "predicted, \u00b1 leave-one-out error");
    this.state.className = `state ${isMeasured ? "measured" : why ? "unknown" : "predicted"}`;
  }

  buildCells(metrics) {
    this.cells = new Map(metrics.map((metric) => {
      const { name, unit } = metricText(metric);
      const label = html("dt", {}, name, unit ? html("small", {}, ` ${unit}`) : "");
      const value = html("dd");
      return [metric, { node: html("div", {}, label, value), name: label, value }];
    }));
    this.values.replaceChildren(...[...this.cells.values()].map((cell) => cell.node));
  }

  /** theta = theta_sft + eta (share_1 delta_1 + ...), or, towards the SFT policy of a later iteration, LITI in full. */
  drawFormula(model, shares) {
    const { iteration, towards, eta } = model.place;
    const theta = (name) => ["\u03b8", name];
    const sum = [];
    shares.slice(0, MAX_TERMS).forEach((share, m) => {
      sum.push([`${m ? " + " : ""}${share ? share.mean.toFixed(2) : "?"} \u0394`, String(m + 1)]);
    });
    if (shares.length > MAX_TERMS) sum.push([" + \u2026"]);
    const [factor, rest] = [eta, 1 - eta].map((value) => formatShare(value).replace("-", MINUS));
    const terms = iteration > 1 && towards === "sft"
      ? [[` = ${rest} `], theta("SFT"), [` + ${factor} (`], theta("init"), [" + "], ...sum, [")"]]
      : [[" = "], theta(iteration > 1 ? "init" : "SFT"), [` + ${factor} (`], ...sum, [")"]];
    const drawn = JSON.stringify(terms);
    if (drawn === this.drawnFormula) return;
    this.drawnFormula = drawn;
    const nodes = [["\u03b8"], ...terms].flatMap(([text, sub]) => (sub ? [text, html("sub", {}, sub)] : [text]));
    this.formula.replaceChildren(...nodes);
  }

  drawShares(model, shares) {
    const { policies } = model.data;
    const { eta, iteration } = model.place;
    if (this.segments.length !== policies.length || this.drawnNames !== policies.join("\n")) this.buildShares(policies);
    this.drawnNames = policies.join("\n");
    // SLERP of M orthogonal vectors of one length adds up to sqrt(M) at most: the end of the scale.
    const limit = Math.sqrt(policies.length) * model.etaMax;
    this.bar.style.setProperty("--one", (1 / limit).toFixed(4));
    this.bar.parentElement.style.setProperty("--c", iterationColor(iteration));
    this.segments.forEach(({ segment, value, range }, m) => {
      const share = shares[m];
      segment.style.width = `${share ? Math.max(0, (100 * eta * share.mean) / limit).toFixed(2) : 0}%`;
      setText(value, share ? (eta * share.mean).toFixed(2) : "\u2013");
      const [least, most] = share ? [share.least, share.most].map((each) => fixed(eta * each, 2)) : ["", ""];
      setText(range, least === most ? "" : `(${least} to ${most})`);
    });
  }

  buildShares(policies) {
    const tint = (m) => (policies.length < 2 ? 1 : 1 - (0.66 * m) / (policies.length - 1)).toFixed(3);
    this.segments = policies.map((name, m) => {
      const swatch = html("i", { "--tint": tint(m) });
      const [value, range] = [html("b"), html("small")];
      const segment = html("span", { "--tint": tint(m) });
      return { segment, value, range, item: html("li", {}, swatch, html("span", {}, name), value, range) };
    });
    this.bar.replaceChildren(...this.segments.map((s) => s.segment));
    this.parts.replaceChildren(...this.segments.map((s) => s.item));
  }
}

/** Shares without a geometry: LERP's are the weights. */
function knownShares(model) {
  const isKnown = model.place.method === "lerp";
  return model.weights.map((weight) => (isKnown ? { mean: weight, least: weight, most: weight } : null));
}
