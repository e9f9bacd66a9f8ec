// What a model responded, and how long each step took.

import { element, table } from "./dom.js";
import { parse, write } from "./numbers.js";

const LINES_TYPE = "application/jsonl";
const MOST_SHOWN = 20_000;
const MOST_ROWS = 50;
const MOST_COLUMNS = 20;
const MOST_CELL = 60;

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const seconds = (value) => `${value.toFixed(2)} s`;
const ms = (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`;

function bars(rows) {
  const items = rows.map(({ label, share }) =>
    element(
      "li",
      {},
      element("span", { className: "bar-label" }, label),
      element("progress", { max: 1, value: share, "aria-label": label }),
      element("span", { className: "bar-value" }, percent(share)),
    ),
  );
  return element("ul", { className: "bars" }, items);
}

function raw(text) {
  const cut = text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)} …` : text;
  const code = { className: "code", tabIndex: 0, role: "region", "aria-label": "Response as JSON" };
  return element(
    "details",
    {},
    element("summary", {}, "Response as JSON"),
    element("pre", code, cut),
  );
}

function facts(value) {
  const plain = Object.entries(value).filter(([, one]) => one === null || !["object", "undefined"].includes(typeof one));
  return plain.length ? table("Facts", ["Name", "Value"], plain).node : null;
}

/** A value as a cell of a table; what is nested deeper stands in the JSON. */
function cell(value) {
  const text = typeof value === "object" ? write(value) : String(value);
  return text.length > MOST_CELL ? `${text.slice(0, MOST_CELL)} …` : text;
}

function tensorTable(name, rows) {
  const isNamed = !Array.isArray(rows[0]);
  const names = Object.keys(rows[0] ?? {});
  const heads = names.slice(0, MOST_COLUMNS);
  const shown = rows
    .slice(0, MOST_ROWS)
    .map((row, place) => [place, ...heads.map((head) => cell(row[head]))]);
  const cut = rows.length > MOST_ROWS || names.length > MOST_COLUMNS;
  const size = `${rows.length} rows of ${names.length} ${isNamed ? "classes" : "values"}`;
  const title = cut ? `${name}: the first of ${size}` : name;
  return table(title, ["row", ...heads], shown).node;
}

function tensorParts(value) {
  const named = Array.isArray(value) || typeof value !== "object" ? { output: value } : value;
  return Object.entries(named).map(([name, one]) => {
    const isTable =
      Array.isArray(one) && one.length > 0 && one.every((row) => row !== null && typeof row === "object");
    return isTable ? tensorTable(name, one) : element("p", {}, `${name}: ${cell(one)}`);
  });
}

function pictureParts(value) {
  const top = (value.top ?? []).map((one) => ({ label: one.label, share: one.probability }));
  const tags = value.tags?.length ? `Tags: ${value.tags.join(", ")}` : "No tag is sure enough.";
  if (top.length) return [bars(top), element("p", {}, tags), facts({ ...value, label: undefined, probability: undefined })];
  const score = typeof value.score === "number" ? [bars([{ label: value.verdict ?? "score", share: value.score }])] : [];
  return [...score, facts(value)];
}

function textParts(value) {
  const rows = Array.isArray(value) ? value : [value];
  if (rows.length && rows.every((row) => row && "label" in row && "score" in row)) {
    return [bars(rows.map((row) => ({ label: row.label, share: row.score })))];
  }
  if (rows.length && rows.every((row) => row && "entity" in row)) {
    const found = rows.map((row) => [row.word, row.entity, percent(row.score), `${row.start}–${row.end}`]);
    return [table("Tokens", ["Word", "Entity", "Score", "Characters"], found).node];
  }
  if (!Array.isArray(value)) return [facts(value)];
  return [element("p", {}, `${rows.length} ${rows.every(Array.isArray) ? "rows of numbers" : "values"}`)];
}

function historyParts(value) {
  const isExplained = value.items.some((one) => one.because);
  const why = (one) => one.because.map(({ title }) => title).join("; ");
  const rows = value.items.map((one) => [
    one.title,
    one.score.toFixed(3),
    ...(isExplained ? [why(one)] : []),
  ]);
  const head = ["Title", "Score", ...(isExplained ? ["Because of"] : [])];
  return [table("Recommended, best first", head, rows).node];
}

/** Segments of a recording, each as soon as it comes; gives the last line's value. */
async function segmentsView(place, response) {
  const { node, add } = table("Segments", ["From", "To", "Text", "Confidence"], []);
  place.replaceChildren(node);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = "";
  const show = (line) => {
    last = line;
    const value = JSON.parse(line);
    if (value.code) place.append(refusal(value));
    else if ("segments" in value) place.prepend(element("p", { className: "said" }, value.text || "Nothing is said."));
    else add([seconds(value.start), seconds(value.end), value.text, percent(value.confidence)]);
  };
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    lines.filter(Boolean).forEach(show);
    if (done) break;
  }
  const value = parse(last || "null");
  place.append(raw(write(value, "\n")));
  return value;
}

function refusal(value) {
  const text = `${value.code}: ${value.message}`;
  return element("p", { className: "error", role: "alert" }, text);
}

function parts(kind, value) {
  const found = { tensors: tensorParts, picture: pictureParts, text: textParts, history: historyParts }[kind];
  try {
    return found ? found(value) : [];
  } catch {
    return []; // a handler of one's own: the JSON below has it
  }
}

/** Show a response, its lines as they come; gives the steps' times where the last line has them. */
export async function responseView(place, response, kind) {
  const type = response.headers.get("content-type") ?? "";
  if (response.ok && type.startsWith(LINES_TYPE)) {
    return (await segmentsView(place, response))?.timings_ms ?? null;
  }
  const text = await response.text();
  let value = null;
  try {
    value = parse(text);
  } catch {
    place.replaceChildren(raw(text));
    return null;
  }
  const shown = response.ok ? parts(kind, value) : [refusal(value)];
  place.replaceChildren(...shown.filter(Boolean), raw(write(value, "\n")));
  return null;
}

/** What each step took, in milliseconds by name: the header stands before what follows it. */
function stepsOf(response, timings) {
  if (timings) return Object.entries(timings);
  const header = response.headers.get("server-timing") ?? "";
  return [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, dur]) => [name, Number(dur)]);
}

/** What each step took: in the worker as it says, and in all as the browser saw it. */
export function latency(response, timings, firstMs, wholeMs) {
  const steps = stepsOf(response, timings).map(([name, took]) => [`${name}, in the worker`, ms(took)]);
  const first = firstMs < 0.95 * wholeMs ? [["until the response began", ms(firstMs)]] : [];
  const rows = [...steps, ...first, ["whole request, in this browser", ms(wholeMs)]];
  return table("Latency", ["Step", "Time"], rows).node;
}
