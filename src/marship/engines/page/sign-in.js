// Signing in: a form that asks for the token until the server accepts it.

import { element } from "./dom.js";
import { describe, setToken } from "./server.js";

const HINT = [
  "It stands in the server's ",
  element("code", {}, "key_file.json"),
  ", under ",
  element("code", {}, "inference"),
  ". This tab forgets it when it is closed or reloaded.",
];

/** What the top of the page offers, once a document is there. */
function setTop(found) {
  document.getElementById("leave").hidden = !found?.security;
  for (const link of document.querySelectorAll(".top a")) link.hidden = !found;
}

/**
 * What asks for the token; `begin` is called with the server's document.
 *
 * `show` forgets the token and asks for another one; `start` asks only where one is needed.
 */
export function signingIn(begin) {
  const token = element("input", {
    id: "token",
    type: "password",
    autocomplete: "off",
    spellcheck: false,
    required: true,
    "aria-describedby": "token-hint",
  });
  const problem = element("p", { className: "error", role: "alert" });
  const button = element("button", { type: "submit" }, "Sign in");
  const form = element(
    "form",
    { className: "card narrow", onsubmit: submit },
    element("h1", {}, "Sign in"),
    element("label", { htmlFor: "token" }, "Inference token"),
    token,
    element("p", { id: "token-hint", className: "hint" }, HINT),
    problem,
    button,
  );

  function show(message = "") {
    setToken("");
    setTop(null);
    document.getElementById("main").replaceChildren(form);
    problem.textContent = message;
    token.focus();
  }

  /** The document, or the form with what is wrong. */
  async function look(refused) {
    try {
      const found = await describe();
      if (!found) return show(refused);
      setTop(found);
      form.reset();
      await begin(found);
    } catch (error) {
      show(`The server cannot be reached: ${error.message}`);
    }
  }

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    setToken(token.value.trim());
    await look("The server does not accept this token: it is wrong or expired.");
    button.disabled = false;
  }

  return { show, start: () => look("") };
}
