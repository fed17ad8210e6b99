// The pictures of a page, and which of them the keys are about.

import { element, find, value } from "./format.js";

const DECISION_CLASSES = { keep: "kept", drop: "dropped", flag: "near" };

export const grid = { rows: [], cards: [], current: -1 };

export function badge(text, kind = "") {
  return element("span", { class: `badge ${kind}` }, text);
}

export function decisionBadge(decision) {
  return decision ? badge(decision, DECISION_CLASSES[decision]) : null;
}

export function outcomeBadge(outcome) {
  if (!outcome) return null;
  return outcome === "kept" ? badge("kept", "kept") : badge(outcome.replace(/^rule:/, ""), "dropped");
}

export function picture(row, { isLarge = false } = {}) {
  const missing = (text) => element("span", { class: "missing" }, text);
  if (!row.image) return missing(row.error_message || row.status || "no picture");
  const image = element("img", { src: row.image, alt: row.alt_text || "", decoding: "async", loading: isLarge ? "eager" : "lazy" });
  image.addEventListener("error", () => image.replaceWith(missing("the file is no picture that can be shown")));
  return image;
}

// `onOpen` gets the number of a card that was clicked.
export function show(rows, onOpen) {
  grid.rows = rows;
  grid.cards = rows.map((row, number) => card(row, number, onOpen));
  find("grid").replaceChildren(...grid.cards);
  grid.current = -1;
}

export function redraw(number, onOpen) {
  const made = card(grid.rows[number], number, onOpen);
  const isFocused = grid.cards[number].contains(document.activeElement);
  grid.cards[number].replaceWith(made);
  grid.cards[number] = made;
  if (number === grid.current) mark(made, true);
  if (isFocused) made.querySelector(".frame").focus({ preventScroll: true });
}

export function select(number, { isFocused = true } = {}) {
  if (grid.cards[grid.current]) mark(grid.cards[grid.current], false);
  grid.current = number;
  const chosen = grid.cards[number];
  if (!chosen) return;
  mark(chosen, true);
  if (isFocused) chosen.querySelector(".frame").focus({ preventScroll: true });
  chosen.scrollIntoView({ block: "nearest" });
}

// How many cards stand in a row, read from where they are.
export function perRow() {
  const [first] = grid.cards;
  if (!first) return 1;
  const lower = grid.cards.findIndex((each) => each.offsetTop > first.offsetTop);
  return lower < 0 ? grid.cards.length : lower;
}

function mark(chosen, isCurrent) {
  chosen.classList.toggle("current", isCurrent);
  const frame = chosen.querySelector(".frame");
  if (isCurrent) frame.setAttribute("aria-current", "true");
  else frame.removeAttribute("aria-current");
}

function card(row, number, onOpen) {
  const label = `${row.alt_text || "no alt-text"}${row.decision ? `, ${row.decision}` : ""}`;
  const texts = [element("span", { class: row.alt_text ? "caption" : "caption soft" }, row.alt_text || "no alt-text")];
  for (const [name, text] of Object.entries(row.captions)) {
    const shown = Array.isArray(text) ? text.join(" / ") : text;
    texts.push(element("span", { class: "caption other", title: name }, shown));
  }
  const badges = [decisionBadge(row.decision), outcomeBadge(row.outcome)];
  if (row.sort_value !== null) badges.push(badge(value(row.sort_value), "calm"));
  const hasBadges = badges.some((each) => each);
  const made = element(
    "li",
    { class: `picture ${DECISION_CLASSES[row.decision] || ""}` },
    element("button", { class: "frame", type: "button", "aria-label": label, onclick: () => onOpen(number) }, picture(row)),
    element("div", { class: "text" }, hasBadges ? element("span", { class: "row badges" }, ...badges) : null, ...texts),
  );
  made.dataset.uid = row.uid;
  return made;
}
