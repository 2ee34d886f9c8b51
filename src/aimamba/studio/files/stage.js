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
  let waiting = [], timer = null, over = null; // frames to be played, and the last one
  let stopped = null; // the run that was stopped, until the next one is asked for

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

  const button = (text, onclick, more = {}) =>
    make("button", { type: "button", class: "tool", onclick, ...more }, text);
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
        make("p", { class: "quiet" },
          "Or drop a photo here to redraw a part of it, or a PNG made here to restore its settings.")));
    } else if (tile) {
      picture.append(figure(tile, view.tiles.indexOf(tile), false));
    } else {
      const columns = view.kind === "strip" ? Math.min(4, view.tiles.length) : Math.ceil(Math.sqrt(view.tiles.length));
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
    const showIt = () => show(index);
    return make("button", { type: "button", class: "tile", "aria-label": `Show ${named}`, onclick: showIt }, frame);
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

  // What tools.js asks of the stage.
  const desk = {
    grid, picture, drawer, server, tell, controls, current,
    tool: () => tool,
    leave: () => { tool = null; controls(); },
    ask: (codes, n, part) => {
      if (document.body.classList.contains("drawing")) return;
      busy("Waiting for the server …");
      trigger("redraw", { codes, n, ...part });
    },
  };
  const { redrawing, heating, forgetMask } = window.studio.tools(desk);

  // ---- frames from the server, played at a pace at which they can be watched

  function busy(text) {
    stopped = null;
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
    if (stopped !== null && frame.state !== "opened" && frame.run !== stopped) { // its first frame came after the stop
      if (frame.state === "drawing") document.getElementById("stop")?.click();
      return;
    }
    if (frame.run === stopped) return;
    if (frame.state === "error") {
      idle();
      return tell(frame.message, true);
    }
    if (!view || view.run !== frame.run) {
      idle();
      view = { run: frame.run, kind: frame.kind, of: frame.of, tiles: frame.tiles.map((tile) => ({ ...tile })) };
      at = tool = over = null;
      forgetMask();
      bar.firstChild.style.width = "0";
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
    if (id === "stop" && stopped === null) {
      stopped = (props.value && props.value.run) || "";
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
      const most = Math.floor(props.most_bytes / 1048576 * 10) / 10;
      return tell(`${chosen.name} has more than the ${most} MiB that are allowed.`, true);
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
    sessionStorage.setItem("studio-shown", "1");
    list();
  }

  function list() {
    past.hidden = !history.all().length;
    strip.classList.toggle("crisp", crisp);
    strip.replaceChildren(...history.all().map((tile) => {
      const button = make("button", { type: "button", class: "past", title: `${tile.class} · ${tile.about}`,
        "aria-label": `Open ${tile.class}, seed ${tile.seed}`, onclick: () => reopen(tile) });
      button.append(make("img", { src: tile.src, alt: "" }));
      return make("div", { role: "listitem" }, button);
    }));
  }

  async function forget() {
    await history.clear();
    sessionStorage.removeItem("studio-shown");
    list();
  }

  layout();
  history.load().then((images) => {
    list();
    if (sessionStorage.getItem("studio-shown") && images.length) reopen(images[0]); // the page was loaded again
  });
};
