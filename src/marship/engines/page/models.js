// One model: what it is, its form, its responses, and the code of what was sent.

import { codeView } from "./code.js";
import { element, table } from "./dom.js";
import { formOf } from "./forms.js";
import { latency, responseView } from "./results.js";
import { ask, pathOf } from "./server.js";

const UNITS = ["bytes", "kB", "MB", "GB"];

function size(bytes) {
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), UNITS.length - 1);
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${UNITS[power]}`;
}

function limits(model) {
  const found = model.limits;
  if (!found) return null;
  const timeout = found.timeout_s ? `, responses within ${found.timeout_s} s` : "";
  const text = `Requests up to ${size(found.request_bytes)}, responses up to ${size(found.response_bytes)}${timeout}.`;
  return element("p", { className: "hint" }, text);
}

function tensors(model) {
  const rows = ["inputs", "outputs"].flatMap((side) =>
    (model[side] ?? []).map((spec) => [
      spec.name,
      side.slice(0, -1),
      `${spec.dtype}[${spec.shape.join(", ")}]`,
    ]),
  );
  return rows.length ? table("Tensors", ["Name", "Side", "Type"], rows).node : null;
}

/** Resolve a reference of the document such as #/components/responses/x. */
export function resolve(described, reference) {
  return reference
    .slice(2)
    .split("/")
    .reduce((value, part) => value[part], described);
}

/** What the view of a version is made of: all of its facts but those that change as it serves. */
export function factsOf(model, described) {
  const { kind, limits, inputs, outputs } = model;
  const { content } = resolve(described, model.body);
  const { parameters = [] } = described.paths[pathOf(model)].post;
  const about = described.tags.find((tag) => tag.name === model.name)?.description ?? "";
  return { kind, limits, inputs, outputs, content, parameters, about };
}

/** The view of a version, and what brings it up to date with its state on the server. */
export function modelView(model, facts) {
  const { about } = facts;
  const form = formOf(facts);
  const answer = element("div", { className: "answer", "aria-live": "polite" });
  const code = element("div");
  const busy = element("p", { className: "hint", role: "status" });

  async function send(event) {
    event.preventDefault();
    const button = form.node.querySelector("button[type=submit]");
    let request = null;
    try {
      request = form.request();
    } catch (error) {
      answer.replaceChildren(element("p", { className: "error", role: "alert" }, error.message));
      return;
    }
    button.disabled = true;
    busy.textContent = "Waiting for the model …";
    request.path = pathOf(model) + (request.query ?? "");
    code.replaceChildren(codeView(request));
    const began = performance.now();
    try {
      const { headers } = request;
      const response = await ask(request.path, { method: "POST", headers, body: request.body });
      const firstMs = performance.now() - began;
      const timings = await responseView(answer, response, model.kind);
      answer.append(latency(response, timings, firstMs, performance.now() - began));
    } catch (error) {
      const text = `The request failed: ${error.message}`;
      answer.replaceChildren(element("p", { className: "error", role: "alert" }, text));
    } finally {
      button.disabled = false;
      busy.textContent = "";
    }
  }

  if (form.node.tagName === "FORM") form.node.addEventListener("submit", send);
  const heading = element("h1", { tabIndex: -1 }, model.name);
  const badge = element("p", { className: "hint" });
  const update = ({ version, is_default: isDefault }) => {
    badge.textContent = `version ${version}${isDefault ? ", the default" : ""}`;
  };
  const node = element(
    "article",
    {},
    element("div", { className: "title" }, heading, badge),
    element(
      "div",
      { className: "columns" },
      element(
        "section",
        { className: "card", "aria-label": "Request" },
        element("h2", {}, "Request"),
        form.node,
        limits(model),
        element(
          "details",
          {},
          element("summary", {}, "What it takes and gives"),
          tensors(model) ?? element("p", { className: "about" }, about || "Nothing is said of it."),
        ),
      ),
      element(
        "section",
        { className: "card", "aria-label": "Response" },
        element("h2", {}, "Response"),
        busy,
        answer,
        code,
      ),
    ),
  );
  return { node, update };
}
