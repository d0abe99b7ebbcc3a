"use strict";
(() => {
  const table = document.querySelector("table.images");
  document.documentElement.classList.remove("static");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.querySelectorAll("th[data-key]")];
  const find = document.getElementById("find");
  const choice = document.getElementById("class");
  const count = document.getElementById("count");
  const empty = document.querySelector(".empty");
  const names = new Intl.Collator(undefined, { numeric: true });
  const isText = (key) => key === "name" || key === "class";

  function compare(key, a, b) {
    if (isText(key)) return names.compare(a.dataset[key], b.dataset[key]);
    const [x, y] = [Number(a.dataset[key]), Number(b.dataset[key])];
    return x === y ? 0 : x - y;
  }

  function sort(header) {
    const key = header.dataset.key;
    const now = header.getAttribute("aria-sort");
    // A first press shows the worst numbers, and names from A.
    const up = now === "none" ? isText(key) : now === "descending";
    for (const other of headers) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => (up ? compare(key, a, b) : compare(key, b, a)));
    body.append(...rows);
  }

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = (row.dataset.name + " " + row.dataset.class).toLowerCase();
      const match = (!choice.value || row.dataset.class === choice.value) && words.every((w) => text.includes(w));
      row.hidden = !match;
      shown += match;
    }
    count.textContent = shown === rows.length ? `${rows.length} images` : `${shown} of ${rows.length} images`;
    empty.hidden = shown > 0;
  }

  for (const header of headers) header.querySelector("button").addEventListener("click", () => sort(header));
  find.addEventListener("input", filter);
  choice.addEventListener("change", filter);
})();
