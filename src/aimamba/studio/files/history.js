// Keeps the latest images in the browser, so that they outlive the server and the page. Nothing is sent anywhere.
"use strict";

window.studio.history = (() => {
  const MOST = 60, STORE = "images";
  let database = null;
  let memory = []; // newest first

  function opened() {
    return new Promise((resolve) => {
      try {
        const request = indexedDB.open("aimamba-studio", 1);
        request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => resolve(null); // a private window: images are kept as long as the page
      } catch {
        resolve(null);
      }
    });
  }

  const done = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

  const store = (mode) => database.transaction(STORE, mode).objectStore(STORE);

  async function load() {
    database = await opened();
    if (database) memory = (await done(store("readonly").getAll())).reverse();
    return memory;
  }

  async function add(tile) {
    const image = { ...tile };
    memory.unshift(image);
    const old = memory.splice(MOST);
    if (!database) return;
    try {
      image.id = await done(store("readwrite").add({ ...tile }));
      for (const each of old) if (each.id) store("readwrite").delete(each.id);
    } catch {
      database = null; // the disk is full
    }
  }

  async function clear() {
    memory = [];
    if (database) await done(store("readwrite").clear());
  }

  return { load, add, clear, all: () => memory };
})();
