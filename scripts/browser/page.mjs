// What a person sees who opens the server's page, in Chromium: page.mjs URL KEY [PICTURE]
import assert from "node:assert/strict";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [url, key, picture] = process.argv.slice(2);
const browser = await puppeteer.launch({
  args: chromium.args, executablePath: await chromium.executablePath(), headless: "shell",
});
const page = await browser.newPage();
await page.setViewport({ width: 1000, height: 900 });
const faults = [];
page.on("pageerror", error => faults.push(String(error)));
page.on("requestfailed", request => faults.push(request.url()));
page.on("request", request => { if (!request.url().startsWith(url)) faults.push(request.url()); });
const text = id => page.$eval(`#${id}`, element => element.textContent);
const until = (id, words) => page.waitForFunction(
  (one, said) => new RegExp(said).test(document.getElementById(one).textContent),
  { timeout: 20000 }, id, words);

await page.goto(url);
await until("fault", "Authorization: Bearer");
assert.equal(await page.$eval("#asks", element => element.hidden), false);
await page.type("#key", key);
await page.keyboard.press("Enter");
await until("facts", "frames");
assert.equal(await text("fault"), "");

await page.click("#go");
await until("answer", ".{20}");
await until("prefixes", "prompts looked up *[1-9]");
await until("legend", "keys and values [1-9]");
assert.match(await text("requests"), /none|\d+ \+ \d+ tokens of \d+/);
if (picture) await page.screenshot({ path: picture });
const coloured = await page.$eval("#pool", canvas => canvas.getContext("2d")
  .getImageData(0, 0, canvas.width, canvas.height).data.some(value => value));
assert.ok(coloured, "nothing is drawn");
await page.waitForFunction(() => document.getElementById("stop").disabled, { timeout: 60000 });
await until("requests", "none");

// What the server says is text, whatever it looks like.
const hostile = '<img src=x onerror="window.spoiled = 1"><script>window.spoiled = 1</script>';
await page.setRequestInterception(true);
page.on("request", request => {
  const answer = { choices: [{ text: hostile }] };
  if (request.method() !== "POST") request.continue();
  else request.respond({ contentType: "text/event-stream", body: `data: ${JSON.stringify(answer)}\n\ndata: [DONE]\n\n` });
});
await page.$eval("#prompt", (element, text) => { element.value = text; }, hostile);
await page.click("#go");
await until("answer", "onerror");
assert.equal(await text("answer"), hostile);
assert.match(await text("model"), /^<img src=x onerror/);
assert.equal(await page.$$eval("img, script", found => found.length), 1);
assert.equal(await page.evaluate(() => window.spoiled), undefined);
assert.deepEqual(faults, []);
await browser.close();
console.log("the page works");
