"use strict";
// Polls the API and shows its answers. Untrusted text (names, errors, ids) is only ever inserted as text nodes.

const LOOK_MS = 2000;
// However slow the requests are, a page keeps the worker busy for at most a tenth of the time.
const REST = 10;
const PATIENCE_MS = 15000;
// Counting ended jobs costs the database more than listing jobs does.
const COUNT_EVERY = 3;
const PAGE = 50;
const STATES = ["queued", "running", "done", "failed", "cancelled"];
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

const at = (id) => document.getElementById(id);

/** What is displayed: a filter, a page, a job. It is also the fragment of the URL, so that it can be shared. */
let view = {};
/** The latest answers. */
let circuits = [];
let paused = [];
let looks = 0;
let timer = 0;
/** Why the last change was refused, until the next change or navigation. */
let refusal = null;
/** The data that each part of the page shows. */
const shown = new Map();
/** The job whose panel is open. */
let opened = null;
/** The latest poll, which ends the requests of earlier ones. */
let poll = new AbortController();

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const cell = (kind, ...children) => element("td", kind ? { class: kind } : {}, ...children);
const badge = (kind, text) => element("span", { class: `badge ${kind}` }, text);
const button = (text, onclick, kind) => element("button", { type: "button", class: kind, onclick }, text);

/** Returns the answer of the API, or throws an error with a readable message. */
async function ask(method, path, signal = AbortSignal.timeout(PATIENCE_MS)) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: { accept: "application/json" }, signal });
  } catch {
    throw new Error("the worker does not respond");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw Object.assign(new Error(body?.detail ?? `${method} ${path}: ${answer.status}`), { status: answer.status });
  return body;
}

/** Redraws a part if its data has changed; otherwise it is left alone, and keeps its focus and selection. */
function draw(part, data, how) {
  const text = JSON.stringify(data);
  if (shown.get(part) === text) return;
  how();
  shown.set(part, text);
}

/** Draws the children of a list, one for each item, keyed by name. Children whose data has not changed are left alone. */
function drawEach(list, items, how) {
  const kept = new Map([...list.children].map((child) => [child.dataset.name, child]));
  const wanted = items.map(({ name, data }) => {
    const text = JSON.stringify(data);
    const old = kept.get(name);
    if (old?.dataset.shows === text) return old;
    const made = how(data);
    made.dataset.name = name;
    made.dataset.shows = text;
    return made;
  });
  for (const child of [...list.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, i) => {
    if (list.children[i] !== child) list.insertBefore(child, list.children[i] ?? null);
  });
}

function query() {
  const parameters = new URLSearchParams({ limit: String(PAGE) });
  for (const name of ["state", "circuit", "idempotency_key", "before"]) {
    if (view[name]) parameters.set(name, view[name]);
  }
  return parameters;
}

// Human-readable times and sizes.

function span(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

const when = (ms) => new Date(ms).toLocaleString();
const moment = (ms) => element("time", { datetime: new Date(ms).toISOString() }, when(ms));
const number = (n) => n.toLocaleString("en");
const size = (bytes) => (bytes > 0 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : "");
const domain = (n) => `2^${Math.round(Math.log2(n))}`;

// The parts of the page.

function showWorker({ status, why, version, worker }) {
  const words = { ready: "ready", starting: "starting", stand_in: "proving on the CPU only", draining: "draining" };
  at("status").className = `badge ${status}`;
  at("status").textContent = words[status] ?? status;
  at("version").textContent = version;
  at("queue-name").textContent = worker ? `queue ${worker.queue}` : "";
  document.title = worker ? `${worker.queue} · prover-worker` : "prover-worker";
  const lines = worker ? [`${worker.id}: ${worker.in_hand} of ${worker.slots} jobs in progress`] : [];
  lines.push(...[why, ...(worker?.lost ?? [])].filter(Boolean));
  draw("worker", lines, () => at("worker").replaceChildren(...lines.map((line) => element("span", {}, line, element("br")))));
  const devices = (worker?.devices ?? []).map((d) => ({ name: d.device, data: d }));
  drawEach(at("devices"), devices, (d) =>
    element(
      "tr",
      {},
      cell("nowrap", d.device),
      cell("", d.name),
      cell("number", size(d.memory)),
      cell("number", `${d.in_hand} of ${d.slots}`),
      cell("number", number(d.proofs)),
      cell("number", span(d.busy_seconds * 1000)),
      cell("remark", d.unfit ? badge("unfit", "unfit") : badge("fit", "fit"), d.unfit ? ` ${d.unfit}` : null),
    ),
  );
}

function showQueue({ counts, load, paused: held }) {
  paused = held;
  const about = counts?.estimated ? "about " : "";
  const tiles = STATES.filter((state) => counts && state in counts).map((state) => {
    const estimated = !["queued", "running"].includes(state);
    return [state, (estimated ? about : "") + number(counts[state]), true];
  });
  if (!counts) tiles.push(["queued", number(load.queued)], ["running", number(load.running)]);
  tiles.push(["ended in the last minute", number(load.ended_last_minute)]);
  tiles.push(["oldest has waited", load.oldest_ms > 0 ? span(load.oldest_ms) : "–"]);
  // The button of a state is kept while its number changes.
  drawEach(
    at("counts"),
    tiles.map(([name, , isState]) => ({ name, data: [name, Boolean(isState)] })),
    ([name, isState]) => element("li", {}, element("strong"), isState ? button(name, () => go({ state: name }), `link ${name}`) : name),
  );
  tiles.forEach(([, value], i) => {
    at("counts").children[i].firstChild.textContent = value;
  });
  const whole = held.find((p) => p.scope === "queue");
  const act = at("queue-pause");
  act.hidden = false;
  act.textContent = whole ? "Resume" : "Pause";
  act.title = whole ? `paused since ${when(whole.since)}` : "jobs in progress continue; others wait";
}

function showCircuits() {
  const heldAt = new Map(paused.filter((p) => p.scope.circuit).map((p) => [p.scope.circuit, p.since]));
  drawEach(
    at("circuits"),
    circuits.map((c) => ({ name: c.name, data: [c, heldAt.has(c.name)] })),
    ([c, isHeld]) => {
      const [act, word] = isHeld ? ["resume", "Resume"] : ["pause", "Pause"];
      const pause = button(word, () => change(`${word} circuit ${c.name} for all workers?`, "POST", `v1/circuits/${encodeURIComponent(c.name)}/${act}`));
      pause.setAttribute("aria-label", `${word} ${c.name}`);
      return element(
        "tr",
        {},
        cell("", button(c.name, () => go({ circuit: c.name }), "link"), isHeld ? element("span", {}, " ", badge("paused", "paused")) : null),
        cell("number", domain(c.domain_size)),
        cell("number", number(c.n_vars)),
        cell("number", number(c.n_public)),
        cell("nowrap", c.wasm ? "JSON" : "witness"),
        cell("", element("code", { title: c.zkey }, c.zkey.slice(0, 12))),
        cell("nowrap", moment(c.created_at)),
        cell("", pause),
      );
    },
  );
}

/** Updates the filter. A list that has the focus keeps its value, unless `anyhow` is true because the URL has changed. */
function showChoices(anyhow) {
  const names = circuits.map((c) => c.name);
  // A circuit that was removed may still have jobs.
  if (view.circuit && !names.includes(view.circuit)) names.push(view.circuit);
  options("circuit", names, view.circuit, anyhow);
  options("state", STATES, view.state, anyhow);
}

function options(id, values, chosen, anyhow) {
  const list = at(id);
  const wanted = ["", ...values];
  if ([...list.options].map((o) => o.value).join("\n") !== wanted.join("\n")) {
    const kept = list.value;
    list.replaceChildren(...wanted.map((value) => element("option", { value }, value || "all")));
    if (wanted.includes(kept)) list.value = kept;
  }
  if (anyhow || document.activeElement !== list) list.value = chosen ?? "";
}

function showJobs(jobs) {
  // The members that a row shows: a heartbeat alone changes none of them.
  const seen = ({ id, circuit, state, stage, progress, attempt, error, cancel_requested, created_at, started_at, finished_at }) =>
    ({ id, circuit, state, stage, progress, attempt, error, cancel_requested, created_at, started_at, finished_at });
  const rows = jobs.map((job) => ({ name: job.id, data: seen(job) }));
  if (jobs.length === 0) rows.push({ name: "none", data: null });
  drawEach(at("jobs"), rows, (job) => {
    if (job === null) return element("tr", {}, element("td", { colspan: "8", class: "quiet" }, "no matching jobs"));
    const { created_at: submitted, started_at: begun, finished_at: ended } = job;
    return element(
      "tr",
      {},
      cell("nowrap id", button(job.id, () => go({ ...view, job: job.id }), "link")),
      cell("", job.circuit),
      cell("nowrap", ...stateOf(job)),
      cell("number", String(job.attempt)),
      cell("nowrap", moment(submitted)),
      cell("number", begun === null ? "" : span(begun - submitted)),
      cell("number", begun === null || ended === null ? "" : span(ended - begun)),
      cell("remark", job.error ? job.error.message : ""),
    );
  });
  at("older").disabled = jobs.length < PAGE;
  at("older").onclick = () => go({ ...view, job: undefined, before: jobs.at(-1)?.id });
}

function stateOf(job) {
  const shown = [badge(job.state, job.cancel_requested && job.state === "running" ? "cancelling" : job.state)];
  if (job.state === "running") {
    shown.push(" ", job.stage ?? "", " ", element("progress", { value: String(job.progress), max: "1", "aria-label": "progress" }));
  }
  if (job.state === "queued" && job.error) shown.push(" will be retried");
  return shown;
}

function showJob(job) {
  draw("job", job, () => drawJob(job));
  draw("acts", [job.id, job.state], () => at("job-acts").replaceChildren(...actsOn(job)));
  at("job").hidden = false;
  if (opened !== job.id) at("job-title").focus();
  opened = job.id;
}

function hideJob() {
  const had = at("job").contains(document.activeElement);
  at("job").hidden = true;
  // Return the focus to the row that the panel was opened from, if it is still there.
  if (had) [...at("jobs").children].find((row) => row.dataset.name === opened)?.querySelector("button").focus();
  opened = null;
}

function drawJob(job) {
  const members = [
    ["Id", element("span", { class: "id" }, job.id)],
    ["State", element("span", {}, ...stateOf(job))],
    ["Circuit", job.circuit],
    ["Queue", job.queue],
    ["Priority", job.priority || null],
    ["Idempotency key", job.idempotency_key],
    ["Submitted", moment(job.created_at)],
    ["Next try", job.state === "queued" && job.error ? moment(job.run_at) : null],
    ["Start by", job.start_by === null ? null : moment(job.start_by)],
    ["First started", job.started_at === null ? null : moment(job.started_at)],
    ["Ended", job.finished_at === null ? null : moment(job.finished_at)],
    ["Attempt", job.attempt || null],
    ["Worker", job.worker],
    ["Lease until", job.lease_expires_at === null ? null : moment(job.lease_expires_at)],
    ["Error", job.error ? `${job.error.message} (${job.error.class})` : null],
    ["Device", job.result?.device],
    ["Key", element("code", {}, job.zkey)],
    ["Program", job.wasm ? element("code", {}, job.wasm) : null],
  ];
  for (const [name, ms] of Object.entries(job.result?.times ?? {})) {
    members.push([`Time: ${name.replace(/_ms$/, "")}`, span(ms)]);
  }
  at("job-members").replaceChildren(
    ...members.filter(([, value]) => value !== null && value !== undefined).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, typeof value === "number" ? String(value) : value)]),
  );
  at("job-history").replaceChildren(
    ...job.history.map((past) => element("li", { value: String(past.attempt) }, moment(past.at), ` ${past.error.message} (${past.error.class})`)),
  );
  at("job-history-title").hidden = job.history.length === 0;
}

function actsOn(job) {
  const path = `v1/jobs/${job.id}`;
  const acts = [element("a", { href: path }, "as JSON")];
  if (job.state === "done") acts.push(element("a", { href: `${path}/proof`, download: `${job.id}.json` }, "proof and public values"));
  if (job.state === "queued" || job.state === "running") acts.push(button("Cancel", () => change("Cancel this job? Its input will be deleted.", "DELETE", path)));
  if (job.state === "failed") acts.push(button("Queue again", () => change(null, "POST", `${path}/requeue`)));
  return acts;
}

// Behaviour.

function trouble(message) {
  at("trouble").hidden = !message;
  at("trouble").textContent = message ?? "";
}

/** Polls everything once, and schedules the next poll. A failed request leaves its part of the page as it is. */
async function look() {
  clearTimeout(timer);
  poll.abort();
  const mine = new AbortController();
  poll = mine;
  const patience = setTimeout(() => mine.abort(), PATIENCE_MS);
  const whole = looks++ % COUNT_EVERY === 0;
  const begun = performance.now();
  const paths = [
    "v1/worker",
    whole ? "v1/queue" : null,
    whole ? "v1/circuits" : null,
    `v1/jobs?${query()}`,
    view.job ? `v1/jobs/${encodeURIComponent(view.job)}` : null,
  ];
  const answers = await Promise.allSettled(paths.map((path) => path && ask("GET", path, mine.signal)));
  clearTimeout(patience);
  if (mine !== poll) {
    // Another poll has started meanwhile, which asks for less.
    if (whole) looks = 0;
    return;
  }
  const [about, queue, known, jobs, job] = answers.map((answer) => answer.value);
  if (about) showWorker(about);
  if (queue) showQueue(queue);
  if (known) circuits = known;
  showCircuits();
  showChoices(false);
  if (jobs) showJobs(jobs);
  if (job) showJob(job);
  else if (!view.job || answers[4].reason?.status === 404) hideJob();
  const failed = answers.find((answer) => answer.status === "rejected");
  if (failed) {
    // The next poll asks for everything.
    looks = 0;
    const { message, status } = failed.reason;
    trouble(status < 500 ? message : `${message}; the data shown here may be old`);
  } else {
    at("updated").textContent = new Date().toLocaleTimeString();
    trouble(refusal);
  }
  // A hidden page does not poll.
  if (!document.hidden) timer = setTimeout(look, Math.max(LOOK_MS, REST * (performance.now() - begun)));
}

/** Makes a change, after the user has confirmed the question if there is one, and polls for the result. */
async function change(question, method, path) {
  if (question && !confirm(question)) return;
  refusal = null;
  try {
    await ask(method, path);
  } catch (error) {
    refusal = error.message;
  }
  looks = 0;
  await look();
}

/** Navigates to another view. */
function go(next) {
  const parameters = new URLSearchParams(Object.entries(next).filter(([, value]) => value));
  if (location.hash.slice(1) === parameters.toString()) look();
  else location.hash = parameters.toString();
}

function read() {
  view = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  at("search").value = view.idempotency_key ?? "";
  at("newest").disabled = !view.before;
  showChoices(true);
  refusal = null;
  look();
}

at("filter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const sought = at("search").value.trim();
  const [state, circuit] = [at("state").value, at("circuit").value];
  // A UUID may be a job's id or an idempotency key.
  const isJob = UUID.test(sought) && (await ask("GET", `v1/jobs/${sought}`).then(() => true, (error) => error.status !== 404));
  go(isJob ? { state, circuit, job: sought.toLowerCase() } : { state, circuit, idempotency_key: sought });
});
for (const id of ["state", "circuit"]) at(id).addEventListener("change", () => at("filter").requestSubmit());
at("newest").addEventListener("click", () => go({ ...view, before: undefined, job: undefined }));
at("job-close").addEventListener("click", () => go({ ...view, job: undefined }));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && view.job && event.target !== at("search")) go({ ...view, job: undefined });
});
at("queue-pause").addEventListener("click", () => {
  const act = paused.some((p) => p.scope === "queue") ? "resume" : "pause";
  change(`${act === "pause" ? "Pause" : "Resume"} the queue for all workers?`, "POST", `v1/queue/${act}`);
});
addEventListener("hashchange", read);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
  } else {
    looks = 0;
    look();
  }
});
read();
