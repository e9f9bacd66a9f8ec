// Swagger UI of the server's document, for who has signed in.

import { element } from "/page/dom.js";
import { authorization } from "/page/server.js";
import { signingIn } from "/page/sign-in.js";

const SHOWN_TOKEN = "YOUR-INFERENCE-TOKEN";
const main = document.getElementById("main");
const looks = document.getElementById("looks");
const isDark = matchMedia("(prefers-color-scheme: dark)");

/** Descriptions as text: Swagger UI would make HTML of them, which the page's policy forbids. */
function asText(_, system) {
  return ({ source }) => system.React.createElement("p", { className: "text" }, source);
}

const nothing = () => null;
const plugin = {
  wrapComponents: { Markdown: asText },
  components: {
    ServersContainer: nothing, // there is one
    authorizeBtn: nothing, // the page signs in itself
    authorizeOperationBtn: nothing,
  },
};

/** The token goes with requests alone: what stands on the page may be copied to anywhere. */
function withToken(request) {
  if (request.headers.Authorization) request.headers.Authorization = authorization();
  return request;
}

/** One style sheet or the other: rules of both for buttons and tables do not mix. */
function setLooks(isSignedIn) {
  looks.disabled = isSignedIn;
  document.documentElement.classList.toggle("dark-mode", isSignedIn && isDark.matches);
}

function begin(spec) {
  setLooks(true);
  const domNode = element("div");
  main.replaceChildren(domNode);
  const ui = SwaggerUIBundle({
    domNode,
    spec,
    docExpansion: "none",
    plugins: [plugin],
    requestInterceptor: withToken,
    showMutatedRequest: false,
    tryItOutEnabled: true,
    onComplete: () => spec.security && ui.preauthorizeApiKey("token", SHOWN_TOKEN),
  });
}

document.getElementById("leave").addEventListener("click", () => {
  setLooks(false);
  signIn.show();
});
isDark.addEventListener("change", () => setLooks(looks.disabled));
const signIn = signingIn(begin);
signIn.start();
