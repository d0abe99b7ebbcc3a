// The dashboard in a real browser. `coordinator/tests/browser.rs` starts this script with the site's address, executes its commands from
// standard output (a line each: work N, fail N, restart), and answers each with a line.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [base, shots] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function ask(what) {
  console.log(what);
  const { value } = await lines.next();
  assert.equal(value, `done ${what}`);
}

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });
const seen = { outside: [], errors: [], dialogs: 0 };

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.on("page", (page) => {
    page.on("request", (r) => { if (!r.url().startsWith(base)) seen.outside.push(r.url()); });
    page.on("pageerror", (e) => seen.errors.push(e.message));
    page.on("console", (m) => { if (m.type() === "error" && !m.text().includes("ERR_CONNECTION_REFUSED") && !m.text().includes("ERR_INCOMPLETE_CHUNKED")) seen.errors.push(m.text()); });
    page.on("dialog", (d) => { seen.dialogs += 1; d.accept(); });
  });
  return context;
}

async function serious(page) {
  const cdp = await page.context().newCDPSession(page);
  const expression = `${axe};axe.run().then(r => JSON.stringify(r.violations.filter(v => ["serious", "critical"].includes(v.impact)).map(v => [v.id, v.nodes[0].html])))`;
  const { result } = await cdp.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
  return JSON.parse(result.value);
}

const text = (page, selector) => page.locator(selector).first().textContent();
async function until(what, holds) {
  const end = Date.now() + 30_000;
  while (!(await holds())) {
    assert(Date.now() < end, `waited for: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

// Log in: without a token nothing is shown.
const context = await open();
const page = await context.newPage();
await page.goto(`${base}/runs/r`);
assert(page.url().includes("/login"), page.url());
assert.deepEqual(await serious(page), []);
await page.fill("input[name=token]", "wrong-token-of-somebody");
await page.click("main button");
assert((await text(page, ".note")).includes("token is wrong"));
await page.fill("input[name=token]", "operate-token-of-the-test");
await page.click("main button");
assert.equal(new URL(page.url()).pathname, "/runs/r");

// Live: numbers follow without a reload, in two tabs.
const second = await context.newPage();
await second.goto(base);
assert.equal(await text(page, "dd[data-f=succeeded]"), "0");
await ask("work 8");
await until("eight in the first tab", async () => (await text(page, "dd[data-f=succeeded]")) === "8");
await until("eight in the second tab", async () => (await text(second, "[data-f=succeeded]")) === "8");
await until("the classes", async () => (await page.locator("#class-table tbody tr").count()) === 2);

// Typed text survives a refresh.
await page.fill("#classes input[type=search]", "coa");
assert.equal(await page.locator("#class-table tbody tr:visible").count(), 1);
await ask("fail 3");
await until("failures", async () => (await text(page, "dd[data-f=failed]")) === "3");
assert.equal(await page.inputValue("#classes input[type=search]"), "coa");

// The server goes and comes back; the page says so and goes on.
await ask("restart");
await until("live again", async () => (await text(page, "#line")) === "live");
await ask("work 1");
await until("nine", async () => (await text(page, "dd[data-f=succeeded]")) === "9");
await until("the end", async () => (await text(page, ".badge[data-f=state]")) === "finished");

// Sort by clicking heads.
await page.goto(`${base}/runs/r`);
const first = () => text(page, "#class-table tbody tr td");
await page.click("#class-table th:nth-child(1) button");
assert.equal(await first(), "Bag");
await page.click("#class-table th:nth-child(1) button");
assert.equal(await first(), "Coat");
assert.equal(await page.locator("#class-table th").first().getAttribute("aria-sort"), "descending");
await page.click("#class-table tbody tr:last-child a");
assert.equal(await text(page, "p[role=status]"), "7 images");

// By super-class, which the address says.
await page.goto(`${base}/runs/r`);
await page.click("text=by super-class");
assert.equal(new URL(page.url()).search, "?by=super-class");
assert.deepEqual((await page.locator("#class-table tbody tr td:first-child").allTextContents()).sort(), ["Accessories", "Outerwear"]);
await page.click("#class-table tbody a:text('Accessories')");
assert.equal(await text(page, "p[role=status]"), "7 images");
assert.equal(await page.inputValue("select[name=super_class]"), "Accessories");

// Filter images; the grid shows them, and a hostile name is text.
await page.goto(`${base}/runs/r/images?sort=loss&descending=true`);
await until("tiles", async () => (await page.locator("#grid .tile").count()) === 12);
await page.selectOption("select[name=state]", "failed");
await page.click("main button");
await until("failed tiles", async () => (await page.locator("#grid .tile").count()) === 3);
await page.selectOption("select[name=state]", "");
await page.fill("input[name=image]", "onerror");
await page.click("main button");
await until("one tile", async () => (await page.locator("#grid .tile").count()) === 1);
await page.click("#grid .tile");
assert((await text(page, "h1")).includes("<img src=x onerror=alert(1)>"));
assert.equal(await page.locator("main .pictures img").count(), 4);
await until("pictures", () => page.evaluate(() => [...document.querySelectorAll("main .pictures img")].every((i) => i.naturalWidth === 32)));
await until("charts", async () => (await page.locator(".chart canvas").count()) === 3);

// The sliders of an image ask the edit service; the address keeps the edit.
await page.goto(`${base}/runs/r/image?key=${encodeURIComponent("Bag/2.png")}`);
const edited = () => page.evaluate(() => { const i = document.querySelector("#edit img"); return i && i.naturalWidth === 32 ? i.getAttribute("src") : ""; });
await until("an edited picture", async () => (await edited()) !== "");
await page.selectOption("#edit select[name=class]", "Coat");
await page.locator("#edit input[name='move.shift_x']").fill("1.5");
await until("the edit", async () => { const src = await edited(); return src.includes("class=Coat") && src.includes("move.shift_x=1.5"); });
assert(page.url().endsWith("#class=Coat&move.shift_x=1.5"), page.url());
await page.reload();
await until("the same edit", async () => (await edited()).includes("class=Coat&move.shift_x=1.5"));
await page.click("#edit button[type=reset]");
await until("none", async () => { const src = await edited(); return src !== "" && !src.includes("class="); });

// A failure is redriven from its page.
await page.goto(`${base}/failures`);
assert((await text(page, ".card strong")).includes("3 × diverged"));
await page.click("#failures button");
assert((await text(page, ".note")).includes("3 to be projected"));
// The note is shown once.
await page.reload();
assert.equal(await page.locator(".note").count(), 0);
await ask("work 3");
await until("no failure", async () => (await text(page, "dd[data-f=failed]")) === "0");
await until("the end", async () => (await text(page, ".badge[data-f=state]")) === "finished");

// Every page, light and dark and on a phone: nothing serious for axe, nothing sideways; pictures for the manual.
const key = encodeURIComponent("Bag/2.png");
const pages = { runs: "/", run: "/runs/r", images: "/runs/r/images", image: `/runs/r/image?key=${key}`, fleet: "/fleet", failures: "/failures" };
const state = await context.storageState();
for (const [kind, options] of Object.entries({ light: { colorScheme: "light" }, dark: { colorScheme: "dark" }, phone: { viewport: { width: 390, height: 844 } } })) {
  const look = await open({ ...options, storageState: state });
  for (const [name, path] of Object.entries(pages)) {
    const tab = await look.newPage();
    await tab.goto(base + path);
    await until("live", async () => (await text(tab, "#line")) === "live");
    assert.deepEqual(await serious(tab), [], `${name} ${kind}`);
    assert(!(await tab.evaluate(() => document.documentElement.scrollWidth > innerWidth)), `${name} ${kind} scrolls sideways`);
    if (shots) await tab.screenshot({ path: `${shots}/${name}-${kind}.png`, fullPage: true });
    await tab.close();
  }
  await look.close();
}
// By keyboard: the first stop leads to the content, the next through the pages.
await page.goto(base);
await page.keyboard.press("Tab");
assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
// The read-only token is offered no action.
await page.click("text=Log out");
await page.fill("input[name=token]", "view-token-of-the-test");
await page.click("main button");
await page.goto(`${base}/runs/r`);
assert.equal(await page.locator("text=Redrive images").count(), 0);

// The browser speaks of the wrong token's answer.
assert.deepEqual(seen.errors.splice(0, 1).map((e) => e.includes("401")), [true]);
assert.deepEqual(seen, { outside: [], errors: [], dialogs: 0 });
console.log("end");
await browser.close();
process.exit(0);
