// Shows a page as a reader sees it, before and after a press of its only button, in an unmodified browser.
const { readFileSync } = require("node:fs");
const { chromium } = require("playwright-core");

const asked = JSON.parse(readFileSync(0, "utf8"));

async function seen(page, response) {
  return {
    status: response.status(),
    title: await page.title(),
    heading: await page.locator("h1").innerText(),
    text: await page.locator("main").innerText(),
    language: await page.locator("html").getAttribute("lang"),
    buttons: await page.getByRole("button").evaluateAll((all) => all.map((one) => one.textContent)),
    url: page.url(),
  };
}

async function main() {
  // The sandbox of Chromium does not start for root.
  const browser = await chromium.launch({
    executablePath: process.env.POSTHASTE_TEST_CHROMIUM,
    args: ["--no-sandbox", "--disable-dev-shm-usage"],
  });
  try {
    const page = await browser.newPage({ javaScriptEnabled: asked.scripts !== false });
    const requests = [];
    const complaints = [];
    page.on("request", (request) => requests.push([request.method(), request.url()]));
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    const before = await seen(page, await page.goto(asked.url));
    let after = null;
    if (asked.press) {
      const answered = page.waitForResponse((response) => response.request().method() === "POST");
      await page.getByRole("button", { name: asked.press }).press("Enter");
      const response = await answered;
      await page.waitForLoadState();
      after = await seen(page, response);
    }
    process.stdout.write(JSON.stringify({ before, after, requests, complaints }));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  process.stderr.write(String(error));
  process.exit(1);
});
