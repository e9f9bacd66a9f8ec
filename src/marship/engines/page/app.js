// Signing in, and which model is shown: the address's part behind # names it.

import { element } from "./dom.js";
import { modelView } from "./models.js";
import { describe, setToken } from "./server.js";

const REFRESH_MS = 15_000;
const main = document.getElementById("main");
const signIn = document.getElementById("sign-in");
const leave = document.getElementById("leave");
const problem = document.getElementById("sign-in-error");
const STATES = { true: "ready", false: "not ready" };

let described = null;
let views = new Map();
let shown = null;
let timer = 0;

const keyOf = (model) => `${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;
/** A version has another view once its worker has said what it takes. */
const viewKeyOf = (model) => `${keyOf(model)} ${model.kind}`;

function showSignIn(message = "") {
  clearInterval(timer);
  setToken("");
  described = null;
  views = new Map();
  shown = null;
  leave.hidden = true;
  main.replaceChildren(signIn);
  signIn.hidden = false;
  problem.textContent = message;
  document.getElementById("token").focus();
}

function link(model) {
  return element(
    "a",
    // whole, or those who look for skip links would take it for one
    { href: `${location.origin}/#${keyOf(model)}`, className: "model" },
    element("span", { className: "model-name" }, model.name),
    element("span", { className: "hint" }, `${model.version}, ${model.kind}`),
    element(
      "span",
      { className: model.is_ready ? "state good" : "state bad" },
      STATES[model.is_ready],
    ),
  );
}

/** What the address names, else the first model. */
function wanted(models) {
  return models.find((model) => `#${keyOf(model)}` === location.hash) ?? models[0];
}

function showModels() {
  const models = described["x-marship-models"];
  const chosen = wanted(models);
  const links = models.map((model) => {
    const found = link(model);
    if (model === chosen) found.setAttribute("aria-current", "page");
    return element("li", {}, found);
  });
  const list = element("nav", { "aria-label": "Models" }, element("ul", {}, links));
  const old = main.querySelector("nav");
  if (old && shown === (chosen && viewKeyOf(chosen))) {
    const place = [...old.querySelectorAll("a")].indexOf(document.activeElement);
    old.replaceWith(list); // the form stays as it is, with what was typed
    if (place >= 0) list.querySelectorAll("a")[place]?.focus();
    return;
  }
  shown = chosen ? viewKeyOf(chosen) : null;
  if (!chosen) {
    const text = "No models are registered. Register one, and it appears here.";
    main.replaceChildren(list, element("p", { className: "card" }, text));
    return;
  }
  if (!views.has(shown)) views.set(shown, modelView(chosen, described));
  main.replaceChildren(list, views.get(shown));
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
    showSignIn("The token has expired. Sign in with the new one.");
    return;
  }
  described = found;
  showModels();
}

function begin(found) {
  described = found;
  signIn.hidden = true;
  signIn.reset();
  leave.hidden = !described.security;
  showModels();
  main.querySelector("h1")?.focus();
  clearInterval(timer);
  timer = setInterval(refresh, REFRESH_MS);
}

window.addEventListener("hashchange", () => {
  if (!described) return;
  showModels();
  main.querySelector("h1")?.focus(); // the link that was followed is gone
});

signIn.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = signIn.querySelector("button");
  button.disabled = true;
  problem.textContent = "";
  setToken(document.getElementById("token").value.trim());
  try {
    const found = await describe();
    if (found) begin(found);
    else showSignIn("The server does not accept this token: it is wrong or expired.");
  } catch (error) {
    showSignIn(`The server cannot be reached: ${error.message}`);
  } finally {
    button.disabled = false;
  }
});
leave.addEventListener("click", () => showSignIn());

// A server without tokens needs no signing in.
try {
  const found = await describe();
  if (found) begin(found);
  else showSignIn();
} catch (error) {
  showSignIn(`The server cannot be reached: ${error.message}`);
}
