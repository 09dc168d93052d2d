// Measured points: which belong together, what is joined, and which of them is where the sliders are.

// Okabe and Ito's palette, which colour-blind readers can tell apart; one colour per iteration.
const ITERATION_COLORS = ["#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9", "#E69F00"];
const SHAPES = { sft: "star", policy: "diamond", slerp: "circle", lerp: "square", "slerp-weights": "triangle" };
const TOLERANCE = 1e-6; // two weights or etas closer than this are one
const KIND_ORDER = { policy: 0, slerp: 1, lerp: 2, "slerp-weights": 3, merge: 4, training: 5 };

/** Weights of a place, one per policy: all alike where it names none. */
function fullWeights(place, numPolicies) {
  if (place.weights && place.weights.length === numPolicies) return place.weights;
  return Array(numPolicies).fill(1 / numPolicies);
}

/** Whether the place is the SFT policy itself. */
function isSft(place) {
  return place.eta === 0 && (place.towards === "sft" || place.iteration === 1);
}

const isClose = (a, b) => Math.abs(a - b) <= TOLERANCE;

/** Whether two places are one model, up to rounding. With one policy alone the method makes no difference. */
function samePlace(a, b, numPolicies) {
  if (isSft(a) || isSft(b)) return isSft(a) && isSft(b);
  if (a.iteration !== b.iteration || !isClose(a.eta, b.eta)) return false;
  if (a.iteration > 1 && a.towards !== b.towards && !isClose(a.eta, 1)) return false;
  const weights = fullWeights(a, numPolicies);
  const others = fullWeights(b, numPolicies);
  if (!weights.every((weight, m) => isClose(weight, others[m]))) return false;
  return a.method === b.method || weights.some((weight) => isClose(weight, 1));
}

/** The evaluation to show first: the default one, or where nothing was measured so, that of most points. */
function chooseEvaluation(data) {
  const counts = new Map();
  for (const point of data.points) {
    if (point.kind !== "training") counts.set(point.evaluation, (counts.get(point.evaluation) || 0) + 1);
  }
  const standard = data.evaluations.find((note) => note.is_default);
  if (standard && (counts.has(standard.id) || counts.size === 0)) return standard.id;
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? null;
}

/** Evaluations that measured points have, as [{id, label}]: several of them do not compare. */
function evaluationsOf(data) {
  const used = new Set(data.points.filter((p) => p.kind !== "training").map((p) => p.evaluation));
  return data.evaluations.filter((note) => used.has(note.id));
}

/** The iteration's place among the colours. */
function iterationColor(iteration) {
  return ITERATION_COLORS[((iteration || 1) - 1) % ITERATION_COLORS.length];
}

function seriesOf(point) {
  if (point.kind === "sft") return { id: "sft", kind: "sft", label: "SFT policy", iteration: null };
  const iteration = point.iteration ?? point.place?.iteration ?? 1;
  const base = { iteration, color: iterationColor(iteration) };
  if (point.kind === "policy") return { ...base, id: `i${iteration}.policy`, kind: "policy", label: "policies" };
  if (point.kind === "training") return { ...base, id: `i${iteration}.training`, kind: "training", label: "RL runs" };
  if (!point.place) return { ...base, id: `i${iteration}.merge`, kind: "merge", label: "other merges" };
  const { method, towards } = point.place;
  const toInit = iteration > 1 && towards === "init";
  return {
    ...base,
    id: `i${iteration}.${method}${toInit ? ".init" : ""}`,
    kind: method,
    towards: toInit ? "init" : "sft",
    label: METHODS[method] + (toInit ? " to init" : ""),
  };
}

/** Lines through the points of a series: merges that differ in eta alone, moments of one RL run. */
function pathsOf(series, sft, ends) {
  if (["sft", "policy", "merge"].includes(series.kind)) return [];
  const groups = new Map();
  for (const point of series.points) {
    const weights = point.place?.weights ?? [];
    const even = weights.every((weight) => isClose(weight, 1 / weights.length));
    const key = series.kind === "training" ? point.policy : even ? "" : weights.map((w) => w.toFixed(5)).join();
    groups.set(key, [...(groups.get(key) || []), point]);
  }
  return [...groups].filter(([, members]) => members.length > 1).map(([key, members]) => {
    if (series.kind === "training") return members.sort((a, b) => a.step - b.step);
    members.sort((a, b) => a.place.eta - b.place.eta);
    // At eta = 0 a merge is the SFT policy itself, and at eta = 1 both ways of LITI are one model.
    if (sft && series.towards === "sft" && members[0].place.eta > 0) members.unshift(sft);
    const end = ends.get(`${series.iteration}.${series.kind}.${key}`);
    if (end && !members.some((point) => point.place.eta >= 1)) members.push(end);
    else if (!end && members.at(-1).place.eta === 1) {
      ends.set(`${series.iteration}.${series.kind}.${key}`, members.at(-1));
    }
    return members;
  });
}

/**
 * Points of one evaluation as series, in the order of the legend: {id, kind, label, iteration, color, shape, points,
 * paths}. RL runs are always among them: they were measured while training, in their own way.
 */
function buildSeries(points, evaluation) {
  const found = new Map();
  const sft = points.find((point) => point.kind === "sft" && point.evaluation === evaluation);
  for (const point of points) {
    if (point.kind !== "training" && point.evaluation !== evaluation) continue;
    if (sft && point !== sft && point.place && isSft(point.place)) continue; // a merge with eta 0 is the same point
    const series = seriesOf(point);
    if (!found.has(series.id)) {
      found.set(series.id, { ...series, shape: SHAPES[series.kind] || "cross", points: [], paths: [] });
    }
    found.get(series.id).points.push(point);
  }
  const order = (s) => [s.iteration ?? 0, KIND_ORDER[s.kind] ?? -1, s.towards === "init" ? 1 : 0];
  const list = [...found.values()].sort((a, b) => {
    const [left, right] = [order(a), order(b)];
    return left[0] - right[0] || left[1] - right[1] || left[2] - right[2];
  });
  const ends = new Map();
  for (const series of list) series.paths = pathsOf(series, sft, ends);
  return list;
}

/** Corners of the Pareto front as a staircase in (KL, reward): the reward that a KL up to here can buy. */
function paretoPoints(series) {
  return series
    .filter((s) => s.kind !== "training")
    .flatMap((s) => s.points)
    .filter((point) => !point.dominated)
    .sort((a, b) => a.metrics.kl[0] - b.metrics.kl[0] || a.metrics.reward[0] - b.metrics.reward[0]);
}
