// Usage: node openapi.mjs NODE_MODULES FILE
//
// Checks answers of the API against its description. FILE holds {"description", "answers": [{"method", "path", "status",
// "type", "body", "sent"}]}. Fails if the description is not valid OpenAPI, if it does not list an answer or one of its
// members, or if an operation has no successful answer.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, file] = process.argv.slice(2);
const validator = "@seriousme/openapi-schema-validator";
const { Validator } = await import(pathToFileURL(join(modules, validator, "index.js")));
const require = createRequire(join(modules, validator, "index.js"));
const Ajv = require("ajv/dist/2020.js").default;
const formats = require("ajv-formats").default;

const { description, answers } = JSON.parse(readFileSync(file, "utf8"));
const sound = await new Validator().validate(structuredClone(description));
assert.ok(sound.valid, JSON.stringify(sound.errors, null, 1));

/** Every object with no members but those that it names. */
function close(schema) {
  if (schema === null || typeof schema !== "object") return;
  if (schema.type === "object" && schema.properties) schema.additionalProperties = false;
  Object.values(schema).forEach(close);
}
const closed = structuredClone(description);
close(closed.components.schemas);
close(closed.paths);
const ajv = formats(new Ajv({ strict: false, allErrors: true }));
ajv.addSchema(closed, "api");

const resolved = (node) => (node.$ref ? node.$ref.slice(2).split("/").reduce((at, key) => at[key], closed) : node);
const judge = (schema, value, what) => {
  const valid = ajv.compile({ components: closed.components, ...schema });
  assert.ok(valid(value), `${what}: ${ajv.errorsText(valid.errors)}\n${JSON.stringify(value)}`);
};

const tried = new Set();
for (const { method, path, status, type, body, sent } of answers) {
  const what = `${method} ${path} ${status}`;
  const operation = closed.paths[path]?.[method];
  assert.ok(operation, `no ${what}`);
  const answer = operation.responses[status];
  assert.ok(answer, `no ${what}`);
  const content = resolved(answer).content[type];
  assert.ok(content, `${what}: ${type}`);
  judge(content.schema, body, what);
  if (sent) judge(operation.requestBody.content["application/json"].schema, sent, `${what}, what was sent`);
  if (status < 300) tried.add(operation.operationId);
}
const all = Object.values(closed.paths).flatMap((path) => ["get", "post", "delete"].map((method) => path[method]?.operationId));
assert.deepEqual(all.filter((id) => id && !tried.has(id)), [], "not tried with success");
