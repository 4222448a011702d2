"use strict";
// Data, routes and small tools that every view uses. Data files are classic scripts that call
// explorer.put(name, value), because a page on file:// may run scripts but fetch nothing.
const { h, render } = preact;
const { useState, useEffect, useMemo, useRef, useCallback } = preactHooks;
const html = htm.bind(h);

const explorer = (() => {
  const MOST_HELD = 96; // data files kept in memory
  const held = new Map(); // name -> value, the oldest first
  const waiting = new Map(); // name -> {promise, resolve}

  function put(name, value) {
    held.set(name, value);
    if (held.size > MOST_HELD) {
      const old = [...held.keys()].find((key) => /\/(latents|words)-/.test(key));
      if (old) held.delete(old);
    }
    waiting.get(name)?.resolve(value);
    waiting.delete(name);
  }

  function load(name) {
    if (held.has(name)) return Promise.resolve(held.get(name));
    if (waiting.has(name)) return waiting.get(name).promise;
    let resolve, reject;
    const promise = new Promise((yes, no) => ([resolve, reject] = [yes, no]));
    waiting.set(name, { promise, resolve });
    const script = document.createElement("script");
    script.src = "data/" + name.split("/").map(encodeURIComponent).join("/") + ".js";
    script.onload = () => script.remove();
    script.onerror = () => {
      waiting.delete(name);
      reject(new Error(`the data file ${name}.js is missing`));
    };
    document.head.append(script);
    return promise;
  }

  return { put, load };
})();

// The integers of a packed text: LEB128 in base64, as packing.py writes them.
function unpack(text) {
  const bytes = atob(text);
  const values = [];
  for (let i = 0; i < bytes.length; ) {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = bytes.charCodeAt(i++);
      value += (byte & 127) * scale;
      if (byte < 128) break;
      scale *= 128;
    }
    values.push(value);
  }
  return values;
}

const unzigzag = (value) => (value % 2 ? -(value + 1) / 2 : value / 2);
const floats = new DataView(new ArrayBuffer(4));
function bitsToFloat(bits) {
  floats.setUint32(0, bits);
  return floats.getFloat32(0);
}

// Routes: #view/part/part, each part encoded, so that a link can be kept and sent.
function readRoute() {
  try {
    return location.hash.slice(1).split("/").map(decodeURIComponent);
  } catch {
    return [""];
  }
}
const link = (...parts) => "#" + parts.map((part) => encodeURIComponent(part)).join("/");
const go = (...parts) => (location.hash = link(...parts));

function useRoute() {
  const [route, set] = useState(readRoute);
  useEffect(() => {
    const changed = () => set(readRoute());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

// The value of a promise: undefined while it is awaited, an Error if it failed.
function useLoaded(make, inputs) {
  const [found, set] = useState({ key: null, value: undefined });
  const key = JSON.stringify(inputs);
  useEffect(() => {
    let current = true;
    const keep = (value) => current && set({ key, value });
    make().then(keep, (error) => keep(error instanceof Error ? error : new Error(String(error))));
    return () => (current = false);
  }, [key]);
  return found.key === key ? found.value : undefined;
}

// What a reader keeps: notes, bookmarks, theme. In this browser alone.
const kept = {
  read(key, fallback) {
    try {
      return JSON.parse(localStorage.getItem("sae-explorer:" + key)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem("sae-explorer:" + key, JSON.stringify(value));
    } catch {
      // A browser may refuse to keep anything for a file; then nothing is kept.
    }
  },
};

const ESCAPED = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/g;
const PAIRS = /[\ud800-\udbff][\udc00-\udfff]/g;

// Text that can be shown: controls and marks that reverse its direction appear as escapes.
function visible(text) {
  const pieces = [];
  let last = 0;
  for (const pair of text.matchAll(PAIRS)) {
    pieces.push(escaped(text.slice(last, pair.index)), pair[0]);
    last = pair.index + 2;
  }
  return pieces.join("") + escaped(text.slice(last));
}
const escaped = (text) =>
  text.replace(ESCAPED, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

const percent = (share) =>
  share === 0 ? "0" : share < 0.0001 ? "<0.01%" : (100 * share).toFixed(share < 0.01 ? 2 : 1) + "%";
const grouped = (n) => n.toLocaleString("en-US");
const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const rounded = (x) => (x === 0 ? "0" : Number(x.toPrecision(3)).toString());
const short = (x) => rounded(x).replace("-", "−");
