// Sliders, choices and the budget; the readout is in readout.js.

class Controls {
  constructor(root, owner) {
    this.owner = owner;
    this.model = owner.model;
    this.message = root.querySelector(".message");
    this.say = (text) => setText(this.message, text);
    this.sliders = root.querySelector(".sliders");
    this.buildChoices(root.querySelector(".choices"));
    this.buildEta();
    this.buildBudget(root.querySelector(".field.budget"));
    this.equal = html("button", { type: "button", class: "link" }, "all alike");
    this.equal.addEventListener("click", () => owner.set({ place: { weights: [] } }));
    this.weightFields = [];
    this.readout = new Readout(root);
  }

  buildChoices(node) {
    const { owner } = this;
    const pick = (place) => owner.set({ place });
    this.iteration = new Choice("iteration", "Iteration", (value) => pick({ iteration: Number(value) }));
    this.method = new Choice("method", "Method", (method) => pick({ method }));
    this.towards = new Choice("towards", "LITI towards", (towards) => pick({ towards }));
    node.append(this.iteration.node, this.towards.node, this.method.node);
  }

  buildEta() {
    const { owner, model } = this;
    this.eta = new SliderField({
      label: "\u03b7", name: "eta", step: ETA_STEP, owner, say: this.say, max: () => model.etaMax,
      toChange: (eta) => ({ place: { eta } }),
    });
    this.further = html("button", { type: "button", class: "link" }, "extrapolate to 2");
    this.further.addEventListener("click", () => {
      const extrapolate = !model.extrapolate;
      const eta = extrapolate ? model.place.eta : Math.min(model.place.eta, 1);
      owner.set({ extrapolate, place: { eta } });
    });
    const name = html("span", {}, "LITI \u03b7: 0 start, 1 merged policies");
    this.etaHeading = html("div", { class: "heading" }, name, this.further);
  }

  buildBudget(node) {
    const { owner, model } = this;
    const [button, note, input] = node.children;
    this.budgetButton = button;
    this.budgetNote = note;
    this.budget = new NumberField(input, {
      name: "KL budget", max: () => Infinity, say: this.say, take: (value) => owner.set(owner.withBudget(value)),
    });
    button.addEventListener("click", () => {
      owner.set({ budget: model.budget === null ? this.firstBudget() : null });
    });
  }

  /** A budget to begin with, that moves nothing: the KL that is shown, rounded up, or 10 nats where it is about 0. */
  firstBudget() {
    const kl = this.model.here.value("kl")?.value ?? 0;
    const step = niceStep(Math.max(kl, 0), 10);
    return kl > 0.05 ? Number((Math.ceil(kl / step) * step).toPrecision(6)) : 10;
  }

  /** One slider for lambda with two policies, one for each weight with more, none with one. */
  buildWeights(policies) {
    const { owner, model, say } = this;
    const reset = () => owner.set({ place: { weights: [] } });
    const common = { step: 0.01, owner, say, max: () => 1, onDouble: reset };
    this.weightFields = policies.length < 2 ? [] : policies.length === 2
      ? [new SliderField({
          ...common, label: "\u03bb", name: `lambda, share of ${policies[1]}`,
          toChange: (lam) => ({ weight: [1, lam] }),
        })]
      : policies.map((name, m) => new SliderField({
          ...common, label: name, name: `weight of ${name}`, toChange: (weight) => ({ weight: [m, weight] }),
        }));
    const ends = policies.length === 2 ? `\u03bb: 0 is ${policies[0]}, 1 is ${policies[1]}` : "Weights of the policies";
    const heading = html("div", { class: "heading" }, html("span", {}, ends), this.equal);
    const fields = this.weightFields.map((field) => field.node);
    this.sliders.classList.toggle("many", policies.length > 3);
    this.sliders.replaceChildren(this.etaHeading, this.eta.node, ...(fields.length ? [heading, ...fields] : []));
  }

  /** Show the state. Called on every frame of a drag: it writes only what differs, and reads no layout. */
  draw() {
    const { model } = this;
    const { place, data } = model;
    const names = data.policies.join("\n");
    if (names !== this.drawnPolicies) this.buildWeights(data.policies);
    this.drawnPolicies = names;
    this.drawChoices(place, data);
    this.eta.draw(place.eta, formatShare(place.eta));
    this.eta.drawMarks(this.measuredEtas());
    setAll(this.further, { "aria-pressed": String(model.etaMax > 1) });
    this.weightFields.forEach((field, m) => {
      const value = this.weightFields.length === 1 ? model.weights[1] : model.weights[m];
      field.draw(value, formatShare(value));
      field.node.style.setProperty("--c", iterationColor(place.iteration));
    });
    this.drawBudget();
    this.readout.draw(model);
  }

  drawChoices(place, data) {
    this.iteration.node.hidden = this.towards.node.hidden = data.iterations < 2;
    const numbers = Array.from({ length: data.iterations }, (_, i) => [String(i + 1), String(i + 1)]);
    this.iteration.draw(numbers, place.iteration);
    const isKnown = place.method === "slerp-weights" || data.points.some((p) => p.place?.method === "slerp-weights");
    const methods = Object.entries(METHODS).filter(([id]) => id !== "slerp-weights" || isKnown);
    this.method.draw(methods, place.method);
    const isFirst = place.iteration < 2; // its init is the SFT policy
    this.towards.draw([["sft", "SFT"], ["init", "init"]], isFirst ? "sft" : place.towards, isFirst);
  }

  /** The etas at which something was measured with these weights. */
  measuredEtas() {
    const { model } = this;
    const found = new Set();
    const place = { ...model.place };
    for (const series of model.series) {
      for (const point of series.points) {
        if (!point.place || point.place.eta > model.etaMax) continue;
        place.eta = point.place.eta;
        if (samePlace(point.place, place, model.numPolicies)) found.add(place.eta);
      }
    }
    return [...found].sort((a, b) => a - b);
  }

  drawBudget() {
    const { model } = this;
    const isOn = model.budget !== null;
    setAll(this.budgetButton, { "aria-pressed": String(isOn) });
    this.budget.input.disabled = !isOn;
    this.budget.draw(isOn ? formatNumber(model.budget) : "");
    setText(this.budgetNote, isOn ? this.budgetText() : "");
  }

  budgetText() {
    const kl = this.model.here.value("kl");
    if (!kl) return "nats; KL is not predicted here";
    const room = this.model.budget - kl.value;
    if (room < -0.005) return `over by ${formatNumber(-room)} nats`;
    return room < 0.005 ? "nats, used up" : `${formatNumber(room)} nats left`;
  }
}
