// Elements and their attributes. Text is always text: nothing here parses HTML.

let lastId = 0;

/** An element with properties, attributes (with a dash, or role and for) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list" && name !== "form") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A name for an element that a label or a description refers to. */
export function unique(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

/** A field with its label before it, and perhaps a hint behind it. */
export function labelled(text, field, hint = "") {
  field.id ||= unique("field");
  const parts = [element("label", { htmlFor: field.id }, text), field];
  if (hint) {
    const id = unique("hint");
    field.setAttribute("aria-describedby", id);
    parts.push(element("p", { id, className: "hint" }, hint));
  }
  return element("div", { className: "field" }, parts);
}

/** A group of radio buttons; calls back with the value that is chosen. */
export function choice(legend, values, chosen, onChoice) {
  const name = unique("choice");
  const buttons = values.map((value) => {
    const id = unique("radio");
    const onchange = () => onChoice(value);
    const radio = element("input", { type: "radio", name, id, value, onchange });
    radio.checked = value === chosen;
    return element("span", { className: "radio" }, radio, element("label", { htmlFor: id }, value));
  });
  return element(
    "fieldset",
    { className: "choice" },
    element("legend", {}, legend),
    buttons,
  );
}

/** A table with a head; the first cell of a row is its heading. */
export function table(caption, head, rows) {
  const heads = head.map((text) => element("th", { scope: "col" }, text));
  const body = element("tbody");
  const found = element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, heads)),
    body,
  );
  const add = (row) => {
    const [first, ...others] = row;
    const cells = others.map((text) => element("td", {}, String(text)));
    body.append(element("tr", {}, element("th", { scope: "row" }, String(first)), cells));
  };
  rows.forEach(add);
  return { node: element("div", { className: "wide" }, found), add };
}
