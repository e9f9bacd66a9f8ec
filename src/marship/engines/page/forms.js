// A form for each kind of model. Each makes its element, and on demand the request: headers, body,
// and what stands for the body in code (text, or a file's name).

import { choice, element, labelled, unique } from "./dom.js";
import { recorder } from "./recorder.js";

const JSON_TYPE = "application/json";
const LINES_TYPE = "application/jsonl";
const MOST_FIELDS = 64;

function json(value, more = {}) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return { headers: { "Content-Type": JSON_TYPE, ...more }, body: text, text };
}

function file(blob, name, more = {}) {
  const type = blob.type || "application/octet-stream";
  return { headers: { "Content-Type": type, ...more }, body: blob, file: name };
}

const submit = (text = "Send") => element("button", { type: "submit" }, text);

function number(value, more = {}) {
  return element("input", { type: "number", step: "any", value, required: true, ...more });
}

/** The parameter of a query, as a field that may be empty. */
function parameterFields(parameters) {
  const fields = parameters.map((one) => {
    const { minimum } = one.schema;
    const field = element("input", { type: "number", step: 1, min: minimum ?? "", name: one.name });
    return [one.name, field, labelled(`Parameter ${one.name}`, field, one.schema.description ?? "")];
  });
  const query = () => {
    const given = fields.filter(([, field]) => field.value !== "");
    const text = given.map(([name, field]) => `${name}=${encodeURIComponent(field.value)}`);
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

function valueOf(spec, field) {
  if (spec.dtype === "str") return field.value;
  if (spec.dtype === "bool") return field.value === "true";
  return field.value === "" ? null : Number(field.value);
}

function numberGroup(spec, example) {
  const row = spec.shape.length === 2 ? (example?.[0] ?? []) : [example?.[0] ?? 0];
  const fields = Array.from({ length: width(spec) }, (_, place) => valueField(spec, row[place]));
  const nodes = fields.map((field, place) => labelled(`${spec.name} ${place}`, field));
  const node = element(
    "fieldset",
    {},
    element("legend", {}, spec.name),
    element("div", { className: "numbers" }, nodes),
  );
  const read = () => {
    const values = fields.map((field) => valueOf(spec, field));
    return spec.shape.length === 2 ? [values] : values;
  };
  return { node, read };
}

function firstExample(content) {
  const examples = Object.values(content[JSON_TYPE]?.examples ?? {});
  return examples[0]?.value;
}

function jsonField(value) {
  const text = value === undefined ? "" : JSON.stringify(value, null, 1);
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
  const example = firstExample(content);
  const whole = jsonField(example);
  const count = model.inputs.reduce((sum, spec) => sum + width(spec), 0);
  const canType = model.inputs.length > 0 && count <= MOST_FIELDS && model.inputs.every(isRow);
  const groups = canType
    ? model.inputs.map((spec) => numberGroup(spec, example?.[spec.name]))
    : [];
  let typed = canType;
  const typing = element("div", {}, groups.map((group) => group.node));
  const values = () =>
    Object.fromEntries(model.inputs.map((spec, place) => [spec.name, groups[place].read()]));
  const show = (way) => {
    if (typed && way === "JSON") whole.area.value = JSON.stringify(values(), null, 1);
    typed = way === "Numbers";
    typing.hidden = !typed;
    typing.querySelectorAll("input, select").forEach((field) => {
      field.disabled = !typed;
    });
    whole.node.hidden = typed;
  };
  whole.node.hidden = typed;
  const ways = canType ? choice("Give the request as", ["Numbers", "JSON"], "Numbers", show) : null;
  const node = element("form", {}, ways, typing, whole.node, submit());
  return { node, request: () => json(typed ? values() : whole.read()) };
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

function pictureForm(parameters) {
  const { nodes, query } = parameterFields(parameters);
  return fileForm({
    label: "Picture",
    accept: "image/*",
    paste: true,
    preview: (src) => element("img", { src, alt: "The picture that is sent" }),
    more: nodes,
    read: ({ blob, name }) => ({ ...file(blob, name), query: query() }),
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

function textForm(content) {
  const area = element("textarea", { rows: 6, required: true });
  const schemas = content[JSON_TYPE]?.schema?.anyOf ?? [];
  const hasTop = schemas.some((schema) => schema.properties?.top_k);
  const top = element("input", { type: "number", min: 1, step: 1 });
  const more = hasTop ? labelled("Labels", top, "How many to give, best first; empty for the best.") : null;
  const node = element("form", {}, labelled("Text", area), more, submit());
  const request = () => {
    const count = top.value === "" ? {} : { top_k: Number(top.value) };
    return json({ text: area.value, ...count });
  };
  return { node, request };
}

function historyForm(content) {
  const { schema } = content[JSON_TYPE];
  const { enum: items, "x-enum-descriptions": titles } = schema.properties.history.items;
  const history = [];
  const list = element("ol", { className: "history", "aria-label": "History" });
  const status = element("p", { className: "hint", role: "status" });
  const k = element("input", { type: "number", min: 1, step: 1, value: 10, required: true });
  const seen = element("input", { type: "checkbox", id: unique("seen") });
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
    element("div", { className: "check" }, seen, element("label", { htmlFor: seen.id }, "Also what is in the history")),
    submit("Recommend"),
  );
  const request = () => {
    if (!history.length) {
      search.focus();
      throw new Error("Add something to the history first.");
    }
    const chosen = history.map(({ item }) => item);
    return json({ history: chosen, k: Number(k.value), include_seen: seen.checked });
  };
  return { node, request };
}

// All else.

function rawForm(content) {
  const whole = jsonField(firstExample(content) ?? {});
  const node = element("form", {}, whole.node, submit());
  return { node, request: () => json(whole.read()) };
}

function encryptedNote() {
  const text =
    "This model takes encrypted requests, which marship.private makes. A browser has no keys for them.";
  return { node: element("p", {}, text), request: () => null };
}

/** The form of a model, by its kind. */
export function formOf(model, content, parameters) {
  const makers = {
    tensors: () => tensorForm(model, content),
    picture: () => pictureForm(parameters),
    recording: () => recordingForm(),
    text: () => textForm(content),
    history: () => historyForm(content),
    encrypted: encryptedNote,
  };
  return (makers[model.kind] ?? (() => rawForm(content)))();
}
