// What the page does in the browser beside Gradio: the gallery of classes, light and dark, keys, and whether the
// server is there. stage.js and tools.js show images, history.js keeps them.
"use strict";

window.studio = (() => {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  // ---- the server: is it there, is it the same, which thumbnails are ready

  const ASK_EVERY = 5000, ASK_SOON = 1200; // milliseconds
  let instance = null;
  const listeners = [];

  function say(text) {
    let banner = document.getElementById("banner");
    if (!banner) {
      banner = make("div", { id: "banner", role: "status" });
      document.body.append(banner);
    }
    banner.textContent = text;
    banner.hidden = !text;
    document.body.classList.toggle("away", Boolean(text));
    const dot = document.getElementById("state");
    if (dot) dot.setAttribute("aria-label", text ? "not connected" : "connected");
  }

  async function ask() {
    let wait = ASK_EVERY;
    try {
      const answer = await fetch("status", { cache: "no-store" });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      const status = await answer.json();
      if (instance !== null && instance !== status.instance) return location.reload(); // another server, another page
      instance = status.instance;
      say(status.ready ? "" : "The server is shutting down. The page waits for its return.");
      listeners.forEach((listener) => listener(status));
      if (status.thumbnails.length < status.of) wait = ASK_SOON;
    } catch {
      say("The server does not answer. Trying again …");
      wait = ASK_SOON;
    }
    setTimeout(ask, wait);
  }

  // ---- the gallery of classes

  function gallery(element, props, watch) {
    const root = element.querySelector(".gallery");
    const shown = new Set();
    const list = make("div", { class: "classes", role: "radiogroup", "aria-label": "Class" });
    const buttons = props.names.map((name, label) => {
      const button = make("button", { type: "button", role: "radio", class: "class", "data-label": label, title: name,
        onclick: () => choose(label) });
      button.append(make("span", { class: "thumbnail", "aria-hidden": "true" }, [...name][0].toUpperCase()),
        make("span", { class: "name" }, name));
      return button;
    });
    list.append(...buttons);
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const seen = buttons.filter((button) => !button.hidden);
      const at = seen.findIndex((button) => button.getAttribute("aria-checked") === "true");
      const next = seen[(at + step + seen.length) % seen.length];
      if (next) choose(Number(next.dataset.label)), next.focus();
    });
    if (props.searched) {
      const field = make("input", { type: "search", placeholder: `Search ${props.names.length} classes`,
        "aria-label": "Search classes", class: "search" });
      field.addEventListener("input", () => {
        const words = field.value.toLowerCase().split(/\s+/);
        buttons.forEach((button, label) => {
          const name = props.names[label].toLowerCase();
          button.hidden = !words.every((word) => name.includes(word));
        });
      });
      root.append(field);
    }
    root.append(list);

    function mark() {
      buttons.forEach((button, label) => {
        button.setAttribute("aria-checked", String(label === props.value));
        button.tabIndex = label === props.value ? 0 : -1;
      });
    }
    function choose(label) {
      props.value = label;
      mark();
    }
    function reveal() {
      mark();
      const button = buttons[props.value];
      if (button && props.searched) button.scrollIntoView({ block: "nearest" });
    }
    watch("value", reveal);
    listeners.push((status) => {
      for (const label of status.thumbnails) {
        if (shown.has(label) || !buttons[label]) continue;
        shown.add(label);
        const image = make("img", { src: `thumbnails/${label}`, alt: "", loading: "lazy", draggable: "false" });
        buttons[label].querySelector(".thumbnail").replaceChildren(image);
      }
    });
    mark();
    begin();
  }

  // ---- settings that came with an image and have no control of their own

  function more(element, props, watch) {
    const root = element.querySelector(".more");
    function show() {
      const names = Object.entries(props.value || {});
      root.replaceChildren();
      if (!names.length) return;
      const text = names.map(([name, value]) => `${name.replaceAll("_", "-")} ${value}`).join(", ");
      const forget = make("button", { type: "button", class: "link",
        onclick: () => { props.value = {}; show(); } }, "Leave out");
      root.append(make("p", {}, `From the opened image: ${text}. `, forget));
    }
    watch("value", show);
    show();
  }

  // ---- light and dark, keys, and the narrow window

  function light() {
    const button = document.getElementById("light");
    if (!button || button.dataset.ready) return;
    button.dataset.ready = "1";
    const apply = (dark) => {
      document.body.classList.toggle("dark", dark);
      document.documentElement.style.colorScheme = dark ? "dark" : "light";
      button.setAttribute("aria-pressed", String(dark));
      button.setAttribute("aria-label", dark ? "Dark; change to light" : "Light; change to dark");
      button.title = button.getAttribute("aria-label");
    };
    const system = matchMedia("(prefers-color-scheme: dark)");
    const chosen = () => localStorage.getItem("studio-light");
    const now = () => (chosen() ? chosen() === "dark" : system.matches);
    apply(now());
    system.addEventListener("change", () => apply(now()));
    button.addEventListener("click", () => {
      localStorage.setItem("studio-light", document.body.classList.contains("dark") ? "light" : "dark");
      apply(now());
    });
  }

  function press(id) {
    const button = document.getElementById(id);
    if (button && !document.body.classList.contains("drawing")) button.click();
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (document.activeElement && document.activeElement.matches("input, textarea")) {
        document.activeElement.dispatchEvent(new Event("change", { bubbles: true })); // so that its value counts
      }
      setTimeout(() => press(event.shiftKey ? "again" : "draw"), 30);
    } else if (event.key === "Escape" && document.body.classList.contains("drawing")) {
      document.getElementById("stop")?.click();
    }
  });

  let begun = false;
  function begin() {
    if (begun) return;
    begun = true;
    document.getElementById("boot")?.remove();
    document.documentElement.lang = "en";
    light();
    new MutationObserver(light).observe(document.body, { childList: true, subtree: true });
    if (matchMedia("(min-width: 900px)").matches) {
      const open = (tries) => {
        const button = document.querySelector("#settings button.label-wrap");
        if (button) button.classList.contains("open") || button.click();
        else if (tries) setTimeout(open, 100, tries - 1);
      };
      open(20);
    }
    ask();
  }

  return { make, gallery, more, say, press };
})();
