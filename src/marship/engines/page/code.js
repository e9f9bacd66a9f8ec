// The last request in curl, Python and JavaScript. The token is a variable: code is copied around.

import { choice, element } from "./dom.js";

const MOST_INLINE = 4000;

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** What stands for the body: text of it, or a file's name. */
function bodyOf(request) {
  if (request.file) return { file: request.file };
  return request.text.length > MOST_INLINE ? { file: "request.json" } : { text: request.text };
}

function curl(url, request) {
  const headers = Object.entries(request.headers).map(([k, v]) => `-H ${shell(`${k}: ${v}`)}`);
  const { file, text } = bodyOf(request);
  const body = file ? `--data-binary ${shell(`@${file}`)}` : `--data-raw ${shell(text)}`;
  const parts = ["curl -fsS", `-H "Authorization: Bearer $TOKEN"`, ...headers, body, shell(url)];
  return parts.join(" \\\n  ");
}

function python(url, request) {
  const headers = JSON.stringify(request.headers).slice(1, -1);
  const { file, text } = bodyOf(request);
  const body = file ? `open(${JSON.stringify(file)}, "rb")` : `${JSON.stringify(text)}.encode()`;
  const isStream = "Accept" in request.headers;
  const shown = isStream
    ? "for line in response.iter_lines():\n    print(line.decode())"
    : "print(response.json())";
  return `import os

import requests

response = requests.post(
    ${JSON.stringify(url)},
    headers={"Authorization": f"Bearer {os.environ['TOKEN']}", ${headers}},
    data=${body},${isStream ? "\n    stream=True," : ""}
)
response.raise_for_status()
${shown}
`;
}

function javascript(url, request) {
  const headers = Object.entries(request.headers)
    .map(([k, v]) => `    ${JSON.stringify(k)}: ${JSON.stringify(v)},\n`)
    .join("");
  const { file, text } = bodyOf(request);
  const before = file ? `import { readFile } from "node:fs/promises";\n\n` : "";
  const body = file ? `await readFile(${JSON.stringify(file)})` : JSON.stringify(text);
  return `${before}const response = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: {
    Authorization: \`Bearer \${process.env.TOKEN}\`,
${headers}  },
  body: ${body},
});
console.log(await response.${"Accept" in request.headers ? "text" : "json"}());
`;
}

const WRITERS = { curl, Python: python, JavaScript: javascript };
let chosen = "curl";

/** The request as code, in the language that was chosen last. */
export function codeView(request) {
  const url = location.origin + request.path;
  const attributes = { className: "code", tabIndex: 0, role: "region", "aria-label": "Code" };
  const text = element("pre", attributes);
  const copied = element("span", { className: "hint", role: "status" });
  const show = (language) => {
    chosen = language;
    text.textContent = WRITERS[language](url, request);
    copied.textContent = "";
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      copied.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(text);
      copied.textContent = "Selected: copying needs https, or an address of this machine.";
    }
  };
  show(chosen);
  return element(
    "section",
    { "aria-label": "Code of this request" },
    element("h3", {}, "The same from code"),
    choice("Language", Object.keys(WRITERS), chosen, show),
    text,
    element("button", { type: "button", className: "second", onclick: copy }, "Copy"),
    copied,
  );
}
