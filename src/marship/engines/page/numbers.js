// JSON whose integers keep all their digits: a number of JavaScript has 53 bits, ids and hashes 64.

const LONG = /(^|[[:,\s])-?\d{16,}\s*($|[\],}])/;
const INTEGER = /^-?\d+$/;

function exact(name, value, context) {
  const isWhole = typeof value === "number" && !Number.isSafeInteger(value);
  return isWhole && INTEGER.test(context?.source ?? "") ? BigInt(context.source) : value;
}

/** The value of a JSON text; integers that no number holds are BigInt. */
export function parse(text) {
  return LONG.test(text) ? JSON.parse(text, exact) : JSON.parse(text);
}

/** A value as JSON text, BigInt too: on one line, or on many behind a margin that begins with one. */
export function write(value, margin = null) {
  if (typeof value === "bigint") return String(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = margin === null ? null : `${margin} `;
  const gap = inner ?? "";
  const colon = margin === null ? ":" : ": ";
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((one) => write(one, inner))
    : Object.entries(value).map(([name, one]) => JSON.stringify(name) + colon + write(one, inner));
  const [open, close] = isList ? "[]" : "{}";
  return parts.length ? open + gap + parts.join(`,${gap}`) + (margin ?? "") + close : open + close;
}
