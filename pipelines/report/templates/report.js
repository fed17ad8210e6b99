"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const stage = viewer.querySelector(".stage");
  const text = viewer.querySelector(".text");
  const facts = viewer.querySelector(".facts");
  const [before, after, close] = ["before", "after", "close"].map((name) => viewer.querySelector(`[data-do="${name}"]`));
  const titles = new Map([...document.querySelectorAll("#titles [data-column]")].map((each) => [each.dataset.column, each.textContent]));
  let row = [];
  let place = 0;

  const makeLine = (name, value) => {
    const line = document.createElement("div");
    for (const [tag, words] of [["dt", name], ["dd", value]]) {
      const cell = document.createElement(tag);
      cell.textContent = words;
      line.append(cell);
    }
    return line;
  };

  const show = (number) => {
    place = (number + row.length) % row.length;
    const tile = row[place].closest(".picture");
    const picture = row[place].querySelector("img").cloneNode();
    picture.loading = "eager";
    stage.replaceChildren(picture);
    text.textContent = tile.querySelector(".caption").textContent;
    const shown = [...tile.querySelectorAll(".facts > div")].map((line) => {
      const copy = line.cloneNode(true);
      copy.hidden = false;
      return copy;
    });
    const told = new Set(shown.map((line) => line.querySelector("dt").textContent));
    const values = JSON.parse(tile.dataset.values);
    const others = [...titles].filter(([column, title]) => column in values && !told.has(title));
    facts.replaceChildren(...shown, ...others.map(([column, title]) => makeLine(title, values[column])));
    viewer.querySelector("[data-place]").textContent = `${place + 1} of ${row.length}`;
    before.disabled = after.disabled = row.length < 2;
  };

  document.addEventListener("click", (event) => {
    const frame = event.target.closest("button.frame");
    if (frame) {
      row = [...frame.closest(".gallery").querySelectorAll("button.frame")].filter((each) => each.offsetParent);
      show(row.indexOf(frame));
      viewer.showModal();
      close.focus();
    }
    const filter = event.target.closest("[data-filter]");
    if (filter) {
      const box = filter.closest(".inside");
      for (const each of box.querySelectorAll("[data-filter]")) each.setAttribute("aria-pressed", String(each === filter));
      for (const strip of box.querySelectorAll("[data-kind]")) {
        strip.hidden = filter.dataset.filter !== "" && strip.dataset.kind !== filter.dataset.filter;
      }
    }
    if (event.target.closest("[data-open]")) {
      const box = event.target.closest("section");
      const rules = [...box.querySelectorAll("details.rule")];
      const open = rules.some((each) => !each.open);
      for (const each of rules) each.open = open;
    }
  });
  before.addEventListener("click", () => show(place - 1));
  after.addEventListener("click", () => show(place + 1));
  close.addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    else if (event.key === "ArrowRight") show(place + 1);
    else return;
    event.preventDefault();
  });
  viewer.addEventListener("close", () => row[place].focus());
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details.rule")) each.open = true; });
})();
