// Verifies a request with the JavaScript library of Standard Webhooks: gives the body that it read, or the error.
const { readFileSync } = require("node:fs");
const { Webhook } = require("standardwebhooks");

const asked = JSON.parse(readFileSync(0, "utf8"));
const body = Buffer.from(asked.body, "base64").toString("utf8");
let answer;
try {
  answer = { read: new Webhook(asked.secret).verify(body, asked.headers) };
} catch (complaint) {
  answer = { refused: String(complaint.message) };
}
process.stdout.write(JSON.stringify(answer));
