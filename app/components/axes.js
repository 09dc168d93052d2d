// Spans and ticks of an axis: joined in front of the scripts of every component that draws one.

const ALIKE = 1e-9; // values closer than this part of their size are the same but for rounding
const MOST_TICKS = 200;

/** How far two values are apart; values that are alike but for rounding count as one, and one value is its own span. */
function spanOf(low, high) {
  const size = Math.max(Math.abs(low), Math.abs(high));
  return high - low > ALIKE * size ? high - low : size || 1;
}

/** The step 1, 2 or 5 times a power of ten with which a span has about `count` steps. */
function niceStep(span, count) {
  const raw = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const lead = raw / power;
  return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

/** Round values inside [low, high], and the decimals that they need. */
function niceTicks(low, high, count) {
  const step = niceStep(spanOf(low, high), count);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  // Counted from the first: beyond 2 ** 53 adding 1 to a number does not change it.
  const first = Math.ceil(low / step - 1e-9);
  const amount = Math.min(Math.floor(high / step + 1e-9) - first, MOST_TICKS);
  for (let k = 0; k <= amount; k++) values.push((first + k) * step);
  return { values, decimals };
}
