// Signing in, and which model is shown: the address's part behind # names it.

import { element } from "./dom.js";
import { write } from "./numbers.js";
import { describe } from "./server.js";
import { signingIn } from "./sign-in.js";

const REFRESH_MS = 15_000;
const main = document.getElementById("main");
const STATES = { true: "ready", false: "not ready" };

let models = null; // models.js, which signing in does not wait for
let described = null;
let views = new Map();
let timer = 0;

const keyOf = (model) => `${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;

/** The view of a version, with what was typed; another one once it takes or gives something else. */
function viewOf(model) {
  const facts = models.factsOf(model, described);
  const key = `${keyOf(model)} ${write(facts)}`;
  if (!views.has(key)) views.set(key, models.modelView(model, facts));
  const found = views.get(key);
  found.update(model);
  return found.node;
}

function leave(message) {
  clearInterval(timer);
  described = null;
  signIn.show(message);
}

/** The one that is there: of the model that a link names, if it is shown already. */
function focusHeading() {
  main.querySelector("h1")?.focus();
}

function link(model) {
  return element(
    "a",
    // whole, or those who look for skip links would take it for one
    { href: `${location.origin}/#${keyOf(model)}`, className: "model", onclick: focusHeading },
    element("span", { className: "model-name" }, model.name),
    element("span", { className: "hint" }, `${model.version}, ${model.kind}`),
    element(
      "span",
      { className: model.is_ready ? "state good" : "state bad" },
      STATES[model.is_ready],
    ),
  );
}

/** What the address names; the first model where it names none. */
function wanted(versions) {
  if (!location.hash && versions.length) history.replaceState(null, "", `#${keyOf(versions[0])}`);
  return versions.find((model) => `#${keyOf(model)}` === location.hash);
}

function missing(versions) {
  const text = versions.length
    ? `${location.hash.slice(1)} is not on this server. Choose a model.`
    : "No models are registered. Register one, and it appears here.";
  return element("p", { className: "card", role: "status" }, text);
}

function showModels() {
  const versions = described["x-marship-models"];
  const chosen = wanted(versions);
  const links = versions.map((model) => {
    const found = link(model);
    if (model === chosen) found.setAttribute("aria-current", "page");
    return element("li", {}, found);
  });
  const list = element("nav", { "aria-label": "Models" }, element("ul", {}, links));
  const old = main.querySelector("nav");
  const view = chosen ? viewOf(chosen) : missing(versions);
  if (old && view.parentNode === main) {
    const place = [...old.querySelectorAll("a")].indexOf(document.activeElement);
    old.replaceWith(list); // the form stays as it is, with what was typed
    if (place >= 0) list.querySelectorAll("a")[place]?.focus();
    return;
  }
  main.replaceChildren(list, view);
  if (!chosen) return;
  list.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
  document.title = `${chosen.name} · marship`;
}

async function refresh() {
  let found = null;
  try {
    found = await describe();
  } catch {
    return; // the server is away for a moment; what is shown stays
  }
  if (!described) return; // signed out meanwhile
  if (!found) {
    leave("The token has expired. Sign in with the new one.");
    return;
  }
  described = found;
  showModels();
}

async function begin(found) {
  models = await import("./models.js");
  described = found;
  showModels();
  focusHeading();
  clearInterval(timer);
  timer = setInterval(refresh, REFRESH_MS);
}

window.addEventListener("hashchange", () => {
  if (!described) return;
  showModels();
  focusHeading(); // the link that was followed is gone
});

document.getElementById("leave").addEventListener("click", () => {
  views = new Map();
  leave();
});

window.addEventListener("load", () => import("./models.js").catch(() => {})); // begin tells of it

const signIn = signingIn(begin);
signIn.start(); // a server without tokens needs no signing in
