// What the JavaScript library of Standard Webhooks says to a request: its body as it was read, or the complaint.
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
