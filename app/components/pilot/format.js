// Numbers, ticks and names as text.

const MINUS = "\u2212";
const PLUS_MINUS = "\u00b1";
const METRICS = {
  kl: { name: "KL", title: "KL to the SFT policy (nats per completion)", unit: "nats" },
  reward: { name: "reward", title: "reward", unit: "" },
  length: { name: "length", title: "length (tokens per completion)", unit: "tokens" },
  diversity: { name: "diversity", title: "diversity (0 to 1)", unit: "" },
};
const METHODS = { slerp: "SLERP", lerp: "LERP", "slerp-weights": "SLERP of weights" };

/** Name, axis title and unit of a metric; parts of the reward are called reward:NAME. */
function metricText(metric) {
  if (METRICS[metric]) return METRICS[metric];
  const name = metric.replace(/^reward:/, "reward: ");
  return { name, title: name, unit: "" };
}

function decimalsOf(value) {
  const size = Math.abs(value);
  if (size >= 0.1 || size === 0) return Math.max(0, 2 - Math.max(0, Math.floor(Math.log10(size || 1))));
  return Math.min(6, 1 - Math.floor(Math.log10(size)));
}

function fixed(value, decimals) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", MINUS);
}

/** A number for people: 123, 12.3, 1.23, 0.12, and two digits of what is smaller. */
function formatNumber(value) {
  return fixed(value, decimalsOf(value));
}

/** A mean and its standard error (may be null) with the same decimals, enough to see the error. */
function formatWithError(mean, error) {
  if (!error) return formatNumber(mean);
  const decimals = Math.min(6, Math.max(decimalsOf(mean), -Math.floor(Math.log10(error))));
  return `${fixed(mean, decimals)} ${PLUS_MINUS} ${fixed(error, decimals)}`;
}

/** A slider's value: two decimals, or three. */
function formatShare(value) {
  return value.toFixed(3).replace(/0$/, "");
}

/** What somebody typed as a number; a decimal comma is fine. NaN for anything else. */
function parseNumber(text) {
  const plain = text.trim().replace(",", ".").replace(MINUS, "-");
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
}

/** The step 1, 2 or 5 times a power of ten with which a span has about `count` steps. */
function niceStep(span, count) {
  const raw = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const lead = raw / power;
  return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

const MOST_TICKS = 200;

/** Round values inside [low, high], and the decimals that they need. */
function niceTicks(low, high, count) {
  const step = niceStep(high - low, count);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  // Counted from the first: beyond 2 ** 53 adding 1 to a number does not change it.
  const first = Math.ceil(low / step - 1e-9);
  const amount = Math.min(Math.floor(high / step + 1e-9) - first, MOST_TICKS);
  for (let k = 0; k <= amount; k++) values.push((first + k) * step);
  return { values, decimals };
}
