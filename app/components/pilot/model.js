// What is shown and where the sliders are: state without any drawing, and what derives from it.

const ETA_STEP = 0.005; // of a drag; keys move by 0.01
const KEY_STEP = 0.01;
const PAGE_STEP = 0.1;

class Model {
  constructor() {
    this.data = null;
    this.place = null;
    this.weights = [];
    this.isMixed = false; // the weights were set by hand, with digits that mean nothing
    this.x = "kl";
    this.y = "reward";
    this.budget = null;
    this.hidden = new Set();
    this.extrapolate = false;
    this.evaluation = null;
    this.series = [];
    this.geometry = null;
    this.surface = null;
  }

  get numPolicies() {
    return this.data.policies.length;
  }

  /** Where the eta slider ends; a place beyond 1 shows itself. */
  get etaMax() {
    return this.extrapolate || this.place.eta > 1 ? 2 : 1;
  }

  /** Take what was measured and computed. */
  takeData(data) {
    const before = this.data;
    this.data = data;
    const points = before?.points_revision !== data.points_revision;
    const geometry = before?.geometry_revision !== data.geometry_revision;
    const prediction = geometry || before?.prediction_revision !== data.prediction_revision;
    if (points) {
      const known = evaluationsOf(data).some((note) => note.id === this.evaluation);
      this.showEvaluation(known ? this.evaluation : chooseEvaluation(data));
    }
    if (geometry) this.geometry = data.geometry && prepareGeometry(data.geometry);
    if (prediction) this.surface = this.geometry && data.prediction && makeSurface(this.geometry, data.prediction);
  }

  /** Take position, axes and switches as Python has them. */
  takeView(data) {
    this.x = data.x;
    this.y = data.y;
    this.budget = data.budget;
    this.hidden = new Set(data.hidden);
    this.extrapolate = data.extrapolate;
    this.moveTo(data.place);
  }

  showEvaluation(id) {
    this.evaluation = id;
    this.series = buildSeries(this.data.points, id);
  }

  /** Change fields of the place; `weights` may be given in full. */
  moveTo(change) {
    this.place = { ...this.place, ...change };
    this.weights = [...fullWeights(this.place, this.numPolicies)];
    if (change.weights) this.isMixed = false;
  }

  /** Give one policy a weight; the others keep their proportions and take the rest. */
  setWeight(index, value) {
    const rest = this.weights.reduce((sum, weight, m) => (m === index ? sum : sum + weight), 0);
    const others = this.numPolicies - 1;
    const weights = this.weights.map((weight, m) => {
      if (m === index) return value;
      return rest > 0 ? (weight / rest) * (1 - value) : (1 - value) / others;
    });
    this.moveTo({ weights });
    this.isMixed = true;
  }

  /** The place as it is sent. Weights that were given (by a point, a link) stay exactly as they are. */
  sentPlace() {
    const { iteration, method, towards, eta, weights } = this.place;
    return { iteration, method, weights: this.isMixed ? roundedWeights(this.weights) : weights, eta, towards };
  }

  /** The line along which eta moves at these weights: {line, quadratics, curves}; null, or {opposite}, without one. */
  get ray() {
    const { method, iteration } = this.place;
    const towards = lineEnd(this.place);
    if (this.geometry?.iteration !== iteration || method === "slerp-weights") return null;
    if (this.geometry.numPolicies !== this.numPolicies) return null;
    const key = [method, towards, iteration, this.etaMax, ...this.weights].join();
    if (this.cached?.key !== key || this.cached.geometry !== this.geometry || this.cached.surface !== this.surface) {
      this.cached = { key, geometry: this.geometry, surface: this.surface, ...this.makeRay(method, towards) };
    }
    return this.cached;
  }

  makeRay(method, towards, weights = this.weights) {
    const line = makeLine(this.geometry, method, weights, towards);
    if (line.opposite !== undefined) return line;
    return { line, quadratics: this.surface && lineDistances(this.surface, line), curves: new Map() };
  }

  /** Whether a metric can be predicted where the sliders are. */
  predicts(metric) {
    return Boolean(this.ray?.quadratics && this.surface.metrics[metric]);
  }

  /** The predicted metric along eta = 0, ETA_STEP, ...; null where it is not predicted. */
  curve(metric) {
    if (!this.predicts(metric)) return null;
    const { curves, quadratics } = this.ray;
    if (!curves.has(metric)) {
      const count = Math.round(this.etaMax / ETA_STEP) + 1;
      curves.set(metric, Float64Array.from({ length: count }, (_, i) =>
        predictAt(this.surface, quadratics, i * ETA_STEP, metric)));
    }
    return curves.get(metric);
  }

  /** The measured point at a place, in the evaluation that is shown. */
  measuredAt(place) {
    const isHere = (point) => point.place && samePlace(point.place, place, this.numPolicies);
    for (const series of this.series) {
      if (series.kind === "training") continue;
      const found = series.points.find(isHere);
      if (found) return found;
    }
    return null;
  }

  /** Here and now: the measured point, if there is one; value and error of any metric, null where it is unknown. */
  get here() {
    const measured = this.measuredAt(this.place);
    const value = (metric) => {
      const known = measured?.metrics[metric];
      if (known) return { value: known[0], error: known[1], isMeasured: true };
      if (!this.predicts(metric)) return null;
      const predicted = predictAt(this.surface, this.ray.quadratics, this.place.eta, metric);
      return { value: predicted, error: this.surface.metrics[metric].loo_rmse, isMeasured: false };
    };
    return { measured, value };
  }

  /** [x, y] of any place, measured or else predicted; null where neither is known. */
  positionOf(place) {
    const measured = this.measuredAt(place);
    const known = [measured?.metrics[this.x], measured?.metrics[this.y]];
    if (known[0] && known[1]) return known.map((metric) => metric[0]);
    const canPredict = this.surface && place.iteration === this.geometry.iteration && place.method !== "slerp-weights";
    if (!canPredict || !this.surface.metrics[this.x] || !this.surface.metrics[this.y]) return null;
    const ray = this.makeRay(place.method, lineEnd(place), fullWeights(place, this.numPolicies));
    if (ray.opposite !== undefined) return null;
    return [this.x, this.y].map((metric) => predictAt(this.surface, ray.quadratics, place.eta, metric));
  }

  /** The largest eta whose predicted KL is within the budget; 0 if none is, null without a prediction. */
  etaWithin(budget) {
    const curve = this.curve("kl");
    if (!curve) return null;
    let i = curve.length - 1;
    while (i > 0 && curve[i] > budget) i--;
    return Math.round(i * ETA_STEP * 1e4) / 1e4;
  }

  /** Why nothing is predicted here, in one line; empty where something is. */
  get whyNoPrediction() {
    if (this.place.method === "slerp-weights") return "SLERP of weights is known only where it was measured";
    if (!this.geometry) return "No prediction yet: the geometry is being computed";
    if (this.geometry.iteration !== this.place.iteration) return `Iteration ${this.place.iteration} is being opened`;
    const ray = this.ray;
    if (ray?.opposite !== undefined) return `No SLERP: task vectors in ${ray.opposite} are opposite. LERP works.`;
    return ray?.quadratics ? "" : "No prediction yet: it needs four measured points";
  }
}

/** Where eta = 0 is: in iteration 1 always the SFT policy. */
function lineEnd(place) {
  return place.iteration === 1 ? "sft" : place.towards;
}

/** Four decimals that add up to 1; none where they are all alike. */
function roundedWeights(weights) {
  if (weights.every((weight) => Math.abs(weight - 1 / weights.length) < 5e-5)) return [];
  const rounded = weights.map((weight) => Math.round(weight * 1e4) / 1e4);
  const largest = rounded.indexOf(Math.max(...rounded));
  const rest = rounded.reduce((sum, weight, m) => (m === largest ? sum : sum + weight), 0);
  rounded[largest] = Math.round((1 - rest) * 1e4) / 1e4;
  return rounded;
}
