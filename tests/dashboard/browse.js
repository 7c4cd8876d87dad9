// Drives a browser over the dashboard as a person would, and looks at what it shows. What is wished for comes in
// POSTRIDER_BROWSE. Ends with "all is well", or with what is not.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const http = require("node:http");
const puppeteer = require("puppeteer-core");

const wish = JSON.parse(process.env.POSTRIDER_BROWSE);
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

// What the console may say: that a refused login was refused.
const REFUSED = /status of 401/;
const FORBIDDEN = /status of 403/;
// And of a message that wants to run a script, that it could not.
const SANDBOXED = /Blocked script execution in .* because the document's frame is sandboxed/;
// And that what it wants to load is not loaded.
const BLOCKED = /Content Security Policy/;

let complaints = [];
const requests = new Set();
const others = [];

async function open(context) {
  const page = await context.newPage();
  await page.setViewport({ width: 1280, height: 900 });
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warn") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("dialog", (dialog) => dialog.accept());
  page.on("request", (request) => requests.add(request.url()));
  return page;
}

// Nothing but this was complained of since the last look.
function quiet(...allowed) {
  const rest = complaints.filter((text) => !allowed.some((pattern) => pattern.test(text)));
  assert.deepEqual(rest, []);
  complaints = [];
}

const text = (page) => page.evaluate(() => document.body.innerText);
const has = (page, words) => page.waitForFunction((words) => document.body.innerText.includes(words), { timeout: 30000 }, words);

// Presses something that leads to another page.
async function leave(page, how) {
  await Promise.all([page.waitForNavigation({ timeout: 30000 }), how()]);
}

async function press(page, name, within = "main") {
  const found = await page.evaluateHandle(
    (name, within) => [...document.querySelectorAll(`${within} button`)].find((button) => button.innerText.trim() === name),
    name,
    within,
  );
  assert.ok(found.asElement(), `no button ${name} in ${within} of ${page.url()}`);
  await leave(page, () => found.asElement().click());
}

async function logIn(page, origin) {
  await page.goto(`${origin}/login`);
  await page.type("#token", wish.token);
  await leave(page, () => page.keyboard.press("Enter"));
}

// In light and dark, on a desk and on a phone: nobody is shut out, and nothing is cut off.
async function inspect(page, url, allowed = []) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    for (const width of [1280, 360]) {
      await page.setViewport({ width, height: 800 });
      await page.goto(url);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      assert.ok(over <= 0, `${url} is ${over} pixels too wide at ${width}`);
      await page.evaluate(axe);
      const found = await page.evaluate(() => window.axe.run(document, { iframes: false }));
      const bad = found.violations.map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes.map((node) => node.html).join(" | ")}`);
      assert.deepEqual(bad.filter((text) => /^(serious|critical)/.test(text)), [], `${url}, ${scheme}, ${width}`);
      if (bad.length) console.log(`${url}, ${scheme}, ${width}: ${bad.join("; ")}`);
      if (wish.shots) {
        const name = url.replace(/^https?:\/\/[^/]*/, "").replace(/[^a-z]+/gi, "-") || "-";
        await page.screenshot({ path: `${wish.shots}/${name}${scheme}-${width}.png`, fullPage: true });
      }
    }
  }
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  await page.setViewport({ width: 1280, height: 900 });
  quiet(...allowed);
}

async function refused(browser) {
  const context = await browser.createBrowserContext();
  const page = await open(context);
  for (const path of ["/", "/queue", `/messages/${wish.later}`, "/captured"]) {
    await page.goto(wish.origin + path);
    assert.equal(new URL(page.url()).pathname, "/login", path);
    assert.ok(!(await text(page)).includes("far.test"), path);
  }
  quiet();
  await inspect(page, `${wish.origin}/login`);
  await page.goto(`${wish.origin}/login?next=%2Fqueue`);
  await page.type("#token", "0123456789abcdef0123456789abcdee");
  await leave(page, () => page.keyboard.press("Enter"));
  await has(page, "That is not the token");
  assert.deepEqual(await context.cookies(), []);
  quiet(REFUSED);
  await context.close();
}

// Another site's page with a form that goes to ours, seen by somebody who is logged in. By its port it is another
// site, by its name not: so the cookie comes along, and only the server can tell.
async function forged(page) {
  const form = `<form method="post" action="${wish.origin}/suspend"><input name="kind" value="all"><button>Win</button></form>`;
  const site = http.createServer((_, answer) => {
    answer.setHeader("content-type", "text/html");
    answer.end(`<!doctype html><link rel="icon" href="data:,">${form}`);
  });
  await new Promise((ready) => site.listen(0, "127.0.0.1", ready));
  const address = `http://127.0.0.1:${site.address().port}`;
  others.push(address);
  await page.goto(address);
  await leave(page, () => page.click("button"));
  await has(page, "the form came from another site");
  quiet(FORBIDDEN);
  await page.goto(`${wish.origin}/destinations`);
  assert.ok(!(await page.$(".pill.warn")));
  site.closeAllConnections();
  site.close();
}

async function reads(page) {
  await page.goto(wish.origin);
  await has(page, "all is well");
  await has(page, "550 5.1.1 no such user <img src=x");
  // To the queue by keys, and down to the first row.
  await page.keyboard.press("g");
  await leave(page, () => page.keyboard.press("q"));
  assert.equal(new URL(page.url()).pathname, "/queue");
  await has(page, "Waits <b>for</b> its time");
  await page.keyboard.press("j");
  await leave(page, () => page.keyboard.press("Enter"));
  assert.equal(new URL(page.url()).pathname, `/messages/${wish.later}`);
  for (const words of ["later@far.test", "Next try", "450 4.2.1 later <script>", "accepted", "deferred"]) await has(page, words);
  // Help, and the search.
  await page.keyboard.press("?");
  await page.waitForSelector("dialog[open]");
  await page.keyboard.press("Escape");
  await page.keyboard.press("/");
  await page.keyboard.type("never@far.test");
  await leave(page, () => page.keyboard.press("Enter"));
  await has(page, "failed for good for never@far.test");
  quiet();
}

async function acts(page) {
  // A retry, seen without loading the page again.
  await page.goto(`${wish.origin}/messages/${wish.later}`);
  await press(page, "Retry");
  await has(page, "1 recipient is due now.");
  await has(page, "Nothing of it is queued any more.");
  await has(page, "delivered for later@far.test");
  // One that is selected in the list, by keys.
  await page.goto(`${wish.origin}/queue?status=held`);
  await page.keyboard.press("j");
  await page.keyboard.press("x");
  assert.equal(await page.$$eval("input[name=id]:checked", (boxes) => boxes.length), 1);
  await press(page, "Release");
  await has(page, "1 recipient is released.");
  // Everything is suspended, said on the first page, and resumed there.
  await page.goto(`${wish.origin}/destinations`);
  await press(page, "Suspend", "form[action='/suspend']:has(input[value=all])");
  await has(page, "Suspended: all sending.");
  await page.goto(wish.origin);
  await has(page, "all sending, since");
  await press(page, "Resume");
  await has(page, "Resumed: all sending.");
  // Somebody gets no more mail, and then some.
  await page.goto(`${wish.origin}/suppressions`);
  await page.type("#add-address", "bob@far.test");
  await press(page, "Add", "form[action='/suppressions/add']");
  await has(page, "1 entry added.");
  await press(page, "Remove", "tbody");
  await has(page, "1 entry removed.");
  quiet();
}

async function readsCaptured(page) {
  await logIn(page, wish.staging);
  await leave(page, () => page.click("header nav a[href='/captured']"));
  await has(page, "An order");
  for (const [id, allowed] of [[wish.captured, [BLOCKED]], [wish.evil, [BLOCKED, SANDBOXED]]]) {
    await page.goto(`${wish.staging}/captured/${id}`);
    const frame = await (await page.waitForSelector("iframe")).contentFrame();
    await frame.waitForSelector("::-p-text(Your order)");
    assert.notEqual(await page.title(), "taken");
    // It is nobody there: no cookie, no way to ours.
    assert.equal(await frame.evaluate(() => window.origin), "null");
    complaints = complaints.filter((text) => !allowed.some((pattern) => pattern.test(text)));
    quiet();
  }
  assert.ok(!(await text(page)).includes("suspended"));
  for (const path of ["/captured", `/captured/${wish.captured}`, `/captured/${wish.captured}?view=headers`, `/captured/${wish.captured}?view=source`]) {
    await inspect(page, wish.staging + path, [BLOCKED]);
  }
}

async function main() {
  const browser = await puppeteer.launch({
    executablePath: wish.chromium,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-default-apps",
      "--disable-sync",
      "--disable-dev-shm-usage",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
  });
  try {
    await refused(browser);
    const page = await open(await browser.createBrowserContext());
    await logIn(page, wish.origin);
    await reads(page);
    const paths = ["/", "/?range=day", "/queue", `/messages/${wish.later}`, `/messages/${wish.never}`, "/log", "/destinations", "/suppressions", "/captured", "/queue?status=damaged"];
    for (const path of paths) await inspect(page, wish.origin + path);
    await acts(page);
    await forged(page);
    await press(page, "Log out", "header");
    await page.goto(`${wish.origin}/queue`);
    assert.equal(new URL(page.url()).pathname, "/login");
    await readsCaptured(await open(await browser.createBrowserContext()));

    // What a message wanted from its sender's server was stopped by the policy; there it is counted that nobody came.
    const elsewhere = [...requests].filter((url) => ![wish.origin, wish.staging, wish.tracker, ...others].includes(new URL(url).origin) && !url.startsWith("data:"));
    assert.deepEqual(elsewhere, []);
  } finally {
    await browser.close();
  }
  console.log("all is well");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
