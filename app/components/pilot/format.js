// Numbers and names as text.

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
