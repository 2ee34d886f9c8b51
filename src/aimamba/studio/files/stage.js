// The stage: an image, a sheet or a strip, how it grows, and the tools to redraw a part of it.
"use strict";

window.studio.stage = (element, trigger, props, server, watch) => {
  const { make, history } = window.studio;
  const SHOW_FOR = 1300; // milliseconds that an image takes to appear, at least
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const grid = props.grid, crisp = props.size <= 128;
  const root = element.querySelector(".stage");

  let view = null;     // what is shown: kind, of, tiles
  let at = null;       // the tile that is shown alone, or null
  let tool = null;     // "redraw", "heat" or null
  let keep = Math.floor(grid / 2), way = "top", painted = new Set();
  let waiting = [], timer = null, over = null; // frames to be played, and the last one

  // ---- what stands on the stage

  const picture = make("div", { class: "picture" });
  const bar = make("div", { class: "bar" }, make("i"));
  const message = make("p", { class: "message", role: "status", "aria-live": "polite" });
  const about = make("p", { class: "about" });
  const tools = make("div", { class: "tools" });
  const drawer = make("div", { class: "drawer", hidden: true });
  const strip = make("div", { class: "strip", role: "list" });
  const clear = make("button", { type: "button", class: "link", onclick: forget }, "Clear");
  const past = make("section", { class: "history", "aria-label": "History", hidden: true },
    make("div", { class: "head" }, make("h2", {}, "History"), clear), strip);
  const file = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Open an image",
    onchange: () => { if (file.files[0]) open(file.files[0]); file.value = ""; } });
  root.append(picture, bar, message, about, tools, drawer, file, past);

  const button = (text, onclick, more = {}) => make("button", { type: "button", class: "tool", onclick, ...more }, text);
  const back = button("Back to all", () => show(null));
  const save = make("a", { class: "tool", role: "button" }, "Download PNG");
  const redraw = button("Redraw a part", () => pick("redraw"), { "aria-expanded": "false" });
  const heat = button("How sure was it?", () => pick("heat"), { "aria-expanded": "false" });
  const opener = button("Open an image", () => file.click());
  tools.append(back, save, redraw, heat, opener);

  function tell(text, bad = false) {
    message.textContent = text || "";
    message.classList.toggle("bad", bad);
    message.setAttribute("role", bad ? "alert" : "status");
  }

  const current = () => (view && (view.tiles.length === 1 ? view.tiles[0] : at === null ? null : view.tiles[at]));
  const finished = (tile) => Boolean(tile && tile.codes);

  function layout() {
    const tile = current();
    picture.className = `picture ${view ? view.kind : "empty"}${tile ? " single" : ""}${crisp ? " crisp" : ""}`;
    picture.replaceChildren();
    if (!view) {
      picture.append(make("div", { class: "invitation" },
        make("p", {}, "Choose a class and press Draw."),
        make("p", { class: "quiet" }, "Or drop a photo here to redraw a part of it, or a PNG made here to restore its settings.")));
    } else if (tile) {
      picture.append(figure(tile, view.tiles.indexOf(tile), false));
    } else {
      const columns = view.kind === "strip" ? view.tiles.length : Math.ceil(Math.sqrt(view.tiles.length));
      picture.style.setProperty("--columns", columns);
      picture.append(...view.tiles.map((each, index) => figure(each, index, true)));
    }
    controls();
  }

  function figure(tile, index, many) {
    const named = `${tile.class}${tile.seed === null ? "" : `, seed ${tile.seed}`}`;
    const image = make("img", { alt: tile.src ? named : "", draggable: "false" });
    if (tile.src) image.src = tile.src;
    const frame = make("div", { class: "frame", style: `--grid:${grid}` }, image);
    tile.image = image;
    tile.pen = make("i", { class: "pen", hidden: true });
    frame.append(tile.pen);
    if (!many) return frame;
    return make("button", { type: "button", class: "tile", "aria-label": `Show ${named}`, onclick: () => show(index) }, frame);
  }

  function show(index) {
    at = index;
    tool = null;
    layout();
  }

  function controls() {
    const tile = current(), busy = document.body.classList.contains("drawing");
    const whole = !busy && finished(tile);
    back.hidden = !(view && view.tiles.length > 1 && at !== null);
    save.hidden = redraw.hidden = heat.hidden = !whole;
    opener.disabled = busy;
    if (whole) save.href = tile.src, save.download = tile.name;
    about.textContent = view && tile ? [tile.class, tile.about].filter(Boolean).join(" · ")
      : view && !busy ? "Choose an image to download it, to redraw a part or to see how sure the model was." : "";
    redraw.setAttribute("aria-expanded", String(tool === "redraw"));
    heat.setAttribute("aria-expanded", String(tool === "heat"));
    picture.querySelector(".cells")?.remove();
    drawer.replaceChildren();
    drawer.hidden = tool === null || !whole;
    if (!drawer.hidden && tool === "redraw") redrawing(tile);
    if (!drawer.hidden && tool === "heat") heating(tile);
  }

  function pick(name) {
    tool = tool === name ? null : name;
    tell("");
    controls();
  }

  // ---- redraw a part: keep the top, or paint

  function cells(kind, describe) {
    const found = Array.from({ length: grid * grid }, (_, index) => make("div", { role: "gridcell", class: "cell",
      "data-cell": index, tabindex: index ? -1 : 0, "aria-label": describe(index) }));
    const rows = Array.from({ length: grid }, (_, row) =>
      make("div", { role: "row" }, ...found.slice(row * grid, (row + 1) * grid)));
    const layer = make("div", { class: `cells ${kind}`, role: "grid", style: `--grid:${grid}` }, ...rows);
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

  function redrawing(tile) {
    const [layer, found] = cells(way, place);
    layer.setAttribute("aria-label", way === "top" ? "What is drawn again" : "Paint what shall be drawn again");
    const chosen = (index) => (way === "top" ? index >= keep * grid : painted.has(index));
    const mark = () => found.forEach((cell, index) => {
      cell.classList.toggle("chosen", chosen(index));
      cell.setAttribute("aria-selected", String(chosen(index)));
    });
    const choice = (value, text) => make("button", { type: "button", role: "radio", "aria-checked": String(way === value),
      onclick: () => { way = value; controls(); } }, text);
    const count = make("select", { "aria-label": "How many" },
      ...[1, 4, 9].map((n) => make("option", { value: n }, n === 1 ? "one image" : `${n} images`)));
    const go = make("button", { type: "button", class: "tool strong", onclick: () => {
      if (document.body.classList.contains("drawing")) return;
      if (way === "paint" && !painted.size) return tell("Paint over what shall be drawn again first.", true);
      const part = way === "top" ? { rows: keep } : { mask: [...painted].sort((a, b) => a - b) };
      busy("Waiting for the server …");
      trigger("redraw", { codes: tile.codes, n: Number(count.value), ...part });
    } }, "Redraw");
    const options = make("div", { class: "options" });
    if (way === "top") {
      const text = make("output", {}, `${keep} of ${grid} rows`);
      const rows = make("input", { type: "range", min: 0, max: grid - 1, value: keep, "aria-label": "Rows to keep" });
      rows.addEventListener("input", () => { keep = Number(rows.value); text.textContent = `${keep} of ${grid} rows`; mark(); });
      options.append(make("label", {}, "Keep ", rows), text);
    } else {
      options.append(make("span", { class: "quiet" }, "Paint over what shall be drawn again."),
        make("button", { type: "button", class: "link", onclick: () => { painted.clear(); mark(); } }, "Clear"));
      let adds = null;
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
        if (adds !== null) paint(document.elementFromPoint(event.clientX, event.clientY)?.closest(".cells .cell"));
      });
      for (const end of ["pointerup", "pointercancel"]) layer.addEventListener(end, () => { adds = null; });
      layer.addEventListener("keydown", (event) => {
        if (event.key !== " " && event.key !== "Enter" || event.ctrlKey) return;
        event.preventDefault();
        adds = !painted.has(Number(event.target.dataset.cell));
        paint(event.target);
        adds = null;
      });
    }
    mark();
    drawer.append(make("div", { class: "segments", role: "radiogroup", "aria-label": "What is kept" },
      choice("top", "Keep the top"), choice("paint", "Paint")), options, make("div", { class: "options" }, count, go),
      make("p", { class: "quiet" }, "It is drawn as the class chosen in the gallery, with the settings and the seed there."));
  }

  // ---- how sure the model was: cividis, which people see alike whatever colours they see

  const CIVIDIS = [[0, 34, 78], [60, 77, 110], [124, 123, 120], [187, 174, 108], [254, 232, 56]];
  const BITS = 10; // at which the scale ends: one in a thousand

  function colour(probability) {
    const share = Math.min(BITS, -Math.log2(Math.max(probability, 1e-9))) / BITS * (CIVIDIS.length - 1);
    const low = Math.min(Math.floor(share), CIVIDIS.length - 2), part = share - low;
    return `rgb(${CIVIDIS[low].map((value, i) => Math.round(value + part * (CIVIDIS[low + 1][i] - value))).join(" ")})`;
  }

  const percent = (value) => (value >= 0.1 ? `${Math.round(value * 100)} %` : value >= 0.0005 ? `${(value * 100).toPrecision(1)} %`
    : "less than 0.1 %");

  async function heating(tile) {
    if (!tile.probabilities) {
      drawer.append(make("p", { class: "quiet" }, "Asking the model …"));
      const found = await server.sureness({ codes: tile.codes, label: tile.label }).catch(() => ({ error: "The server does not answer." }));
      if (current() !== tile || tool !== "heat") return;
      if (found.error) {
        tool = null;
        controls();
        return tell(found.error, true);
      }
      tile.probabilities = found.probabilities;
      return controls();
    }
    const text = (index) => `${place(index)}: the model gave this token ${percent(tile.probabilities[index])}`;
    const [layer, found] = cells("heat", text);
    layer.setAttribute("aria-label", "How sure the model was of each token");
    const readout = make("p", { class: "quiet readout" }, "Point at a square to see how probable its token was.");
    found.forEach((cell, index) => {
      cell.style.background = colour(tile.probabilities[index]);
      for (const event of ["pointerenter", "focus"]) cell.addEventListener(event, () => { readout.textContent = text(index).replace(/^r/, "R") + "."; });
    });
    const stops = CIVIDIS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ");
    drawer.append(make("div", { class: "legend" }, make("span", {}, "sure"),
      make("i", { style: `background: linear-gradient(90deg, ${stops})` }), make("span", {}, "surprised")), readout);
  }

  // ---- frames from the server, played at a pace at which they can be watched

  function busy(text) {
    document.body.classList.add("drawing");
    tell(text);
    controls();
  }

  function idle() {
    clearTimeout(timer);
    timer = null;
    waiting = [];
    document.body.classList.remove("drawing");
    bar.classList.remove("on");
    for (const tile of view ? view.tiles : []) if (tile.pen) tile.pen.hidden = true;
    controls();
  }

  function receive() {
    const frame = props.value;
    if (!frame) return;
    if (frame.state === "error") {
      idle();
      return tell(frame.message, true);
    }
    if (!view || view.run !== frame.run) {
      idle();
      view = { run: frame.run, kind: frame.kind, of: frame.of, tiles: frame.tiles.map((tile) => ({ ...tile })) };
      at = tool = over = null;
      painted = new Set();
      if (frame.state === "drawing") busy("Waiting for a place …");
      layout();
    }
    waiting.push(...frame.news);
    if (frame.state !== "drawing") over = frame;
    if (frame.state === "opened" || calm.matches) while (waiting.length) play(waiting.shift());
    if (timer === null) tick();
  }

  function tick() {
    timer = null;
    if (!waiting.length) return over ? end() : undefined;
    play(waiting.shift());
    const pace = view.tiles.length > 1 ? SHOW_FOR / 16 / view.tiles.length : SHOW_FOR / Math.min(64, view.of);
    timer = setTimeout(tick, over || waiting.length > 8 ? Math.min(pace, 25) : pace);
  }

  function play(news) {
    const tile = view.tiles[news.tile];
    if (!tile) return;
    Object.assign(tile, news);
    if (tile.image) tile.image.src = tile.src;
    tile.image.alt = `${tile.class}${tile.seed === null ? "" : `, seed ${tile.seed}`}`;
    tile.pen.hidden = tile.tokens >= view.of;
    tile.pen.style.setProperty("--column", tile.tokens % grid);
    tile.pen.style.setProperty("--row", Math.floor(tile.tokens / grid));
    const done = view.tiles.reduce((sum, each) => sum + (each.tokens || 0), 0), all = view.tiles.length * view.of;
    bar.classList.toggle("on", document.body.classList.contains("drawing"));
    bar.firstChild.style.width = `${(100 * done) / all}%`;
    if (document.body.classList.contains("drawing")) {
      const images = view.tiles.filter(finished).length;
      tell(view.tiles.length > 1 ? `${images} of ${view.tiles.length} images` : `Token ${tile.tokens} of ${view.of}`);
    }
  }

  function end() {
    const last = over, images = view.tiles.length;
    over = null;
    idle();
    tell(last.state === "opened" ? last.message : images > 1 ? `${images} images are done.` : "Done.");
    if (last.state !== "opened") [...view.tiles].reverse().forEach(remember);
  }

  watch("value", receive);
  document.addEventListener("click", (event) => {
    const id = event.target.closest("button")?.id;
    if (id === "draw" || id === "again") busy("Waiting for the server …");
    if (id === "stop") {
      over = null;
      if (view && view.tiles.some((tile) => !finished(tile))) view = view.tiles.length > 1 ? view : null;
      idle();
      layout();
      tell("Stopped.");
    }
  });

  // ---- open: a file, or an image of the history

  function open(chosen) {
    if (document.body.classList.contains("drawing")) return;
    if (chosen.size > props.most_bytes) {
      return tell(`${chosen.name} has more than the ${Math.floor(props.most_bytes / 1048576 * 10) / 10} MiB that are allowed.`, true);
    }
    tell(`Opening ${chosen.name} …`);
    const reader = new FileReader();
    reader.onload = () => trigger("opened", { data: reader.result, name: chosen.name });
    reader.onerror = () => tell(`${chosen.name} cannot be read.`, true);
    reader.readAsDataURL(chosen);
  }

  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
      event.preventDefault();
      root.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
    });
  }

  function reopen(tile) {
    if (document.body.classList.contains("drawing")) return;
    trigger("opened", { data: tile.src, name: tile.name, codes: tile.codes });
  }

  async function remember(tile) {
    if (!finished(tile)) return;
    const { label, class: name, seed, about: settings, src, codes } = tile;
    await history.add({ label, class: name, seed, about: settings, src, codes, name: tile.name });
    list();
  }

  function list() {
    past.hidden = !history.all().length;
    strip.classList.toggle("crisp", crisp);
    strip.replaceChildren(...history.all().map((tile) => make("div", { role: "listitem" },
      make("button", { type: "button", class: "past", title: `${tile.class} · ${tile.about}`, onclick: () => reopen(tile),
        "aria-label": `Open ${tile.class}, seed ${tile.seed}` }, make("img", { src: tile.src, alt: "" })))));
  }

  async function forget() {
    await history.clear();
    list();
  }

  layout();
  history.load().then((images) => {
    list();
    if (sessionStorage.getItem("studio-reopen") && images.length) reopen(images[0]);
    sessionStorage.removeItem("studio-reopen");
  });
};
