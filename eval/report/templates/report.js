"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (id) => JSON.parse(document.getElementById(id).textContent);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// light and dark

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// tables: a header sorts its rows; those without a value stay last

function compare(a, b) {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
}

for (const button of all("table.results thead button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const other = { ascending: "descending", descending: "ascending" };
    const direction = other[header.getAttribute("aria-sort")] ?? header.dataset.first;
    for (const cell of all("thead th", table)) cell.setAttribute("aria-sort", cell === header ? direction : "none");
    const value = (row) => row.cells[header.cellIndex].dataset.value;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
    });
    table.tBodies[0].append(...rows);
  });
}

// charts: one drawing per choice of axes

for (const chooser of all(".chooser")) {
  chooser.addEventListener("change", () => {
    const selects = all("select", chooser);
    for (const chart of all(".chart", chooser.parentElement)) {
      chart.hidden = selects.some((select) => chart.dataset[select.dataset.axis] !== select.value);
    }
  });
}

// copying a command

for (const button of all("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
}

// galleries

const thumbnails = new Map();

function thumbnail(column, id) {
  if (!thumbnails.has(column.thumbnails)) thumbnails.set(column.thumbnails, read(`thumbnails-${column.thumbnails}`));
  const data = thumbnails.get(column.thumbnails)[id];
  return data && `data:image/webp;base64,${data}`;
}

function fullPath(column, id) {
  return [...column.folder.split("/"), `${id}.png`].map(encodeURIComponent).join("/");
}

function number(metric, value) {
  return (value ?? null) === null ? "–" : (Number(value) * metric.scale).toFixed(metric.digits);
}

class Gallery {
  constructor(root) {
    this.root = root;
    Object.assign(this, read(root.dataset.gallery));
    this.form = root.querySelector("form");
    this.list = root.querySelector(".rows");
    this.results = this.columns.filter((column) => column.kind === "result");
    const { metric, method } = this.form.elements;
    this.metrics.forEach((each, k) => metric.add(new Option(each.name, k)));
    this.results.forEach((each, k) => method.add(new Option(each.label, k)));
    if (!this.metrics.length) all(".of-metrics", root).forEach((label) => (label.hidden = true));
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.fill(entry.target);
    }, { rootMargin: "400px" });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => this.show());
    this.show();
  }

  value(metric, column, image) {
    const row = this.results.indexOf(column);
    return metric && row >= 0 ? this.values[metric.key][row][image] : undefined;
  }

  get metric() {
    return this.metrics[Number(this.form.elements.metric.value)];
  }

  chosen() {
    const { order, method, filter } = this.form.elements;
    const words = filter.value.toLowerCase();
    const matches = (id) => [id, ...(this.captions[id] ?? [])].some((text) => text.toLowerCase().includes(words));
    const images = this.ids.map((_, image) => image).filter((image) => matches(this.ids[image]));
    method.disabled = order.value === "name";
    if (order.value === "name") return images;
    const sign = (order.value === "best") === this.metric.higher ? -1 : 1;
    const values = this.values[this.metric.key][Number(method.value)];
    return images.sort((a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]));
  }

  show() {
    this.order = this.chosen();
    const { order, method, count } = this.form.elements;
    const shown = this.order.slice(0, Number(count.value) || undefined);
    const by = order.value === "name" ? "by name" : `${order.value} ${this.metric.name} of ${method.selectedOptions[0].text} first`;
    const status = `${shown.length} of ${this.ids.length} images, ${by}`;
    const matching = this.order.length < this.ids.length ? `; ${this.order.length} match the filter` : "";
    this.root.querySelector(".status").textContent = status + matching;
    this.observer.disconnect();
    this.list.replaceChildren(...shown.map((image) => {
      const row = make("li", "row");
      row.dataset.image = image;
      this.observer.observe(row);
      return row;
    }));
  }

  fill(row) {
    if (row.firstChild) return;
    this.observer.unobserve(row);
    const image = Number(row.dataset.image);
    const id = this.ids[image];
    const caption = make("p", "caption");
    caption.append(make("b", "", id));
    if (this.captions[id]) caption.append(" ", make("span", "", this.captions[id].join(" → ")));
    const tiles = make("div", "tiles");
    this.columns.forEach((column, k) => tiles.append(this.tile(column, k, image, id)));
    row.append(caption, tiles);
  }

  tile(column, k, image, id) {
    const tile = make("button", `tile ${column.kind}`);
    tile.type = "button";
    const data = thumbnail(column, id);
    const picture = make(data ? "img" : "span", this.small ? "picture pixelated" : "picture", data ? undefined : "no image");
    if (data) Object.assign(picture, { src: data, alt: `${id}, ${column.label}`, decoding: "async" });
    tile.append(picture, make("span", "label", column.label));
    if (column.kind === "result" && this.metric) {
      tile.append(make("span", "value", number(this.metric, this.value(this.metric, column, image))));
    }
    tile.addEventListener("click", () => viewer.open(this, image, k));
    return tile;
  }
}

// the enlarged picture

const still = matchMedia("(prefers-reduced-motion: reduce)");

const viewer = {
  dialog: document.getElementById("viewer"),

  part(selector) {
    return this.dialog.querySelector(selector);
  },

  get first() { // number of the first column that is no source
    return this.gallery.columns[0].kind === "source" ? 1 : 0;
  },

  open(gallery, image, k) {
    this.gallery = gallery;
    this.column = Math.max(k, this.first);
    this.place = gallery.order.indexOf(image);
    this.show(k < this.first);
    this.dialog.showModal();
    this.part(".stage").focus();
  },

  show(sourceFirst) {
    const { gallery } = this;
    const image = gallery.order[this.place];
    const id = gallery.ids[image];
    const column = gallery.columns[this.column];
    this.part("h2").textContent = `${id}: ${column.label}`;
    this.part(".caption").textContent = (gallery.captions[id] ?? []).join(" → ");
    const numbers = gallery.metrics.map((metric) => [metric, gallery.value(metric, column, image)]);
    const known = numbers.filter(([, value]) => value !== undefined);
    this.part(".numbers").textContent = known.map(([metric, value]) => `${metric.name} ${number(metric, value)}`).join(" · ");
    this.load(".stage .source", gallery.columns[0], id);
    this.load(".stage .result", column, id);
    this.swap(sourceFirst);
  },

  load(selector, column, id) {
    const picture = this.part(selector);
    const full = new Image();
    picture.src = thumbnail(column, id) ?? "data:,";
    picture.alt = `${id}, ${column.label}`;
    picture.classList.toggle("pixelated", this.gallery.small);
    full.onload = () => {
      if (picture.alt === full.alt) picture.src = full.src;
    };
    full.alt = picture.alt;
    full.src = fullPath(column, id);
  },

  swap(source = !this.part(".stage").classList.contains("on-source")) {
    this.part(".stage").classList.toggle("on-source", source);
    this.part(".what").textContent = this.gallery.columns[source ? 0 : this.column].label;
  },

  move(images, columns) {
    const count = this.gallery.columns.length - this.first;
    this.place = Math.min(Math.max(this.place + images, 0), this.gallery.order.length - 1);
    this.column = this.first + (this.column - this.first + columns + count) % count;
    this.show(false);
  },

  flicker() {
    clearInterval(this.timer);
    const { checked } = this.part("[name=flicker]");
    const rate = Number(this.part("[name=rate]").value);
    this.part("output").textContent = rate;
    if (checked && this.dialog.open) this.timer = setInterval(() => this.swap(), 1000 / rate);
  },

  respectMotion() {
    const box = this.part("[name=flicker]");
    box.disabled = still.matches;
    box.parentElement.title = still.matches ? "off, because your system asks for reduced motion" : "";
    if (still.matches) box.checked = false;
    this.flicker();
  },
};

const MOVES = {
  ArrowLeft: () => viewer.move(-1, 0),
  ArrowRight: () => viewer.move(1, 0),
  ArrowUp: () => viewer.move(0, -1),
  ArrowDown: () => viewer.move(0, 1),
};
const BUTTONS = {
  close: () => viewer.dialog.close(),
  previous: MOVES.ArrowLeft,
  next: MOVES.ArrowRight,
  up: MOVES.ArrowUp,
  down: MOVES.ArrowDown,
};

viewer.dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input")) return;
  const space = event.key === " " && !event.target.matches("button");
  if (!space && !MOVES[event.key]) return;
  event.preventDefault();
  if (!space) MOVES[event.key]();
  else if (!event.repeat) viewer.swap();
});
viewer.dialog.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (event.target === viewer.dialog) viewer.dialog.close();
  BUTTONS[button?.dataset.do]?.();
  if (button && event.detail && viewer.dialog.open) viewer.part(".stage").focus();
});
viewer.dialog.addEventListener("input", () => viewer.flicker());
viewer.dialog.addEventListener("close", () => {
  viewer.part("[name=flicker]").checked = false;
  viewer.flicker();
});
const hold = viewer.part("[data-do=hold]");
hold.addEventListener("pointerdown", (event) => hold.setPointerCapture(event.pointerId));
for (const kind of ["pointerdown", "keydown", "pointerup", "pointercancel", "keyup"]) {
  hold.addEventListener(kind, (event) => {
    if (!event.key || event.key === " " || event.key === "Enter") viewer.swap(kind.endsWith("down"));
  });
}
still.addEventListener("change", () => viewer.respectMotion());
viewer.respectMotion();

const galleries = all(".gallery").map((root) => new Gallery(root));
addEventListener("beforeprint", () => {
  for (const gallery of galleries) all(".row", gallery.list).forEach((row) => gallery.fill(row));
});
