// Elements, numbers and requests. Whatever comes from the pool is put into a page as text, never as markup.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const find = (id) => document.getElementById(id);

export const count = (number) => Number(number).toLocaleString("en-US");

export function value(found) {
  if (found === null || found === undefined) return "null";
  if (typeof found === "number") return Number.isInteger(found) ? String(found) : String(Number(found.toPrecision(5)));
  if (typeof found === "boolean") return found ? "yes" : "no";
  if (Array.isArray(found)) return found.map(value).join(", ");
  return typeof found === "object" ? JSON.stringify(found) : String(found);
}

// "samples.width" is the pool's own column: people call it "width".
export const columnName = (name) => name.replace(/^samples\./, "");

// Browsers open these and nothing else; `javascript:` is such a URL too.
export const isWebUrl = (url) => /^https?:\/\/[^\s]+$/i.test(url || "");

export class RequestError extends Error {}

export async function request(path, parameters, options = {}) {
  const query = parameters ? `?${parameters}` : "";
  let response;
  try {
    response = await fetch(`${path}${query}`, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("the server does not answer; is `winnow browse` still running?");
  }
  const content = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new RequestError(content.error);
  return content;
}

export function send(path, content) {
  return request(path, null, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(content),
  });
}

// Runs one request at a time: while one is under way only the newest call is remembered, and runs next.
export function newestOnly(run) {
  let isRunning = false;
  let waiting = false;
  return async function call() {
    if (isRunning) {
      waiting = true;
      return;
    }
    isRunning = true;
    try {
      await run();
    } finally {
      isRunning = false;
    }
    if (waiting) {
      waiting = false;
      await call();
    }
  };
}
