// Renders templates and data with Handlebars itself, in strict mode: gives the text or the error.
const { readFileSync } = require("node:fs");
const Handlebars = require("handlebars");

const answer = (asked) => {
  const engine = Handlebars.create();
  for (const [name, text] of Object.entries(asked.includes)) {
    engine.registerPartial(name, text);
  }
  try {
    return { text: engine.compile(asked.template, { strict: true, noEscape: !asked.html })(asked.data) };
  } catch (complaint) {
    return { refused: String(complaint.message) };
  }
};
process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(answer)));
