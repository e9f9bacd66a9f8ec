// Requests to the server this page came from. The token is in memory alone: no other page, no later
// visitor of this address, and no disk has it.

import { parse } from "./numbers.js";

let token = "";

export function setToken(value) {
  token = value;
}

/** The header that says who asks; empty where no token is needed. */
export function authorization() {
  return token && `Bearer ${token}`;
}

/** A response, whatever its status; the token goes with the request. */
export function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = authorization();
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

/** The server's OpenAPI document; null where the token is refused. */
export async function describe() {
  const response = await ask("/openapi.json");
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(`The server responded with ${response.status}.`);
  return parse(await response.text());
}

/** Where predictions of a version are sent: of this one, whichever is the default one by then. */
export function pathOf(model) {
  return `/predictions/${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;
}
