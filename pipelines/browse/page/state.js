// What is shown. The address holds all of it, so that an address shows somebody else the same.

export const state = {
  filter: "",
  ranges: new Map(), // column -> { low, high }: texts of decimal numbers, "" for no bound
  selection: "",
  outcome: "",
  decision: "",
  sort: "",
  descending: false,
  offset: 0,
  sample: "", // uid of the one in the panel
};

export function read(address = window.location.search) {
  const parameters = new URLSearchParams(address);
  const sort = parameters.get("sort") || "";
  state.filter = parameters.get("filter") || "";
  state.ranges = new Map();
  for (const text of parameters.getAll("range")) {
    const place = text.lastIndexOf(":");
    const bounds = text.slice(place + 1).split("..");
    if (place > 0 && bounds.length === 2) state.ranges.set(text.slice(0, place), { low: bounds[0], high: bounds[1] });
  }
  state.selection = parameters.get("selection") || "";
  state.outcome = parameters.get("outcome") || "";
  state.decision = parameters.get("decision") || "";
  state.sort = sort.replace(/^-/, "");
  state.descending = sort.startsWith("-");
  state.offset = Math.max(0, Number.parseInt(parameters.get("offset") || "0", 10) || 0);
  state.sample = parameters.get("sample") || "";
}

// The query alone, without the place in its rows.
export function query() {
  const parameters = new URLSearchParams();
  if (state.filter) parameters.set("filter", state.filter);
  for (const [column, { low, high }] of state.ranges) parameters.append("range", `${column}:${low}..${high}`);
  for (const name of ["selection", "outcome", "decision"]) if (state[name]) parameters.set(name, state[name]);
  if (state.sort || state.descending) parameters.set("sort", `${state.descending ? "-" : ""}${state.sort}`);
  return parameters;
}

export function address() {
  const parameters = query();
  if (state.offset) parameters.set("offset", state.offset);
  if (state.sample) parameters.set("sample", state.sample);
  const text = parameters.toString();
  return text ? `?${text}` : window.location.pathname;
}

// A new query is a step that "back" undoes; moving about in its rows is not. The token leaves the address with the first of either.
export function write({ isStep = false } = {}) {
  if (isStep) window.history.pushState(null, "", address());
  else window.history.replaceState(null, "", address());
}
