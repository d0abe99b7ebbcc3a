"use strict";
// Keeps a page up to date: numbers come as they change, larger parts of the page are fetched again every few seconds.
const REFRESH = 5000;
const number = (n) => n.toLocaleString("en");
const all = (query, within = document) => [...within.querySelectorAll(query)];

function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

const FIELDS = {
  state: (r) => r.state, images: (r) => number(r.images), succeeded: (r) => number(r.skipped + r.succeeded), failed: (r) => number(r.failed),
  started: (r) => number(r.started), queued: (r) => number(r.queued), waiting: (r) => number(r.waiting),
  rate: (r) => (r.per_hour === null ? "–" : number(Math.round(r.per_hour))), eta: (r) => duration(r.eta_seconds),
  problem: (r) => r.problem ?? "", cost: (r) => (r.cost === null ? "–" : `$${r.cost.toFixed(2)}`),
  done: (r) => `${(r.images ? (100 * (r.skipped + r.succeeded + r.failed)) / r.images : 0).toFixed(1)} %`,
};

function show(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const settled = new Map();
let asked = 0;
let waiting = false;
let outages = "[]";

function take(tick) {
  // The first message of a connection has everything, or as much as it has room for; the others have what changed.
  let news = tick.full;
  if (tick.full) settled.clear();
  for (const name of tick.gone.runs) {
    if (settled.delete(name)) news = true;
  }
  for (const run of tick.runs) {
    for (const place of all("[data-run]")) {
      if (place.dataset.run !== run.name) continue;
      for (const element of all("[data-f]", place)) show(element, FIELDS[element.dataset.f](run));
      for (const bar of all("progress", place)) [bar.max, bar.value] = [Math.max(run.images, 1), run.skipped + run.succeeded + run.failed];
      for (const badge of all(".badge[data-f=state]", place)) badge.className = `badge ${run.state}`;
    }
    const mark = `${run.state} ${run.succeeded} ${run.failed} ${run.unread}`;
    if (settled.get(run.name) !== mark) news = true;
    settled.set(run.name, mark);
  }
  if (JSON.stringify(tick.outages) !== outages) news = true;
  outages = JSON.stringify(tick.outages);
  if (document.getElementById("workers") && tick.workers.length + tick.gone.workers.length > 0) news = true;
  if (news) refresh();
  document.dispatchEvent(new CustomEvent("basin:tick", { detail: tick }));
}

// Parts that have the focus are left alone, so that no typing is lost.
async function refresh() {
  const parts = all("[data-refresh]");
  if (waiting || parts.length === 0) return;
  waiting = true;
  await new Promise((done) => setTimeout(done, Math.max(0, asked + REFRESH - performance.now())));
  asked = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { "X-Refresh": "1" } });
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of all("[data-refresh]")) {
        const fresh = page.getElementById(part.id);
        if (!fresh || part.contains(document.activeElement) || part.innerHTML === fresh.innerHTML) continue;
        const open = all("details[open]", part).map((d) => d.dataset.key);
        part.replaceChildren(...fresh.childNodes);
        for (const details of all("details", part)) details.open = open.includes(details.dataset.key);
        arrange(part);
      }
    }
  } catch { /* The next tick asks again. */ }
  waiting = false;
}

// A page whose session has ended is sent to the log-in.
async function again() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) { location.reload(); return; }
  } catch { /* The server is away. */ }
  listen();
}

// Browsers allow six connections to a server: a hidden page closes its own.
let source = null;
function listen() {
  const line = document.getElementById("line");
  if (!line) return;
  const state = (on, text) => { line.className = on ? "on" : "off"; show(line, text); };
  if (document.hidden) { source?.close(); source = null; return; }
  if (source) return;
  source = new EventSource("/ui/live");
  source.onopen = () => state(true, "live");
  source.onerror = () => {
    state(false, "connection lost, reconnecting");
    // After an invalid answer a browser gives up.
    if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(again, 2000); }
  };
  source.addEventListener("tick", (event) => { state(true, "live"); take(JSON.parse(event.data)); });
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const charts = [];
function draw(place) {
  const { title, x, series, bars } = JSON.parse(place.dataset.chart);
  place.replaceChildren();
  const hues = ["--accent", "--busy", "--good", "--bad", "--soft"];
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  // The first series matters most: it is drawn last, on top.
  const lines = series.map((s, i) => ({
    label: s.label, stroke: colour(series.length < 8 ? hues[i % hues.length] : i === 0 ? "--accent" : "--soft"),
    width: i === 0 ? 2 : 1, points: { show: x.values.length < 3 },
    ...(bars ? { paths: uPlot.paths.bars({ size: [0.95, 200], align: 1 }), fill: colour("--accent"), points: { show: false } } : {}),
  }));
  const chart = new uPlot({
    title, width: Math.max(place.clientWidth, 200), height: 240, scales: { x: { time: false } }, legend: { show: series.length < 8 },
    axes: [{ ...axis, label: x.label }, { ...axis, size: 62 }], series: [{ label: x.label }, ...lines.reverse()],
  }, [x.values, ...series.map((s) => s.values).reverse()], place);
  charts.push([place, chart]);
}

function drawAll(within) {
  if (typeof uPlot === "undefined") return;
  for (const place of all("[data-chart]", within)) draw(place);
}

// Tables that are sorted by their heads and filtered by a field.
function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}
function order(table, column, descending) {
  const rows = [...table.tBodies[0].rows];
  const compare = (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    const [m, n] = [parseFloat(x), parseFloat(y)];
    if (Number.isNaN(m) !== Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1;
    const sign = Number.isNaN(m) ? x.localeCompare(y) : m - n;
    return descending ? -sign : sign;
  };
  table.tBodies[0].append(...rows.sort(compare));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  table.dataset.order = `${column} ${descending ? 1 : 0}`;
}
const orders = new Map();
function arrange(within) {
  drawAll(within);
  for (const table of all("table[data-sortable]", within)) {
    all("th button", table).forEach((button) => {
      const column = button.parentElement.cellIndex;
      button.addEventListener("click", () => {
        const [before, descending] = (table.dataset.order ?? "-1 0").split(" ").map(Number);
        order(table, column, before === column ? !descending : button.parentElement.classList.contains("num"));
        orders.set(table.id, table.dataset.order);
      });
    });
    if (orders.has(table.id)) { const [column, descending] = orders.get(table.id).split(" ").map(Number); order(table, column, !!descending); }
  }
  for (const field of all("input[data-filters]")) filter(field);
}
function filter(field) {
  const wanted = field.value.toLowerCase();
  for (const row of all(`#${field.dataset.filters} tbody tr`)) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
}

// The grid of images: only visible tiles exist, and pages of them are fetched when they become visible.
const PAGE = 100;
function grid(place) {
  const query = place.dataset.query;
  const total = Number(place.dataset.total);
  const items = ["target", "generated", "inverted", ...("tuned" in place.dataset ? ["tuned"] : [])];
  const [width, height, gap] = [236, 142, 10];
  const pages = new Map();
  const tiles = new Map();
  async function page(n) {
    if (pages.has(n)) return;
    pages.set(n, null);
    try {
      const answer = await fetch(`${place.dataset.from}?${query}&offset=${n * PAGE}&limit=${PAGE}`);
      if (!answer.ok) throw new Error(answer.status);
      pages.set(n, (await answer.json()).images);
      paint();
    } catch { pages.delete(n); setTimeout(paint, 2000); }
  }
  const fixed = (v) => (v === null ? "–" : v.toFixed(4));
  function tile(image) {
    const link = document.createElement("a");
    link.className = "tile";
    const key = encodeURIComponent(image.image);
    link.href = `${place.dataset.run}/image?key=${key}`;
    link.title = image.image;
    if (image.state === "succeeded") {
      const four = link.appendChild(document.createElement("div"));
      four.className = "four";
      four.dataset.of = items.length;
      for (const item of items) {
        const picture = four.appendChild(document.createElement("img"));
        picture.className = "pixels";
        picture.loading = "lazy";
        picture.alt = item;
        picture.width = picture.height = 192 / items.length;
        picture.src = `${place.dataset.run}/picture?key=${key}&item=${item}`;
      }
    } else {
      const badge = link.appendChild(document.createElement("span"));
      badge.className = "badge failed";
      badge.textContent = image.reason;
      const why = link.appendChild(document.createElement("div"));
      why.className = "numbers";
      why.textContent = image.message ?? "";
    }
    const name = link.appendChild(document.createElement("div"));
    name.className = "name";
    name.textContent = image.image;
    const numbers = link.appendChild(document.createElement("div"));
    numbers.className = "numbers";
    numbers.textContent = image.state === "succeeded" ? `${image.class} · loss ${fixed(image.loss)} · LPIPS ${fixed(image.lpips)}` : image.class ?? "";
    return link;
  }
  function paint() {
    const columns = Math.max(1, Math.floor((place.clientWidth + gap) / (width + gap)));
    const across = (place.clientWidth + gap) / columns - gap;
    place.style.height = `${Math.ceil(total / columns) * (height + gap)}px`;
    const top = -place.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / (height + gap)) - 2) * columns;
    const last = Math.min(total, (Math.ceil((top + innerHeight) / (height + gap)) + 2) * columns);
    for (const [i, element] of tiles) if (i < first || i >= last) { element.remove(); tiles.delete(i); }
    for (let i = first; i < last; i++) {
      const rows = pages.get(Math.floor(i / PAGE));
      if (rows === undefined) { page(Math.floor(i / PAGE)); continue; }
      if (!rows?.[i % PAGE]) continue;
      if (!tiles.has(i)) tiles.set(i, tile(rows[i % PAGE]));
      const element = tiles.get(i);
      element.style.width = `${across}px`;
      element.style.height = `${height}px`;
      element.style.left = `${(i % columns) * (across + gap)}px`;
      element.style.top = `${Math.floor(i / columns) * (height + gap)}px`;
      if (!element.isConnected) {
        const next = [...tiles].filter(([j, e]) => j > i && e.isConnected).sort(([a], [b]) => a - b)[0];
        place.insertBefore(element, next?.[1] ?? null);
      }
    }
  }
  addEventListener("scroll", paint, { passive: true });
  addEventListener("resize", paint);
  paint();
}

// The sliders of an image: the edit service lists the possible edits, and each change requests another picture. The URL keeps the edit.
async function edits(place) {
  const image = place.dataset.image;
  const fail = (text) => { const p = document.createElement("p"); p.className = "problem"; p.textContent = text; place.replaceChildren(p); };
  let options;
  try {
    const answer = await fetch(`${place.dataset.edit}/options?${new URLSearchParams({ image })}`);
    options = await answer.json();
    if (!answer.ok) return fail(options.error);
  } catch { return fail("The edit service does not answer."); }
  const trained = options.directions.filter((d) => !/^pc\d+$/.test(d));
  const principal = options.directions.filter((d) => /^pc\d+$/.test(d)).sort((a, b) => a.slice(2) - b.slice(2)).slice(0, 6);
  const form = document.createElement("form");
  form.className = "sliders";
  const asked = new URLSearchParams(location.hash.slice(1));
  function add(name, label, control) {
    const outer = form.appendChild(document.createElement("label"));
    const text = outer.appendChild(document.createElement("span"));
    control.name = name;
    if (asked.has(name)) control.value = asked.get(name);
    outer.append(control);
    const tell = () => { text.textContent = control.type === "range" ? `${label} ${Number(control.value).toFixed(2)}` : label; };
    control.addEventListener("input", tell);
    control.addEventListener("reset", tell);
    tell();
  }
  function choice(values, chosen) {
    const select = document.createElement("select");
    for (const [value, text] of values) select.add(new Option(text, value, value === chosen, value === chosen));
    return select;
  }
  function range(min, max, value) {
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min, max, step: 0.05, value, defaultValue: value });
    return slider;
  }
  add("class", "Class", choice([["", `${options.class} (unchanged)`], ...options.classes.filter((c) => c !== options.class).map((c) => [c, c])], ""));
  add("strength", "Strength", range(0, 1.5, 1));
  for (const direction of [...trained, ...principal]) add(`move.${direction}`, direction.replace("_", " "), range(-4, 4, 0));
  add("truncation", "Truncation", range(0, 1.5, 1));
  add("view", "Picture", choice([["blended", "blended into the image"], ["inverted", "inverted"], ["generated", "projection"]], "blended"));
  if (options.tuned) add("fine_tuned", "Weights", choice([["true", "fine-tuned"], ["false", "of the model"]], "true"));
  const again = form.appendChild(document.createElement("button"));
  again.type = "reset";
  again.textContent = "Reset";
  const figure = document.createElement("figure");
  const picture = figure.appendChild(document.createElement("img"));
  picture.className = "pixels";
  picture.alt = "edited image";
  const caption = figure.appendChild(document.createElement("figcaption"));
  caption.setAttribute("role", "status");
  place.replaceChildren(figure, form);
  let wanted = null;
  let busy = false;
  async function paint() {
    const fields = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...fields]) {
      const still = { class: "", strength: "1", truncation: "1", view: "blended", fine_tuned: "true" }[name] ?? "0";
      if (value === still) fields.delete(name);
    }
    history.replaceState(null, "", fields.size ? `#${fields}` : location.pathname + location.search);
    fields.set("image", image);
    wanted = `${place.dataset.edit}?${fields}`;
    if (busy) return;
    busy = true;
    // One request at a time, and always the last one.
    while (wanted) {
      const now = wanted;
      wanted = null;
      try {
        const answer = await fetch(now);
        if (!answer.ok) { show(caption, (await answer.json()).error); continue; }
        // From the cache: it has just been fetched.
        picture.src = now;
        await picture.decode();
        show(caption, "edited");
      } catch { show(caption, "The edit service does not answer."); }
    }
    busy = false;
  }
  form.addEventListener("input", paint);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { for (const control of form.elements) control.dispatchEvent(new Event("reset")); paint(); }));
  paint();
}

// An action that destroys work needs a confirmation.
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.ask ?? event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});
document.addEventListener("input", (event) => { if (event.target.dataset.filters) filter(event.target); });
document.addEventListener("visibilitychange", listen);
document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark") && !matchMedia("(prefers-color-scheme: light)").matches
    ? document.documentElement.dataset.theme !== "light" : document.documentElement.dataset.theme === "dark";
  localStorage.setItem("theme", dark ? "light" : "dark");
  theme();
  drawAll(document);
});
function theme() {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
addEventListener("resize", () => { for (const [place, chart] of charts) if (place.isConnected) chart.setSize({ width: Math.max(place.clientWidth, 200), height: 240 }); });
theme();
arrange(document);
for (const place of all("#grid")) grid(place);
for (const place of all("#edit")) edits(place);
listen();
