// Thresholds: a slider with two handles over the histogram of a column.

import { columnName, count, drawing, element, request } from "./format.js";

const STEPS = 1000;
const HEIGHT = 36;

// The label small above the column: together they are longer than the side bar is wide.
function title(column) {
  const name = columnName(column);
  const place = name.indexOf(".");
  const label = place < 0 ? null : element("span", { class: "soft small slider-label" }, name.slice(0, place));
  return element("strong", { class: "mono wrap" }, label, name.slice(place + 1));
}

// `onMove` is called while a handle moves, `onSettle` when it is let go; both get the column's { low, high }.
export class Slider {
  constructor(column, bounds, { onMove, onSettle, onRemove }) {
    this.column = column;
    this.bounds = { ...bounds };
    this.onMove = onMove;
    this.onSettle = onSettle;
    this.low = this.handle("low", "least");
    this.high = this.handle("high", "most");
    this.lowText = this.field("low", "least");
    this.highText = this.field("high", "most");
    this.chart = element("div", { class: "histogram" });
    this.note = element("span", { class: "soft small" }, "...");
    const remove = element(
      "button",
      { class: "button icon", type: "button", "aria-label": `remove the threshold of ${column}`, onclick: () => onRemove(column) },
      "\u00d7",
    );
    this.root = element(
      "fieldset",
      { class: "slider" },
      element("legend", { class: "visually-hidden" }, column),
      element("div", { class: "row nowrap spread" }, title(column), remove),
      element("div", { class: "track" }, this.chart, this.low, this.high),
      element("div", { class: "row nowrap spread" }, this.lowText, this.note, this.highText),
    );
    this.root.dataset.column = column;
  }

  async load() {
    const found = await request("/api/column", new URLSearchParams({ name: this.column }));
    this.found = found;
    const span = found.high - found.low;
    this.steps = found.is_integer ? Math.max(1, Math.min(span, STEPS)) : STEPS;
    const step = span / this.steps || 1;
    this.digits = found.is_integer ? 0 : Math.min(12, Math.max(0, Math.ceil(-Math.log10(step))));
    for (const handle of [this.low, this.high]) {
      handle.max = this.steps;
      handle.disabled = span === 0;
    }
    this.drawHistogram();
    this.show();
    const nulls = found.num_rows - found.num_values;
    this.note.textContent = nulls ? `${count(nulls)} null` : "";
  }

  // The handles and texts as the bounds say.
  show() {
    this.low.value = this.bounds.low === "" ? 0 : this.place(Number(this.bounds.low));
    this.high.value = this.bounds.high === "" ? this.steps : this.place(Number(this.bounds.high));
    this.lowText.value = this.bounds.low;
    this.highText.value = this.bounds.high;
    this.lowText.placeholder = this.format(this.found.least);
    this.highText.placeholder = this.format(this.found.most);
    this.colour();
  }

  place(number) {
    const span = this.found.high - this.found.low;
    return span ? Math.round(((number - this.found.low) / span) * this.steps) : 0;
  }

  format(number) {
    return number.toFixed(this.digits);
  }

  handle(side, name) {
    const made = element("input", { type: "range", min: "0", max: String(STEPS), step: "1", class: side, "aria-label": `${name} ${this.column}` });
    made.addEventListener("input", () => {
      this.read(side);
      this.onMove(this.column, this.bounds);
    });
    made.addEventListener("change", () => this.onSettle(this.column, this.bounds));
    return made;
  }

  field(side, name) {
    const made = element("input", { class: "field number", inputmode: "decimal", "aria-label": `${name} ${this.column}, as a number` });
    made.addEventListener("change", () => {
      const text = made.value.trim();
      if (text !== "" && !/^-?\d*\.?\d+$/.test(text)) {
        made.value = this.bounds[side];
        return;
      }
      this.bounds[side] = text;
      this.show();
      this.onSettle(this.column, this.bounds);
    });
    return made;
  }

  // At its end of the scale a handle is no bound, so that rows without a value are in.
  read(side) {
    if (Number(this.low.value) > Number(this.high.value)) this[side].value = this[side === "low" ? "high" : "low"].value;
    const place = Number(this[side].value);
    const isFree = place === (side === "low" ? 0 : this.steps);
    const number = this.found.low + ((this.found.high - this.found.low) * place) / this.steps;
    this.bounds[side] = isFree ? "" : this.format(number);
    this[`${side}Text`].value = this.bounds[side];
    this.low.setAttribute("aria-valuetext", this.bounds.low || "no bound");
    this.high.setAttribute("aria-valuetext", this.bounds.high || "no bound");
    this.colour();
  }

  drawHistogram() {
    const most = Math.max(1, ...this.found.bins);
    this.bars = this.found.bins.map((size, number) => {
      // A square root, so that a bin of a few rows beside one of a million is seen at all.
      const height = size ? Math.max(1, Math.sqrt(size / most) * HEIGHT) : 0;
      return drawing("rect", { x: number + 0.06, width: 0.88, y: HEIGHT - height, height });
    });
    const box = `0 0 ${this.found.bins.length || 1} ${HEIGHT}`;
    this.chart.replaceChildren(drawing("svg", { viewBox: box, preserveAspectRatio: "none", "aria-hidden": "true" }, ...this.bars));
  }

  colour() {
    const from = (Number(this.low.value) / this.steps) * this.bars.length;
    const to = (Number(this.high.value) / this.steps) * this.bars.length;
    this.bars.forEach((bar, number) => bar.classList.toggle("in", number + 0.5 >= from && number + 0.5 <= to));
  }
}
