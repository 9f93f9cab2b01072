"use strict";
// Usage: node page.cjs JSDOM URL DONE FAILED QUEUED
//
// Tests the live page in jsdom. DONE, FAILED and QUEUED are ids of jobs in these states, in a paused queue. Fails at the
// first thing that is wrong.

const assert = require("node:assert/strict");
const [jsdom, url, done, failed, queued] = process.argv.slice(2);
const { JSDOM, VirtualConsole } = require(jsdom);

/** Opens the page and returns it when it has loaded; errors in it are failures. */
async function open(address) {
  const virtualConsole = new VirtualConsole();
  virtualConsole.on("jsdomError", (error) => {
    throw error;
  });
  const { window } = await JSDOM.fromURL(address, {
    runScripts: "dangerously",
    resources: "usable",
    pretendToBeVisual: true,
    virtualConsole,
    beforeParse(window) {
      window.questions = [];
      window.confirm = (question) => Boolean(window.questions.push(question));
      window.asked = [];
      window.ended = [];
      // jsdom has no fetch, and Node.js's does not accept jsdom's signals; a browser sends the origin.
      window.fetch = async (path, { method, headers, signal }) => {
        window.asked.push(path);
        if (path === window.fails) throw new TypeError("no answer");
        const own = new AbortController();
        const end = () => {
          window.ended.push(path);
          own.abort();
        };
        signal.addEventListener("abort", end);
        try {
          const options = { method, headers: { ...headers, origin: window.location.origin }, signal: own.signal };
          return await fetch(new URL(path, window.document.baseURI), options);
        } finally {
          signal.removeEventListener("abort", end);
        }
      };
    },
  });
  return window;
}

/** Waits until `holds()` is true. */
async function until(what, holds) {
  const late = Date.now() + 120_000;
  while (!holds()) {
    assert.ok(Date.now() < late, `never came: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const press = (window, within, text) => {
  const found = [...window.document.querySelectorAll(`${within} button`)].filter((b) => b.textContent === text);
  assert.equal(found.length, 1, `${text} in ${within}`);
  found[0].click();
};

async function main() {
  const window = await open(url);
  const document = window.document;
  const text = (id) => document.getElementById(id).textContent;
  const rows = (id) => [...document.getElementById(id).rows].map((row) => row.textContent);
  const shownJobs = () => rows("jobs").map((row) => row.slice(0, 36));
  const setTo = (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new window.Event("change"));
  };

  const find = (what) => {
    document.getElementById("search").value = what;
    document.getElementById("filter").requestSubmit();
  };
  /** A job of somebody else's. */
  const submit = async (idempotency_key) => {
    const body = JSON.stringify({ circuit: "multiplier", input: { a: 1, b: 2 }, idempotency_key });
    const answer = await fetch(new URL("v1/jobs", url), { method: "POST", headers: { "content-type": "application/json" }, body });
    assert.equal(answer.status, 201);
    return (await answer.json()).id;
  };

  await until("the first look", () => rows("jobs").length === 3);
  assert.deepEqual(shownJobs(), [queued, failed, done], "newest first");
  assert.equal(text("status"), "ready");
  assert.match(text("worker"), /0 of \d+ jobs in progress/);
  assert.match(rows("devices")[0], /^cpu:0.*0 of \d+1\d.*fit$/, "one proof");
  assert.deepEqual(rows("circuits").map((row) => row.match(/^[a-z]+/)[0]), ["bare", "multiplier"]);
  const counts = [...document.querySelectorAll("#counts li")].map((tile) => tile.textContent);
  assert.deepEqual(counts.slice(0, 5), ["1queued", "0running", "1done", "1failed", "0cancelled"]);
  assert.equal(document.getElementById("trouble").hidden, true);

  // The job that is done.
  press(window, "#jobs", done);
  await until("the job that is done", () => !document.getElementById("job").hidden);
  assert.match(text("job-members"), new RegExp(`${done}.*done.*multiplier.*cpu:0`));
  const links = [...document.querySelectorAll("#job-acts a")].map((a) => a.href);
  assert.deepEqual(links, [`${url}v1/jobs/${done}`, `${url}v1/jobs/${done}/proof`]);
  assert.equal(document.querySelectorAll("#job-acts button").length, 0, "nothing is to be done about it");
  press(window, "#job", "Close");
  await until("the job to be closed", () => document.getElementById("job").hidden);

  // Text from others is shown as it is, and never executed.
  setTo("state", "failed");
  await until("failed jobs alone", () => rows("jobs").length === 1);
  assert.match(rows("jobs")[0], /<img src=x>/);
  setTo("state", "");
  await until("all jobs again", () => rows("jobs").length === 3);
  find("<b>&amp;</b>");
  await until("the job of that key", () => rows("jobs").length === 1);
  assert.deepEqual(shownJobs(), [failed]);
  press(window, "#jobs", failed);
  await until("the job that failed", () => !document.getElementById("job").hidden);
  assert.match(text("job-members"), /<b>&amp;<\/b>/);
  assert.equal(document.querySelectorAll("img, b").length, 0);
  // A bad input is not kept, so the job cannot be queued again: the page says so.
  press(window, "#job", "Queue again");
  await until("a refusal", () => /no longer held/.test(text("trouble")));

  // By its id, regardless of what else is shown.
  find(queued.toUpperCase());
  await until("the job by its id", () => text("job-members").includes(queued));
  press(window, "#job", "Cancel");
  await until("the job to be cancelled", () => /cancelled/.test(text("job-members")));
  press(window, "#queue-title", "Resume");
  await until("the queue to go on", () => text("queue-pause") === "Pause");
  assert.equal(window.questions.length, 2, "each was asked about");

  // The page refreshes by itself, and unchanged rows stay, with their focus.
  press(window, "#job", "Close");
  find("");
  await until("all jobs again", () => rows("jobs").length === 3);
  const row = document.getElementById("jobs").rows[2];
  row.querySelector("button").focus();
  const key = "123e4567-e89b-12d3-a456-426614174000";
  const other = await submit(key);
  await until("a job of somebody else's", () => rows("jobs").length === 4 && rows("jobs")[0].includes("done"));
  assert.equal(document.getElementById("jobs").rows[3], row);
  assert.equal(document.activeElement, row.querySelector("button"));
  // A key that looks like an id.
  find(key);
  await until("the job of that key", () => rows("jobs").length === 1);
  assert.deepEqual(shownJobs(), [other]);
  find("");

  // A list that has the focus keeps its value when it gets other entries.
  const list = document.getElementById("circuit");
  list.focus();
  setTo("circuit", "multiplier");
  list.options[1].remove();
  await until("the list to be complete again", () => [...list.options].map((o) => o.value).join() === ",bare,multiplier");
  assert.equal(list.value, "multiplier");
  setTo("circuit", "");
  list.blur();

  // Page by page.
  let newest;
  for (let i = 0; i < 50; i++) newest = await submit(`${i}`);
  await until("a full page", () => rows("jobs").length === 50 && shownJobs()[0] === newest);
  press(window, ".pages", "Older");
  await until("the next page", () => shownJobs().join() === [other, queued, failed, done].join());
  assert.ok(document.getElementById("older").disabled);
  press(window, ".pages", "Newest");
  await until("the first page", () => rows("jobs").length === 50);

  // A failed request leaves the rest as it is, and is reported.
  window.fails = "v1/worker";
  await until("a word on what fails", () => /the worker does not respond; .* may be old/.test(text("trouble")));
  const last = await submit("last");
  await until("what does not fail", () => shownJobs()[0] === last);
  window.fails = null;
  await until("no word on it", () => document.getElementById("trouble").hidden);
  assert.equal(text("status"), "ready");

  // A poll ends the requests of the one before it.
  const begun = window.asked.length;
  window.dispatchEvent(new window.Event("hashchange"));
  const overtaken = window.asked.slice(begun);
  assert.ok(overtaken.includes("v1/worker"));
  window.dispatchEvent(new window.Event("hashchange"));
  assert.deepEqual(window.ended.slice(-overtaken.length), overtaken);

  // The address contains what is shown.
  find(queued);
  await until("the job", () => window.location.hash.includes(queued));
  const again = await open(`${url}${window.location.hash}`);
  await until("the same job", () => again.document.getElementById("job-members").textContent.includes(queued));
  const gone = await open(`${url}#job=0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22`);
  await until("a word on a job that is not there", () => /there is no job/.test(gone.document.getElementById("trouble").textContent));
  assert.equal(gone.document.getElementById("jobs").rows.length, 50);
  const astray = await open(`${url}#before=0199b0c4-7e11-7a3c-9c8e-0f4f5a3f1f22`);
  await until("a word on a page that is not there", () => /there is no job/.test(astray.document.getElementById("trouble").textContent));
  assert.equal(astray.document.getElementById("devices").rows.length, 1, "the rest is shown");
  assert.equal(astray.document.getElementById("newest").disabled, false, "there is a way back");
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
