// One sample in full: its picture, its captions side by side, what each selection did with it and why, its copies, every measurement.

import { columnName, count, element, find, isWebUrl, value } from "./format.js";
import { badge, decisionBadge, outcomeBadge, picture } from "./grid.js";

const HIDDEN = new Set(["exif", "sha256", "key", "alt_text", "url", "uid", "md5"]);
const KEYS = { keep: "k", drop: "d", flag: "f" };

// `actions` are { decide, open, close }.
export function showPanel(row, actions) {
  const panel = find("panel");
  panel.hidden = false;
  find("layout").classList.add("with-panel");
  panel.replaceChildren(head(row, actions), element("div", { class: "panel-picture" }, picture(row, { isLarge: true })));
  panel.append(element("div", { class: "stack", id: "facts" }, captions(row, []), element("p", { class: "soft" }, "Reading the rest...")));
}

export function showFacts(row, found, actions) {
  if (find("panel").dataset.uid !== row.uid) return;
  find("facts").replaceChildren(
    captions(found, found.captions_full),
    ...found.selections.map(verdict),
    ...found.copies.map((copies) => copiesOf(copies, actions)),
    measurements(found),
  );
}

export function showFailure(message) {
  find("facts").replaceChildren(element("div", { class: "notice error", role: "alert" }, message));
}

export function closePanel() {
  find("panel").hidden = true;
  find("panel").replaceChildren();
  delete find("panel").dataset.uid;
  find("layout").classList.remove("with-panel");
}

export function head(row, actions) {
  const buttons = Object.entries(KEYS).map(([decision, key]) =>
    element(
      "button",
      {
        class: `button decide ${decision}`,
        type: "button",
        "aria-pressed": String(row.decision === decision),
        onclick: () => actions.decide(row, row.decision === decision ? null : decision),
      },
      `${decision} `,
      element("kbd", {}, key),
    ),
  );
  const close = element("button", { class: "button icon", type: "button", "aria-label": "close", onclick: actions.close }, "\u00d7");
  return element("div", { class: "row panel-head", id: "panel-head" }, ...buttons, element("span", { class: "grow" }), close);
}

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), ...children);
}

function captions(row, made) {
  const boxes = [caption("alt_text", row.alt_text, {})];
  const provenances = new Map(made.map((each) => [each.column, each.provenance]));
  for (const [name, text] of Object.entries(row.captions)) boxes.push(caption(name, text, provenances.get(name) || {}));
  for (const each of made) if (each.column !== "alt_text" && !(each.column in row.captions)) boxes.push(caption(each.column, each.text, each.provenance));
  return section("Captions", element("div", { class: "captions" }, ...boxes));
}

function caption(name, text, provenance) {
  const known = Object.entries(provenance).filter(([, each]) => each !== null && each !== "");
  const body = Array.isArray(text)
    ? element("ol", {}, ...text.map((each) => element("li", {}, each)))
    : element("p", { class: text ? "" : "soft" }, text || "null");
  const origin = known.map(([key, each]) => element("div", {}, element("dt", {}, key.replaceAll("_", " ")), element("dd", {}, value(each))));
  return element(
    "article",
    { class: "caption-box" },
    element("h4", { class: "mono soft" }, name),
    body,
    origin.length ? element("dl", { class: "provenance small" }, ...origin) : null,
  );
}

function verdict(found) {
  const name = found.folder.replace(/^selections\//, "");
  const first = found.rules.find((rule) => rule.is_first);
  const result = found.kept ? outcomeBadge("kept") : outcomeBadge(`rule:${first ? first.rule : "dropped"}`);
  const rows = found.rules.map((rule) => {
    const values = Object.entries(rule.values).map(([column, each]) => `${columnName(column)} = ${value(each)}`);
    const mark = rule.passed ? badge("passed", "kept") : badge(rule.is_first ? "failed first" : "failed", "dropped");
    return element(
      "tr",
      { class: rule.passed ? "" : "failed" },
      element("th", { scope: "row" }, rule.rule, element("code", { class: "rule-sql soft" }, rule.sql)),
      element("td", { class: "mono" }, ...values.flatMap((text) => [text, element("br")])),
      element("td", {}, mark),
    );
  });
  const weight = found.weight === null ? null : element("span", { class: "soft small" }, `weight ${value(found.weight)}`);
  const stale = found.changed_labels.length
    ? element("p", { class: "notice small" }, `${found.changed_labels.join(", ")} changed since: the values are not those that the rules saw`)
    : null;
  return section(
    "",
    element("div", { class: "row" }, element("h3", {}, name), result, weight),
    stale,
    element("div", { class: "scroll" }, element("table", {}, element("tbody", {}, ...rows))),
  );
}

function copiesOf(copies, actions) {
  const items = copies.others.map((other) =>
    element(
      "li",
      {},
      element("button", { class: "link mono", type: "button", onclick: () => actions.open(other.uid) }, other.uid),
      element("span", { class: "soft small" }, ` ${other.url || ""}`),
    ),
  );
  return section(`${count(copies.num_others)} others with ${copies.column} = ${copies.group}`, element("ul", { class: "plain copies" }, ...items));
}

function measurements(found) {
  const tables = [["samples", found.sample], ...Object.entries(found.labels)].map(([label, columns]) => {
    const rows = Object.entries(columns)
      .filter(([name, each]) => !(label === "samples" && HIDDEN.has(name)) && !(name === "error" && !each))
      .map(([name, each]) =>
        element("tr", {}, element("th", { scope: "row", class: "mono" }, name), element("td", { class: "number wrap" }, value(each))),
      );
    return element("table", { class: "measured" }, element("caption", {}, label), element("tbody", {}, ...rows));
  });
  const link = isWebUrl(found.link)
    ? element("a", { href: found.link, target: "_blank", rel: "noopener noreferrer" }, found.link)
    : element("span", {}, found.url || "no URL");
  return section(
    "Measurements",
    element("p", { class: "mono wrap" }, found.uid),
    element("p", { class: "small wrap" }, link),
    element("div", { class: "stack tight" }, ...tables),
  );
}
