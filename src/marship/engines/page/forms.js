// A form for each kind of model. Each makes its element, and on demand the request: headers, body,
// and what stands for the body in code (text, or a file's name).

import { choice, element, labelled, unique } from "./dom.js";
import { parse, write } from "./numbers.js";
import { recorder } from "./recorder.js";

const JSON_TYPE = "application/json";
const LINES_TYPE = "application/jsonl";
const MOST_FIELDS = 64;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

function typed(text, type) {
  return { headers: { "Content-Type": type }, body: text, text };
}

const json = (value) => typed(typeof value === "string" ? value : write(value), JSON_TYPE);

function file(blob, name, more = {}) {
  const type = blob.type || "application/octet-stream";
  return { headers: { "Content-Type": type, ...more }, body: blob, file: name };
}

const submit = (text = "Send") => element("button", { type: "submit" }, text);

function number(value, more = {}) {
  return element("input", { type: "number", step: "any", value, required: true, ...more });
}

function parameterField({ name, required, schema }) {
  const { type, minimum, maximum, enum: values } = schema;
  const choices = values ?? (type === "boolean" ? [true, false] : null);
  if (choices) {
    const options = ["", ...choices].map((one) => element("option", { value: String(one) }, String(one)));
    return element("select", { name, required }, options);
  }
  if (type !== "integer" && type !== "number") return element("input", { type: "text", name, required });
  const step = type === "integer" ? 1 : "any";
  return element("input", { type: "number", step, min: minimum ?? "", max: maximum ?? "", name, required });
}

/** The parameters of a query, each as a field that may be empty. */
function parameterFields(parameters) {
  const fields = parameters.map((one) => {
    const field = parameterField(one);
    return [one.name, field, labelled(`Parameter ${one.name}`, field, one.schema.description ?? "")];
  });
  const query = () => {
    const given = fields.filter(([, field]) => field.value !== "");
    const text = given.map(([name, field]) => `${encodeURIComponent(name)}=${encodeURIComponent(field.value)}`);
    return text.length ? `?${text.join("&")}` : "";
  };
  return { nodes: fields.map(([, , node]) => node), query };
}

// Tensors.

const isRow = (spec) =>
  spec.shape.length <= 2 &&
  spec.shape.slice(1).every((axis) => typeof axis === "number") &&
  (typeof spec.shape[0] === "string" || spec.shape.length === 0);

const width = (spec) => (spec.shape.length === 2 ? spec.shape[1] : 1);

function valueField(spec, value) {
  if (spec.dtype === "str") return element("input", { type: "text", value: value ?? "" });
  if (spec.dtype === "bool") {
    const options = ["false", "true"].map((text) => element("option", { value: text }, text));
    const found = element("select", {}, options);
    found.value = String(Boolean(value));
    return found;
  }
  const [min, max] = spec.value_range ?? ["", ""];
  const step = spec.dtype.startsWith("float") ? "any" : 1;
  return number(value ?? 0, { min, max, step, required: !spec.takes_missing });
}

/** What was typed as JSON; a number digit by digit, where JSON writes it so. */
function textOf(spec, field) {
  if (spec.dtype === "str") return JSON.stringify(field.value);
  if (spec.dtype === "bool") return field.value;
  if (field.value === "") return "null";
  return NUMBER.test(field.value) ? field.value : String(Number(field.value));
}

function numberGroup(spec, example) {
  const rank = spec.shape.length;
  const row = rank === 2 ? (example?.[0] ?? []) : [(rank === 1 ? example?.[0] : example) ?? 0];
  const fields = Array.from({ length: width(spec) }, (_, place) => valueField(spec, row[place]));
  const nodes = fields.map((field, place) => labelled(`${spec.name} ${place}`, field));
  const node = element(
    "fieldset",
    {},
    element("legend", {}, spec.name),
    element("div", { className: "numbers" }, nodes),
  );
  const read = () => {
    const values = fields.map((field) => textOf(spec, field)).join(", ");
    return "[".repeat(rank) + values + "]".repeat(rank);
  };
  return { node, read };
}

function firstExample(content, type = JSON_TYPE) {
  const examples = Object.values(content[type]?.examples ?? {});
  return examples[0]?.value;
}

function jsonField(value) {
  const text = value === undefined ? "" : write(value, "\n");
  const area = element("textarea", { rows: 10, spellcheck: false, className: "code" });
  area.value = text;
  const read = () => {
    try {
      JSON.parse(area.value);
    } catch (error) {
      area.focus();
      throw new Error(`The request must be JSON: ${error.message}`);
    }
    return area.value;
  };
  return { area, node: labelled("Request as JSON", area), read };
}

function tensorForm(model, content) {
  const example = firstExample(content) ?? (model.inputs.length ? undefined : {});
  const whole = jsonField(example);
  const count = model.inputs.reduce((sum, spec) => sum + width(spec), 0);
  const canType = model.inputs.length > 0 && count <= MOST_FIELDS && model.inputs.every(isRow);
  const groups = canType
    ? model.inputs.map((spec) => numberGroup(spec, example?.[spec.name]))
    : [];
  let isTyping = canType;
  const typing = element("div", {}, groups.map((group) => group.node));
  const values = () => {
    const each = groups.map((group, place) => `${JSON.stringify(model.inputs[place].name)}: ${group.read()}`);
    return `{${each.join(", ")}}`;
  };
  let copied = values();
  const show = (way) => {
    if (isTyping && way === "JSON" && values() !== copied) { // else it has what was written there
      copied = values();
      whole.area.value = write(parse(copied), "\n");
    }
    isTyping = way === "Numbers";
    typing.hidden = !isTyping;
    typing.querySelectorAll("input, select").forEach((field) => {
      field.disabled = !isTyping;
    });
    whole.node.hidden = isTyping;
  };
  whole.node.hidden = isTyping;
  const ways = canType ? choice("Give the request as", ["Numbers", "JSON"], "Numbers", show) : null;
  const node = element("form", {}, ways, typing, whole.node, submit());
  return { node, request: () => json(isTyping ? values() : whole.read()) };
}

// Pictures and recordings.

function fileForm({ label, accept, preview, more = [], read, paste = false }) {
  let chosen = null;
  let source = "";
  const shown = element("div", { className: "preview" });
  const name = element("p", { className: "hint", role: "status" });
  const take = (blob, as) => {
    chosen = { blob, name: as };
    name.textContent = `${as}, ${Math.ceil(blob.size / 1000)} kB`;
    URL.revokeObjectURL(source);
    source = URL.createObjectURL(blob);
    shown.replaceChildren(preview(source));
  };
  const input = element("input", {
    type: "file",
    accept,
    onchange: () => input.files[0] && take(input.files[0], input.files[0].name),
  });
  const field = labelled(label, input, paste ? "Or drop one here, or paste one." : "Or drop one here.");
  const zone = element("div", { className: "drop" }, field, shown, name);
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const [dropped] = event.dataTransfer.files;
    if (dropped) take(dropped, dropped.name);
  });
  const node = element("form", {}, zone, more, submit());
  if (paste) {
    document.addEventListener("paste", (event) => {
      const [pasted] = event.clipboardData?.files ?? [];
      if (pasted && node.isConnected) {
        event.preventDefault();
        take(pasted, pasted.name || "pasted.png");
      }
    });
  }
  const request = () => {
    if (!chosen) {
      input.focus();
      throw new Error("Choose a file first.");
    }
    return read(chosen);
  };
  return { node, request, take };
}

function pictureForm() {
  return fileForm({
    label: "Picture",
    accept: "image/*",
    paste: true,
    preview: (src) => element("img", { src, alt: "The picture that is sent" }),
    read: ({ blob, name }) => file(blob, name),
  });
}

function recordingForm() {
  const place = element("div", { className: "field" });
  const form = fileForm({
    label: "Recording",
    accept: "audio/*",
    preview: (src) => element("audio", { src, controls: true, "aria-label": "The recording" }),
    more: [place],
    read: ({ blob, name }) => file(blob, name, { Accept: LINES_TYPE }),
  });
  place.append(recorder((blob) => form.take(blob, "recording.wav")));
  return form;
}

// Texts and histories.

function hasField(content, name) {
  const schema = content[JSON_TYPE]?.schema ?? {};
  return (schema.anyOf ?? [schema]).some((one) => one.properties?.[name]);
}

function textForm(content) {
  const area = element("textarea", { rows: 6, required: true });
  const top = element("input", { type: "number", min: 1, step: 1 });
  const covers = hasField(content, "top_k") ? ["top_k"] : [];
  const more = covers.length ? labelled("Labels", top, "How many to give, best first; empty for the best.") : null;
  const node = element("form", {}, labelled("Text", area), more, submit());
  const request = () => {
    const count = top.value === "" ? {} : { top_k: Number(top.value) };
    return json({ text: area.value, ...count });
  };
  return { node, request, covers };
}

/** A text as it is, of a type that the model declares. */
function plainForm(content, type) {
  const area = element("textarea", { rows: 6, value: firstExample(content, type) ?? "" });
  const node = element("form", {}, labelled("Text", area), submit());
  return { node, request: () => typed(area.value, type) };
}

function checkbox(text) {
  const field = element("input", { type: "checkbox", id: unique("check") });
  const label = element("label", { htmlFor: field.id }, text);
  return { field, node: element("div", { className: "check" }, field, label) };
}

function historyForm(content) {
  const { schema } = content[JSON_TYPE];
  const { enum: items, "x-enum-descriptions": titles } = schema.properties.history.items;
  const history = [];
  const list = element("ol", { className: "history", "aria-label": "History" });
  const status = element("p", { className: "hint", role: "status" });
  const k = element("input", { type: "number", min: 1, step: 1, value: 10, required: true });
  const seen = checkbox("Also what is in the history");
  const why = checkbox("Say why");
  const explains = "explain" in schema.properties; // archives packed earlier do not
  const id = unique("titles");
  const options = (titles ?? []).map((value) => element("option", { value }));
  const search = element("input", { type: "text", list: titles ? id : null, autocomplete: "off" });

  function show() {
    list.replaceChildren(
      ...history.map(({ title }, place) => {
        const remove = () => {
          history.splice(place, 1);
          show();
          search.focus();
        };
        const label = `Remove ${title}`;
        const button = { type: "button", className: "quiet", "aria-label": label, onclick: remove };
        return element("li", {}, element("span", {}, title), element("button", button, "×"));
      }),
    );
  }

  function find(text) {
    if (!titles) return /^\d+$/.test(text) ? { item: Number(text), title: text } : null;
    const lower = text.toLowerCase();
    let place = titles.findIndex((title) => title.toLowerCase() === lower);
    if (place < 0) place = titles.findIndex((title) => title.toLowerCase().includes(lower));
    return place < 0 ? null : { item: items[place], title: titles[place] };
  }

  function add() {
    const text = search.value.trim();
    const found = text ? find(text) : null;
    status.textContent = found ? `${found.title} is added.` : `Nothing is named ${text}.`;
    if (!found) return;
    history.push(found);
    search.value = "";
    show();
  }

  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      add();
    }
  });
  const row = element(
    "div",
    { className: "row" },
    labelled(titles ? "Find by name" : "Item number", search),
    element("button", { type: "button", className: "second", onclick: add }, "Add"),
  );
  const node = element(
    "form",
    {},
    row,
    titles ? element("datalist", { id }, options) : null,
    status,
    list,
    labelled("How many to recommend", k),
    seen.node,
    explains ? why.node : null,
    submit("Recommend"),
  );
  const request = () => {
    if (!history.length) {
      search.focus();
      throw new Error("Add something to the history first.");
    }
    const chosen = history.map(({ item }) => item);
    const explain = explains ? { explain: why.field.checked } : {};
    return json({ history: chosen, k: Number(k.value), include_seen: seen.field.checked, ...explain });
  };
  return { node, request };
}

// All else.

function rawForm(content) {
  const types = Object.keys(content);
  const textType = types.find((type) => type.startsWith("text/"));
  if (!content[JSON_TYPE] && textType) return plainForm(content, textType);
  if (!content[JSON_TYPE]) {
    const read = ({ blob, name }) => ({ ...file(blob, name), headers: { "Content-Type": types[0] } });
    return fileForm({ label: "File", accept: "", preview: () => "", read });
  }
  const whole = jsonField(firstExample(content) ?? {});
  const node = element("form", {}, whole.node, submit());
  return { node, request: () => json(whole.read()) };
}

function encryptedNote() {
  const text =
    "This model takes encrypted requests, which marship.private makes. A browser has no keys for them.";
  return { node: element("p", {}, text), request: () => null };
}

function bodyForm(model) {
  const { kind, content } = model;
  if (kind === "tensors") return tensorForm(model, content);
  if (kind === "picture") return pictureForm();
  if (kind === "recording") return recordingForm();
  if (kind === "text" && hasField(content, "text")) return textForm(content);
  if (kind === "history" && content[JSON_TYPE]?.schema?.properties?.history?.items) return historyForm(content);
  return kind === "encrypted" ? encryptedNote() : rawForm(content);
}

/** The form of a model, by its kind and what it declares. */
export function formOf(model) {
  const form = bodyForm(model);
  const isAsked = (one) => one.in === "query" && !form.covers?.includes(one.name);
  const { nodes, query } = parameterFields(model.parameters.filter(isAsked));
  form.node.querySelector("button[type=submit]")?.before(...nodes);
  return { node: form.node, request: () => ({ ...form.request(), query: query() }) };
}
