// The tools of the stage: redraw a part of an image, and see how sure the model was of each token.
"use strict";

window.studio.tools = (desk) => {
  const { make } = window.studio;
  const { grid, picture, drawer } = desk;
  let keep = Math.floor(grid / 2), way = "top", painted = new Set();

  // ---- the squares over an image: one for each token, for pointers and for arrow keys

  function cells(kind, label, describe) {
    const found = Array.from({ length: grid * grid }, (_, index) => make("div", { role: "gridcell", class: "cell",
      "data-cell": index, tabindex: index ? -1 : 0, "aria-label": describe(index) }));
    const rows = Array.from({ length: grid }, (_, row) =>
      make("div", { role: "row" }, ...found.slice(row * grid, (row + 1) * grid)));
    const layer = make("div", { class: `cells ${kind}`, role: "grid", "aria-label": label, style: `--grid:${grid}` },
      ...rows);
    layer.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: grid, ArrowUp: -grid }[event.key];
      const from = Number(event.target.dataset.cell);
      if (!step || !found[from + step]) return;
      event.preventDefault();
      found[from].tabIndex = -1;
      found[from + step].tabIndex = 0;
      found[from + step].focus();
    });
    picture.querySelector(".frame").append(layer);
    return [layer, found];
  }

  const place = (index) => `row ${Math.floor(index / grid) + 1}, column ${index % grid + 1}`;

  // ---- redraw a part: keep the top, or paint

  function redrawing(tile) {
    const label = way === "top" ? "What is drawn again" : "Paint what shall be drawn again";
    const [layer, found] = cells(way, label, place);
    const chosen = (index) => (way === "top" ? index >= keep * grid : painted.has(index));
    const mark = () => found.forEach((cell, index) => {
      cell.classList.toggle("chosen", chosen(index));
      cell.setAttribute("aria-selected", String(chosen(index)));
    });
    const choice = (value, text) => make("button", { type: "button", role: "radio",
      "aria-checked": String(way === value), onclick: () => { way = value; desk.controls(); } }, text);
    const count = make("select", { "aria-label": "How many" },
      ...[1, 4, 9].map((n) => make("option", { value: n }, n === 1 ? "one image" : `${n} images`)));
    const go = make("button", { type: "button", class: "tool strong", onclick: () => {
      if (way === "paint" && !painted.size) return desk.tell("Paint over what shall be drawn again first.", true);
      const part = way === "top" ? { rows: keep } : { mask: [...painted].sort((a, b) => a - b) };
      desk.ask(tile.codes, Number(count.value), part);
    } }, "Redraw");
    const options = make("div", { class: "options" });
    options.append(...(way === "top" ? ruler(mark) : brush(layer, mark)));
    mark();
    drawer.append(
      make("div", { class: "segments", role: "radiogroup", "aria-label": "What is kept" },
        choice("top", "Keep the top"), choice("paint", "Paint")),
      options, make("div", { class: "options" }, count, go),
      make("p", { class: "quiet" }, "It shows what is chosen on the panel; the seed is a new one."));
  }

  function ruler(mark) {
    const text = make("output", {}, `${keep} of ${grid} rows`);
    const rows = make("input", { type: "range", min: 0, max: grid - 1, value: keep, "aria-label": "Rows to keep" });
    rows.addEventListener("input", () => {
      keep = Number(rows.value);
      text.textContent = `${keep} of ${grid} rows`;
      mark();
    });
    return [make("label", {}, "Keep ", rows), text];
  }

  function brush(layer, mark) {
    let adds = null; // whether the brush paints or wipes; null while it is up
    const paint = (cell) => {
      if (!cell || adds === null) return;
      painted[adds ? "add" : "delete"](Number(cell.dataset.cell));
      mark();
    };
    layer.addEventListener("pointerdown", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      event.preventDefault();
      adds = !painted.has(Number(cell.dataset.cell));
      layer.setPointerCapture(event.pointerId);
      paint(cell);
    });
    layer.addEventListener("pointermove", (event) => {
      if (adds === null) return;
      paint(document.elementFromPoint(event.clientX, event.clientY)?.closest(".cells .cell"));
    });
    for (const end of ["pointerup", "pointercancel"]) layer.addEventListener(end, () => { adds = null; });
    layer.addEventListener("keydown", (event) => {
      if (![" ", "Enter"].includes(event.key) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      adds = !painted.has(Number(event.target.dataset.cell));
      paint(event.target);
      adds = null;
    });
    const wipe = () => { painted.clear(); mark(); };
    const clear = make("button", { type: "button", class: "link", onclick: wipe }, "Clear");
    return [make("span", { class: "quiet" }, "Paint over what shall be drawn again."), clear];
  }

  // ---- how sure the model was: cividis, which people see alike whatever colours they see

  const CIVIDIS = [[0, 34, 78], [60, 77, 110], [124, 123, 120], [187, 174, 108], [254, 232, 56]];
  const BITS = 10; // at which the scale ends: one in a thousand

  function colour(probability) {
    const share = Math.min(BITS, -Math.log2(Math.max(probability, 1e-9))) / BITS * (CIVIDIS.length - 1);
    const low = Math.min(Math.floor(share), CIVIDIS.length - 2), part = share - low;
    const mixed = CIVIDIS[low].map((value, i) => Math.round(value + part * (CIVIDIS[low + 1][i] - value)));
    return `rgb(${mixed.join(" ")})`;
  }

  function percent(value) {
    if (value >= 0.1) return `${Math.round(value * 100)} %`;
    return value >= 0.001 ? `${(value * 100).toFixed(1)} %` : "less than 0.1 %";
  }

  async function heating(tile) {
    if (!tile.probabilities) {
      drawer.append(make("p", { class: "quiet" }, "Asking the model …"));
      const asked = { codes: tile.codes, label: tile.label };
      const found = await desk.server.sureness(asked).catch(() => null) || { error: "The server does not answer." };
      if (desk.current() !== tile || desk.tool() !== "heat") return;
      tile.probabilities = found.probabilities;
      if (found.error) {
        desk.leave();
        return desk.tell(found.error, true);
      }
      return desk.controls();
    }
    const text = (index) => `${place(index)}: the model gave this token ${percent(tile.probabilities[index])}`;
    const [, found] = cells("heat", "How sure the model was of each token", text);
    const readout = make("p", { class: "quiet readout" }, "Point at a square to see how probable its token was.");
    found.forEach((cell, index) => {
      const tell = () => { readout.textContent = `${text(index).replace(/^r/, "R")}.`; };
      cell.style.background = colour(tile.probabilities[index]);
      cell.addEventListener("pointerenter", tell);
      cell.addEventListener("focus", tell);
    });
    const stops = CIVIDIS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ");
    drawer.append(make("div", { class: "legend" }, make("span", {}, "sure"),
      make("i", { style: `background: linear-gradient(90deg, ${stops})` }), make("span", {}, "surprised")), readout);
  }

  return { redrawing, heating, forgetMask: () => { painted = new Set(); } };
};
