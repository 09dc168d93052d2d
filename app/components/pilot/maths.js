// From a position of the sliders to coefficients, and from those to predicted metrics.
//
// The same formulas as warp_core/weights/coefficients.py (SLERP, eq. 26, LITI) and warp_core/service/documents.py
// (Prediction); a test compares the two to 1e-9. Shapes: L layers, M policies, K = M columns, or M + 1 where the last
// one is delta_sft = theta_sft - theta_init; every model is theta_init + sum_k c_k delta_k, per layer. Matrices with
// L rows are flat arrays, row by row.

const SIN_PARALLEL = 1e-6; // below this sin W the two directions count as parallel: LERP limit
const ANGLE_OPPOSITE = 1e-3; // this close to pi (radians) the path is undefined

/** Factors of two vectors whose cosine is given in their SLERP at lam; null where they are opposite. */
function slerpPair(cosine, lam) {
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (Math.PI - angle < ANGLE_OPPOSITE) return null;
  const sine = Math.sin(angle);
  if (sine < SIN_PARALLEL) return [1 - lam, lam];
  return [Math.sin((1 - lam) * angle) / sine, Math.sin(lam * angle) / sine];
}

/** Eq. 26 with general weights: factors of the first vectors of a Gram (rows of numbers); null: opposite vectors. */
function slerpCoefficients(gram, weights) {
  const x = new Float64Array(weights.length);
  let total = 0;
  for (let m = 0; m < weights.length; m++) {
    if (weights[m] === 0) continue;
    total += weights[m];
    let square = 0;
    let inner = 0;
    for (let i = 0; i < x.length; i++) {
      inner += gram[m][i] * x[i];
      for (let j = 0; j < x.length; j++) square += x[i] * gram[i][j] * x[j];
    }
    const scale = Math.sqrt(Math.max(square, 0)) * Math.sqrt(Math.max(gram[m][m], 0));
    const factors = total === weights[m] ? [0, 1] : slerpPair(scale > 0 ? inner / scale : 1, weights[m] / total);
    if (factors === null) return null;
    for (let i = 0; i < x.length; i++) x[i] *= factors[0];
    x[m] += factors[1];
  }
  return x;
}

/** Flat copies of a geometry document for the loops below. */
function prepareGeometry(json) {
  const numLayers = json.gram_LKK.length;
  const numColumns = numLayers ? json.gram_LKK[0].length : 0;
  return {
    iteration: json.iteration,
    layers: json.layers,
    numParams: json.num_params,
    rows: json.gram_LKK,
    gram: Float64Array.from(json.gram_LKK.flat(2)),
    numLayers,
    numColumns,
    numPolicies: numColumns - (json.has_sft_column ? 1 : 0),
    hasSftColumn: json.has_sft_column,
  };
}

/** Factors of the policies' task vectors before LITI, L x M; {opposite: layer} where SLERP is undefined. */
function mergedFactors(geometry, method, weights) {
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const shares = weights.map((weight) => weight / sum);
  const merged = new Float64Array(geometry.numLayers * shares.length);
  for (let l = 0; l < geometry.numLayers; l++) {
    const row = method === "lerp" ? shares : slerpCoefficients(geometry.rows[l], shares);
    if (row === null) return { opposite: geometry.layers[l] };
    merged.set(row, l * shares.length);
  }
  return { merged };
}

/**
 * The straight line along which eta moves: coefficients start + eta * direction, both L x K; `merged` is L x M.
 * It starts at theta_init, or, towards the SFT policy of a later iteration, at that. {opposite: layer} if undefined.
 */
function makeLine(geometry, method, weights, towards) {
  const found = mergedFactors(geometry, method, weights);
  if (found.opposite !== undefined) return found;
  const { numLayers, numColumns, numPolicies } = geometry;
  const start = new Float64Array(numLayers * numColumns);
  const direction = new Float64Array(numLayers * numColumns);
  const fromSft = geometry.hasSftColumn && towards === "sft";
  for (let l = 0; l < numLayers; l++) {
    for (let m = 0; m < numPolicies; m++) direction[l * numColumns + m] = found.merged[l * numPolicies + m];
    if (!fromSft) continue;
    start[l * numColumns + numPolicies] = 1;
    direction[l * numColumns + numPolicies] = -1;
  }
  return { start, direction, merged: found.merged };
}

/** Coefficients of the model at eta, L x K. */
function coefficientsAt(line, eta) {
  return line.start.map((value, i) => value + eta * line.direction[i]);
}

/** sum_l a_l^T G_l b_l. */
function innerProduct(geometry, a, b) {
  const { numLayers, numColumns, gram } = geometry;
  let total = 0;
  for (let l = 0, g = 0; l < numLayers; l++) {
    for (let i = 0; i < numColumns; i++) {
      const left = a[l * numColumns + i];
      for (let j = 0; j < numColumns; j++, g++) total += left * gram[g] * b[l * numColumns + j];
    }
  }
  return total;
}

/** Squared distance of two models in weight space, not scaled. */
function squaredDistance(geometry, a, b) {
  const difference = a.map((value, i) => value - b[i]);
  return innerProduct(geometry, difference, difference);
}

/** A prediction document with its points as flat arrays; the SFT policy is the last of them. */
function makeSurface(geometry, json) {
  return {
    geometry,
    scale: json.scale,
    anchors: [...json.points_PLK, json.sft_LK].map((rows) => Float64Array.from(rows.flat())),
    metrics: json.surfaces,
  };
}

/**
 * Squared distances, scaled, from the model at eta to every point of the surface, as polynomials in eta: q0, q1, q2 of
 * each, because the model moves along a straight line. So a whole curve costs hardly more than one position.
 */
function lineDistances(surface, line) {
  const { geometry, scale, anchors } = surface;
  const { numLayers, numColumns, gram } = geometry;
  const pulled = new Float64Array(line.direction.length); // G direction
  for (let l = 0, g = 0; l < numLayers; l++) {
    for (let i = 0; i < numColumns; i++) {
      for (let j = 0; j < numColumns; j++, g++) {
        pulled[l * numColumns + i] += gram[g] * line.direction[l * numColumns + j];
      }
    }
  }
  const dot = (values) => values.reduce((total, value, i) => total + value * pulled[i], 0);
  const square = dot(line.direction) / scale;
  const quadratics = new Float64Array(3 * anchors.length);
  anchors.forEach((anchor, p) => {
    const offset = line.start.map((value, i) => value - anchor[i]);
    quadratics[3 * p] = innerProduct(geometry, offset, offset) / scale;
    quadratics[3 * p + 1] = (2 * dot(offset)) / scale;
    quadratics[3 * p + 2] = square;
  });
  return quadratics;
}

/** The predicted metric at eta: trend in the distance u to the SFT policy, and what the measured points add to it. */
function predictAt(surface, quadratics, eta, name) {
  const { beta, alpha, lengthscale } = surface.metrics[name];
  const distance = (p) =>
    Math.max(quadratics[3 * p] + eta * (quadratics[3 * p + 1] + eta * quadratics[3 * p + 2]), 0);
  const u = Math.sqrt(distance(alpha.length));
  let value = 0;
  let power = 1;
  for (const factor of beta) {
    value += factor * power;
    power *= u;
  }
  const width = 2 * lengthscale * lengthscale;
  for (let p = 0; p < alpha.length; p++) value += alpha[p] * Math.exp(-distance(p) / width);
  return value;
}

/** How much of each policy, over layers: mean weighted by their parameters, least and most, before eta. */
function policyShares(geometry, line) {
  const { numLayers, numPolicies, numParams } = geometry;
  const total = numParams.reduce((sum, count) => sum + count, 0);
  return Array.from({ length: numPolicies }, (_, m) => {
    const share = { mean: 0, least: Infinity, most: -Infinity };
    for (let l = 0; l < numLayers; l++) {
      const value = line.merged[l * numPolicies + m];
      share.mean += (value * numParams[l]) / total;
      share.least = Math.min(share.least, value);
      share.most = Math.max(share.most, value);
    }
    return share;
  });
}
