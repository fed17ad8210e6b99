// The page over a pool: puts its parts together, listens to keys, keeps the address.

import { columnName, count, element, find, newestOnly, request, RequestError, send } from "./format.js";
import { grid, perRow, redraw, select, show } from "./grid.js";
import { closePanel, head, showFacts, showFailure, showPanel } from "./panel.js";
import { Slider } from "./sliders.js";
import { query, read, state, write } from "./state.js";

const PANEL_DELAY = 80; // ms: who holds an arrow key down wants to see pictures pass, not details
const sliders = new Map();
let pool = null;
let panelTimer = 0;
let shownQuery = null;
let loadNumber = 0;
let numFound = 0;
let lastDecision = Promise.resolve(); // waits for all decisions that are under way
const stored = new Map(); // what the server has of the pictures that these are of

async function start() {
  read();
  try {
    pool = await request("/api/pool");
  } catch (error) {
    return fail(error);
  }
  find("total").textContent = count(pool.num_rows);
  const asked = new URLSearchParams(window.location.search).get("selection") ?? pool.selection;
  // A name means its newest folder, as it does for the server.
  state.selection = pool.selections.findLast((folder) => folder === asked || folder.slice(0, -13) === asked) || asked;
  fillControls();
  await showState();
  write();
  return load({ isFirst: true });
}

function fillControls() {
  const numbers = pool.numbers.map((name) => element("option", { value: name }, columnName(name)));
  find("add-slider").replaceChildren(element("option", { value: "" }, "Add a threshold..."), ...numbers);
  find("sort").replaceChildren(
    element("option", { value: "" }, "as in the pool"),
    element("option", { value: "random" }, "at random"),
    ...pool.text_sorts.map((name) => element("option", { value: name }, name)),
    element("optgroup", { label: "by a number" }, ...numbers.map((option) => option.cloneNode(true))),
  );
  find("selection").replaceChildren(
    element("option", { value: "" }, pool.selections.length ? "none" : "none yet: winnow select makes one"),
    ...pool.selections.map((name) => element("option", { value: name }, name)),
  );
  find("columns").replaceChildren(
    ...pool.columns.map((name) =>
      element("li", {}, element("button", { class: "link", type: "button", onclick: () => insertColumn(name) }, columnName(name))),
    ),
  );
}

// Makes the controls say what the state says.
async function showState() {
  find("filter").value = state.filter;
  find("sort").value = state.sort;
  find("selection").value = state.selection;
  find("direction").textContent = state.descending ? "\u2193 falling" : "\u2191 rising";
  find("direction").setAttribute("aria-pressed", String(state.descending));
  for (const column of [...sliders.keys()]) if (!state.ranges.has(column)) dropSlider(column);
  const added = [...state.ranges].filter(([column]) => !sliders.has(column));
  for (const [column, slider] of sliders) {
    slider.bounds = { ...state.ranges.get(column) };
    if (slider.found) slider.show();
  }
  await Promise.all(added.map(([column, bounds]) => addSlider(column, bounds)));
}

async function addSlider(column, bounds) {
  const slider = new Slider(column, bounds, {
    onMove: (name, moved) => {
      state.ranges.set(name, { ...moved });
      countNow();
    },
    onSettle: (name, moved) => {
      state.ranges.set(name, { ...moved });
      change();
    },
    onRemove: (name) => {
      state.ranges.delete(name);
      dropSlider(name);
      change();
    },
  });
  sliders.set(column, slider);
  find("sliders").append(slider.root);
  try {
    await slider.load();
  } catch (error) {
    state.ranges.delete(column);
    dropSlider(column);
    fail(error);
  }
}

function dropSlider(column) {
  sliders.get(column)?.root.remove();
  sliders.delete(column);
}

// Another query: from its first page, and a step that "back" undoes.
function change() {
  state.offset = 0;
  write({ isStep: true });
  return load();
}

const countNow = newestOnly(async () => {
  try {
    showCounts(await request("/api/count", query()));
  } catch (error) {
    fail(error);
  }
});

async function load({ isFirst = false, chosen = 0 } = {}) {
  const number = ++loadNumber;
  find("grid").setAttribute("aria-busy", "true");
  const parameters = query();
  shownQuery = parameters.toString();
  const paged = new URLSearchParams(parameters);
  paged.set("offset", state.offset);
  paged.set("limit", pool.page_size);
  if (isFirst && state.sample && !state.offset) paged.set("around", state.sample);
  try {
    const [counts, found] = await Promise.all([request("/api/count", parameters), request("/api/grid", paged)]);
    if (number !== loadNumber) return;
    succeed();
    showCounts(counts);
    showGrid(found, isFirst, chosen);
  } catch (error) {
    if (number !== loadNumber) return;
    show([], open);
    find("found").textContent = "none";
    find("pages").textContent = "";
    showEmpty("Nothing is shown: the query is wrong.");
    fail(error);
  } finally {
    if (number === loadNumber) find("grid").setAttribute("aria-busy", "false");
  }
}

function showGrid(found, isFirst, chosen) {
  state.offset = found.offset;
  numFound = found.num_rows;
  write();
  show(found.rows, open);
  const last = found.offset + found.rows.length;
  find("pages").textContent = found.num_rows ? `${count(found.offset + 1)} to ${count(last)} of ${count(found.num_rows)}` : "";
  find("previous-page").disabled = found.offset === 0;
  find("next-page").disabled = last >= found.num_rows;
  showEmpty(found.rows.length ? "" : "No sample is left: loosen a threshold, or clear the filter.");
  if (isFirst && state.sample) {
    const place = found.rows.findIndex((row) => row.uid === state.sample);
    if (place >= 0) select(place, { isFocused: false });
    openSample(state.sample);
  } else if (found.rows.length) {
    select(chosen < 0 ? found.rows.length - 1 : chosen, { isFocused: !isFirst && document.activeElement === document.body });
    if (!find("panel").hidden) follow();
  }
}

function showCounts(found) {
  find("found").textContent = count(found.found);
  find("rule").textContent = found.rule ? `winnow select --pool ${pool.root} --name NAME \\\n  --rule ${quote(`browse=${found.rule}`)}` : "";
  find("rule-box").hidden = !found.rule;
  const outcomes = Object.entries(found.outcomes);
  find("outcomes").replaceChildren(...facets(outcomes, "outcome", (name) => (name.startsWith("rule:") ? `fails ${name.slice(5)}` : name)));
  const { none, ...decided } = found.decisions;
  find("decisions").replaceChildren(...facets([...Object.entries(decided), ["none", none]], "decision", (name) => (name === "none" ? "undecided" : name)));
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function facets(entries, name, describe) {
  return entries.map(([value, size]) =>
    element(
      "li",
      { class: value.startsWith("rule:") ? "rule" : "" },
      element(
        "button",
        {
          class: "facet",
          type: "button",
          "aria-pressed": String(state[name] === value),
          onclick: () => {
            state[name] = state[name] === value ? "" : value;
            change();
          },
        },
        element("span", { class: "wrap" }, describe(value)),
        element("span", { class: "number soft" }, count(size)),
      ),
    ),
  );
}

function showEmpty(text) {
  find("empty").textContent = text;
  find("empty").hidden = !text;
}

// A wrong filter is told beside the filter, everything else above the pictures.
function fail(error) {
  if (!(error instanceof RequestError)) throw error;
  const place = state.filter ? "filter-error" : "problem";
  find(place).textContent = error.message;
  find(place).hidden = false;
}

function succeed() {
  find("filter-error").hidden = true;
  find("problem").hidden = true;
}

function insertColumn(name) {
  const box = find("filter");
  const shown = columnName(name);
  const before = box.value.slice(0, box.selectionStart);
  const gap = before && !/[\s(]$/.test(before) ? " " : "";
  box.setRangeText(gap + shown, box.selectionStart, box.selectionEnd, "end");
  box.focus();
}

// The panel

const actions = { decide: (row, decision) => decide(row, decision), open: (uid) => openSample(uid), close: () => close() };

function open(number) {
  select(number);
  openSample(grid.rows[number].uid, grid.rows[number]);
}

async function openSample(uid, row = null) {
  state.sample = uid;
  write();
  if (row) {
    showPanel(row, actions);
    find("panel").dataset.uid = uid;
    find("panel").scrollTop = 0;
  }
  try {
    const found = await request("/api/sample", new URLSearchParams({ uid, selection: state.selection }));
    if (state.sample !== uid) return;
    if (!row) {
      showPanel(found, actions);
      find("panel").dataset.uid = uid;
    }
    showFacts(found, found, actions);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    if (row) showFailure(error.message);
    else {
      find("problem").textContent = error.message;
      find("problem").hidden = false;
      state.sample = "";
      write();
    }
  }
}

function close() {
  state.sample = "";
  closePanel();
  write();
  select(grid.current);
}

// Shows the card that the keys went to, once they rest.
function follow() {
  const row = grid.rows[grid.current];
  if (!row) return;
  state.sample = row.uid;
  write();
  window.clearTimeout(panelTimer);
  panelTimer = window.setTimeout(() => openSample(row.uid, row), PANEL_DELAY);
}

// Decisions

// Shown at once and sent in order: of two requests under way the server could take the older one last. One that fails takes those behind it along.
async function decide({ uid, decision: before }, decision) {
  if (!stored.has(uid)) stored.set(uid, before);
  applyDecision(uid, decision);
  const sent = lastDecision.then(() => send("/api/decide", { uids: [uid], decision }));
  lastDecision = sent;
  try {
    await sent;
    stored.set(uid, decision);
  } catch (error) {
    applyDecision(uid, stored.get(uid));
    find("problem").textContent = `not decided: ${error.message}`;
    find("problem").hidden = false;
    return;
  } finally {
    if (lastDecision === sent) {
      lastDecision = Promise.resolve();
      stored.clear();
    }
  }
  countNow();
}

function applyDecision(uid, decision) {
  const number = grid.rows.findIndex((each) => each.uid === uid);
  if (number >= 0) {
    grid.rows[number].decision = decision;
    redraw(number, open);
  }
  if (find("panel").dataset.uid === uid) {
    const row = number >= 0 ? grid.rows[number] : { uid, decision };
    find("panel-head").replaceWith(head(row, actions));
  }
}

function decideCurrent(decision) {
  const row = grid.rows[grid.current];
  if (!row) return;
  decide(row, decision);
  if (decision && find("advance").checked) move(1);
}

// Moving about

function move(step) {
  const next = grid.current + step;
  if (next >= 0 && next < grid.rows.length) {
    select(next);
    if (!find("panel").hidden) follow();
  } else if (Math.abs(step) === 1) {
    turnPage(step);
  }
}

function turnPage(step) {
  const offset = state.offset + step * pool.page_size;
  if (offset < 0 || offset >= numFound) return;
  state.offset = offset;
  write();
  load({ chosen: step < 0 ? -1 : 0 });
  window.scrollTo({ top: 0 });
}

const KEYS = {
  j: () => move(1),
  i: () => move(-1),
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  ArrowDown: () => move(perRow()),
  ArrowUp: () => move(-perRow()),
  n: () => turnPage(1),
  p: () => turnPage(-1),
  k: () => decideCurrent("keep"),
  d: () => decideCurrent("drop"),
  f: () => decideCurrent("flag"),
  u: () => decideCurrent(null),
  Enter: () => grid.rows[grid.current] && open(grid.current),
  Escape: () => !find("panel").hidden && close(),
  "/": () => focusFilter(),
  "?": () => find("help").showModal(),
};

function focusFilter() {
  find("controls").open = true;
  find("filter").focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("help").open || !pool) return;
  const target = event.target;
  const isTyping = target.matches("input, textarea, select");
  if (isTyping && event.key === "Escape") target.blur();
  // A button that has the focus is pressed by Enter; cards open by it as well.
  const isButton = target.matches("button, a, summary") && event.key === "Enter";
  if (isTyping || isButton || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
}

function listen() {
  document.addEventListener("keydown", onKey);
  find("filter-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.filter = find("filter").value.trim();
    change();
  });
  find("filter").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("filter-form").requestSubmit();
  });
  find("clear-filter").addEventListener("click", () => {
    find("filter").value = "";
    find("filter-form").requestSubmit();
  });
  find("add-slider").addEventListener("change", async (event) => {
    const column = event.target.value;
    event.target.value = "";
    if (!column || sliders.has(column)) return;
    state.ranges.set(column, { low: "", high: "" });
    write();
    await addSlider(column, { low: "", high: "" });
  });
  find("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    change();
  });
  find("direction").addEventListener("click", () => {
    state.descending = !state.descending;
    showState();
    change();
  });
  find("selection").addEventListener("change", (event) => {
    state.selection = event.target.value;
    state.outcome = "";
    change();
  });
  find("previous-page").addEventListener("click", () => turnPage(-1));
  find("next-page").addEventListener("click", () => turnPage(1));
  find("show-help").addEventListener("click", () => find("help").showModal());
  find("copy-rule").addEventListener("click", async () => {
    await navigator.clipboard.writeText(find("rule").textContent);
    find("copy-rule").textContent = "Copied";
  });
  window.addEventListener("popstate", async () => {
    read();
    await showState();
    if (!state.sample) closePanel();
    if (query().toString() !== shownQuery || state.sample) load({ isFirst: true });
  });
}

if (window.matchMedia("(max-width: 60rem)").matches) find("controls").open = false;
listen();
start();
