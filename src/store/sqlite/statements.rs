//! The SQL statements. `now!()` is the same throughout one statement.

macro_rules! now {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}
/// The columns that lists show: all but those that may be large.
macro_rules! small_job_columns {
    () => {
        "id, seq, queue, circuit, zkey, wasm, idempotency_key, priority, state, stage, progress, attempt, tries_transient, \
         tries_device, tries_lost, worker, error_class, error_message, cancel_requested, created_at, run_at, start_by, \
         started_at, finished_at, lease_expires_at"
    };
}
macro_rules! job_columns {
    () => {
        concat!(small_job_columns!(), ", history, result")
    };
}
macro_rules! circuit_columns {
    () => {
        "name, zkey, wasm, n_vars, n_public, domain_size, created_at"
    };
}
/// The last attempt at the job of submission ?1, with id ?3, has number ?2. The submission alone would identify the
/// job, but not after a backup was restored in place.
macro_rules! last_attempt {
    () => {
        "WHERE seq = ?1 AND attempt = ?2 AND id = ?3"
    };
}
/// The fence: the job is running with this attempt.
macro_rules! held {
    () => {
        concat!(last_attempt!(), " AND state = 'running'")
    };
}
/// The attempt with number ?2 is not in the history, which has those that failed.
macro_rules! did_not_fail {
    () => {
        "NOT EXISTS (SELECT 1 FROM json_each(history) AS h WHERE h.value ->> 'attempt' = ?2)"
    };
}

/// The queued job may still be started.
macro_rules! in_time {
    () => {
        concat!("(start_by IS NULL OR start_by > ", now!(), ")")
    };
}
/// The job's circuit is not paused.
macro_rules! circuit_goes {
    () => {
        "circuit NOT IN (SELECT name FROM pauses WHERE scope = 'circuit')"
    };
}
/// A worker had the job before. A job that keeps failing waits its turn, so that it is not always first.
macro_rules! came_again {
    () => {
        "(attempt > 0 AND tries_transient < 2)"
    };
}
/// Some circuit is paused.
macro_rules! some_circuit_held {
    () => {
        "EXISTS (SELECT 1 FROM pauses WHERE scope = 'circuit')"
    };
}
/// The queue, which is the first parameter, is not paused.
macro_rules! queue_goes {
    () => {
        "NOT EXISTS (SELECT 1 FROM pauses WHERE scope = 'queue' AND name = ?1)"
    };
}
/// The history with the current attempt and its error appended.
macro_rules! history_with {
    ($class:expr, $message:expr) => {
        concat!(
            "json_insert(iif(json_array_length(history) >= 50, json_remove(history, '$[0]'), history), '$[#]', ",
            "json_object('attempt', attempt, 'worker', worker, 'at', ",
            now!(),
            ", 'error', json_object('class', ",
            $class,
            ", 'message', ",
            $message,
            ")))"
        )
    };
}

pub(super) const PUT_CIRCUIT: &str = concat!(
    "INSERT INTO circuits (",
    circuit_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ",
    now!(),
    ") ON CONFLICT (name) DO UPDATE SET zkey = excluded.zkey, wasm = excluded.wasm, n_vars = excluded.n_vars, ",
    "n_public = excluded.n_public, domain_size = excluded.domain_size, created_at = ",
    "iif(zkey = excluded.zkey AND wasm IS excluded.wasm, created_at, excluded.created_at) RETURNING ",
    circuit_columns!()
);
pub(super) const CIRCUIT: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits WHERE name = ?1");
pub(super) const CIRCUITS: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits ORDER BY name");
pub(super) const UNFINISHED: &str =
    "SELECT count(*) AS n FROM jobs INDEXED BY jobs_unfinished WHERE circuit = ?1 AND state IN ('queued', 'running')";
pub(super) const REMOVE_CIRCUIT: &str = "DELETE FROM circuits WHERE name = ?1";
pub(super) const NOTE_IMPORTED: &str = concat!(
    "INSERT INTO removable_content (name, zkey, wasm, removable_from) VALUES (?1, ?2, ?3, ",
    now!(),
    " + ?4) RETURNING id"
);
pub(super) const REMOVABLE_CONTENT: &str =
    concat!("SELECT id, name, zkey, wasm FROM removable_content WHERE removable_from <= ", now!(), " ORDER BY id");
pub(super) const FORGET_REMOVABLE: &str = "DELETE FROM removable_content WHERE id = ?1 RETURNING id";

/// Content that jobs of any queue need: unfinished ones, and failed ones that still have their input.
pub(super) const CONTENT_IN_USE: &str = "SELECT zkey AS content FROM jobs INDEXED BY jobs_unfinished \
                                        WHERE state IN ('queued', 'running') \
                                        UNION SELECT wasm FROM jobs INDEXED BY jobs_unfinished \
                                        WHERE state IN ('queued', 'running') AND wasm IS NOT NULL \
                                        UNION SELECT zkey FROM job_inputs CROSS JOIN jobs ON seq = job \
                                        WHERE expires_at IS NOT NULL \
                                        UNION SELECT wasm FROM job_inputs CROSS JOIN jobs ON seq = job \
                                        WHERE expires_at IS NOT NULL AND wasm IS NOT NULL";

/// The job was rejected before it could be queued.
macro_rules! rejected {
    () => {
        "(state = 'failed' AND attempt = 0 AND error_class = 'bad_input')"
    };
}
/// The job that has this id or else, in this queue, this key. A rejected one can be replaced, so it comes last.
pub(super) const SAME_JOB: &str = concat!(
    "SELECT body, ",
    job_columns!(),
    " FROM jobs WHERE id = ?1 OR (queue = ?2 AND idempotency_key = ?3) ",
    "ORDER BY (id = ?1) * iif(",
    rejected!(),
    ", -1, 1) DESC LIMIT 1"
);
/// Deletes a rejected job, to make way for another with its id.
pub(super) const FORGET_REJECTED: &str = concat!("DELETE FROM jobs WHERE id = ?1 AND ", rejected!());
pub(super) const INSERT_JOB: &str = concat!(
    "INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, created_at, run_at, start_by) ",
    "SELECT ?1, ?2, name, zkey, wasm, ?4, ?5, ?6, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    " + ?7 FROM circuits WHERE name = ?3 RETURNING seq, ",
    job_columns!()
);
pub(super) const INSERT_FAILED: &str = concat!(
    "INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, state, error_class, ",
    "error_message, created_at, run_at, finished_at) VALUES (?1, ?2, ?3, ",
    "coalesce((SELECT zkey FROM circuits WHERE name = ?3), zeroblob(32)), ",
    "(SELECT wasm FROM circuits WHERE name = ?3), ?4, ?5, ?6, 'failed', ?7, ?8, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    ") RETURNING ",
    job_columns!()
);
pub(super) const INSERT_INPUT: &str = "INSERT OR REPLACE INTO job_inputs (job, key, input) VALUES (?1, ?2, ?3)";
pub(super) const KEEP_INPUT: &str = "UPDATE job_inputs SET expires_at = NULL WHERE job = ?1";

pub(super) const JOB: &str = concat!("SELECT ", job_columns!(), " FROM jobs WHERE id = ?1");
pub(super) const JOB_STATE: &str = "SELECT state FROM jobs WHERE id = ?1";
macro_rules! list {
    ($by:expr) => {
        concat!(
            "SELECT ",
            small_job_columns!(),
            ", '[]' AS history, NULL AS result FROM jobs ",
            $by,
            " AND seq < coalesce((SELECT seq FROM jobs WHERE id = ?5), 9223372036854775807) ORDER BY seq DESC LIMIT ?2"
        )
    };
}
pub(super) const JOBS: &str = list!("INDEXED BY jobs_in_order WHERE queue = ?1");
pub(super) const JOBS_IN: &str = list!("INDEXED BY jobs_by_state WHERE queue = ?1 AND state = ?3");
pub(super) const JOBS_OF: &str = list!("INDEXED BY jobs_by_circuit WHERE queue = ?1 AND circuit = ?4");
pub(super) const JOBS_OF_IN: &str =
    list!("INDEXED BY jobs_by_circuit WHERE queue = ?1 AND circuit = ?4 AND state = ?3");
pub(super) const JOBS_BY_KEY: &str =
    list!("WHERE queue = ?1 AND idempotency_key = ?6 AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR circuit = ?4)");

pub(super) const CLAIM: &str = concat!(
    "UPDATE jobs SET tries_lost = tries_lost + (state = 'running'), history = iif(state = 'running', ",
    history_with!("'lost_worker'", "'worker ' || coalesce(worker, '?') || ' fell silent; its lease lapsed'"),
    ", history), state = 'running', attempt = attempt + 1, worker = ?2, stage = 'load', progress = 0, ",
    "start_by = NULL, started_at = coalesce(started_at, ",
    now!(),
    "), lease_expires_at = ",
    now!(),
    " + ?3 WHERE id = ?1 AND ((state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    ") OR (state = 'running' AND lease_expires_at <= ",
    now!(),
    " AND NOT cancel_requested)) AND ",
    circuit_goes!(),
    " AND queue NOT IN (SELECT name FROM pauses WHERE scope = 'queue') ",
    "RETURNING (SELECT input FROM job_inputs WHERE job = jobs.seq) AS input, ",
    "(SELECT key FROM job_inputs WHERE job = jobs.seq) AS input_key, ",
    job_columns!()
);
/// A job with a lapsed lease whose cancellation was requested: no holder is left to confirm it, and it must not run
/// again.
pub(super) const CANCEL_LAPSED: &str = concat!(
    "UPDATE jobs SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL WHERE id = ?1 AND state = 'running' AND cancel_requested ",
    "AND lease_expires_at <= ",
    now!(),
    " RETURNING id"
);
pub(super) const HEARTBEAT: &str = concat!(
    "UPDATE jobs SET lease_expires_at = ",
    now!(),
    " + ?4, stage = ?5, progress = ?6 ",
    held!(),
    " RETURNING cancel_requested"
);
pub(super) const INPUT: &str = concat!("SELECT input FROM job_inputs WHERE job = (SELECT seq FROM jobs ", held!(), ")");
pub(super) const FINISH: &str = concat!(
    "UPDATE jobs SET state = 'done', result = ?4, error_class = NULL, error_message = NULL, stage = NULL, ",
    "progress = 1, lease_expires_at = NULL, finished_at = ",
    now!(),
    " ",
    held!(),
    " RETURNING cancel_requested"
);
/// Recognises what an earlier `FINISH` did.
pub(super) const FINISHED: &str =
    concat!("SELECT cancel_requested FROM jobs ", last_attempt!(), " AND state = 'done' AND result = ?4");
/// Queues the job again after a failure, unless its cancellation was requested. ?9 is the delay.
pub(super) const FAIL_RETRY: &str = concat!(
    "UPDATE jobs SET tries_transient = tries_transient + ?4, tries_device = tries_device + ?5, ",
    "tries_lost = tries_lost + ?6, error_class = ?7, error_message = ?8, history = ",
    history_with!("?7", "?8"),
    ", state = iif(cancel_requested, 'cancelled', 'queued'), finished_at = iif(cancel_requested, ",
    now!(),
    ", NULL), run_at = iif(cancel_requested, run_at, ",
    now!(),
    " + ?9), progress = iif(cancel_requested, progress, 0), stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
/// ?9 is how long the input is kept.
pub(super) const FAIL_FOR_GOOD: &str = concat!(
    "UPDATE jobs SET tries_transient = tries_transient + ?4, tries_device = tries_device + ?5, ",
    "tries_lost = tries_lost + ?6, error_class = ?7, error_message = ?8, history = ",
    history_with!("?7", "?8"),
    ", state = 'failed', finished_at = ",
    now!(),
    ", keep_input_until = ",
    now!(),
    " + ?9, stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
/// Recognises an earlier failure by the history. A request to cancel that came after it was for a later attempt.
pub(super) const FAILED: &str = "SELECT cancel_requested AND attempt = ?2 AS cancel_requested FROM jobs \
                                WHERE seq = ?1 AND id = ?3 AND EXISTS (SELECT 1 FROM json_each(history) AS h \
                                WHERE h.value ->> 'attempt' = ?2 AND h.value ->> '$.error.class' = ?4 \
                                AND h.value ->> '$.error.message' = ?5)";
pub(super) const RELEASE: &str = concat!(
    "UPDATE jobs SET state = iif(cancel_requested, 'cancelled', 'queued'), finished_at = iif(cancel_requested, ",
    now!(),
    ", NULL), run_at = iif(cancel_requested, run_at, ",
    now!(),
    "), progress = iif(cancel_requested, progress, 0), stage = NULL, lease_expires_at = NULL ",
    held!(),
    " RETURNING cancel_requested"
);
/// Recognises an earlier `RELEASE`, after which the job may have been cancelled.
pub(super) const RELEASED: &str = concat!(
    "SELECT cancel_requested FROM jobs ",
    last_attempt!(),
    " AND state IN ('queued', 'cancelled') AND ",
    did_not_fail!()
);
pub(super) const CONFIRM_CANCEL: &str = concat!(
    "UPDATE jobs SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL ",
    held!(),
    " AND cancel_requested RETURNING cancel_requested"
);
/// Whether the attempt holds the job, or an earlier `CONFIRM_CANCEL` is recognised.
pub(super) const HELD_OR_CANCELLED: &str = concat!(
    "SELECT state, cancel_requested FROM jobs ",
    last_attempt!(),
    " AND (state = 'running' OR (state = 'cancelled' AND cancel_requested AND ",
    did_not_fail!(),
    "))"
);
pub(super) const CANCEL: &str = concat!(
    "UPDATE jobs SET cancel_requested = (state = 'running'), finished_at = iif(state = 'queued', ",
    now!(),
    ", NULL), state = iif(state = 'queued', 'cancelled', state) ",
    "WHERE id = ?1 AND state IN ('queued', 'running') RETURNING state"
);

/// `gone`: the content it is to be proved with is no longer registered under any name.
pub(super) const REQUEUEABLE: &str = "SELECT seq, state, circuit, body, \
                                     EXISTS (SELECT 1 FROM job_inputs WHERE job = jobs.seq) AS held, \
                                     zkey = zeroblob(32) \
                                     AND circuit NOT IN (SELECT name FROM circuits) AS unregistered, \
                                     zkey <> zeroblob(32) AND (zkey NOT IN (SELECT c.zkey FROM circuits c) \
                                     OR (wasm IS NOT NULL AND wasm NOT IN \
                                     (SELECT c.wasm FROM circuits c WHERE c.wasm IS NOT NULL))) AS gone \
                                     FROM jobs WHERE id = ?1";
/// A job that was rejected before it had a circuit uses what is registered under the name now. ?2 is how long it may
/// wait, ?3 the hash that identifies its repeats.
pub(super) const REQUEUE: &str = concat!(
    "UPDATE jobs SET state = 'queued', run_at = ",
    now!(),
    ", start_by = ",
    now!(),
    " + ?2, body = ?3, finished_at = NULL, keep_input_until = NULL, tries_transient = 0, tries_device = 0, ",
    "tries_lost = 0, error_class = NULL, error_message = NULL, cancel_requested = 0, progress = 0, ",
    "wasm = iif(zkey = zeroblob(32), (SELECT c.wasm FROM circuits c WHERE c.name = jobs.circuit), wasm), ",
    "zkey = iif(zkey = zeroblob(32), (SELECT c.zkey FROM circuits c WHERE c.name = jobs.circuit), zkey) ",
    "WHERE seq = ?1 RETURNING ",
    job_columns!()
);

pub(super) const PAUSE: &str = concat!(
    "INSERT INTO pauses (scope, name, since) VALUES (?1, ?2, ",
    now!(),
    ") ON CONFLICT DO NOTHING RETURNING since"
);
pub(super) const RESUME: &str = "DELETE FROM pauses WHERE scope = ?1 AND name = ?2 RETURNING since";
pub(super) const PAUSED: &str = "SELECT scope, name, since FROM pauses WHERE scope = 'circuit' OR name = ?1 \
                                ORDER BY scope DESC, name";

/// In three parts: queued jobs while no circuit is paused; while one is, the jobs of each other circuit, so that paused
/// jobs need not be read through; and jobs whose lease has lapsed, of which those that are to be cancelled are due
/// under a pause, too: the claim cancels them. SQLite would evaluate a condition that is the same for all rows at each
/// of them, so the first part has a limit of 0 instead.
pub(super) const DUE: &str = concat!(
    "WITH RECURSIVE waiting (circuit) AS (SELECT iif(",
    some_circuit_held!(),
    ", (SELECT min(circuit) FROM jobs INDEXED BY jobs_waiting WHERE queue = ?1 AND state = 'queued'), NULL) ",
    "UNION ALL SELECT (SELECT min(j.circuit) FROM jobs j INDEXED BY jobs_waiting WHERE j.queue = ?1 ",
    "AND j.state = 'queued' AND j.circuit > w.circuit) FROM waiting w WHERE w.circuit IS NOT NULL) ",
    "SELECT id, priority, again FROM (SELECT * FROM (SELECT id, priority, seq, ",
    came_again!(),
    " AS again FROM jobs INDEXED BY jobs_queued WHERE queue = ?1 AND state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " ORDER BY priority DESC, seq LIMIT iif(",
    queue_goes!(),
    " AND NOT ",
    some_circuit_held!(),
    ", ?2, 0)) UNION ALL SELECT j.id, j.priority, j.seq, ",
    came_again!(),
    " FROM waiting w CROSS JOIN jobs j ON j.seq IN (SELECT seq FROM jobs INDEXED BY jobs_waiting ",
    "WHERE queue = ?1 AND circuit = w.circuit AND state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " ORDER BY priority DESC, seq LIMIT ?2) WHERE w.",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    " UNION ALL SELECT id, priority, seq, ",
    came_again!(),
    " FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running' AND lease_expires_at <= ",
    now!(),
    " AND (cancel_requested OR (",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "))) ORDER BY priority DESC, seq LIMIT ?2"
);
/// ?2 is the number of queued jobs to look at, -1 for all.
pub(super) const LOAD: &str = concat!(
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_queued WHERE queue = ?1 AND state = 'queued' ",
    "LIMIT ?2)) AS queued, ",
    "(SELECT count(*) FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running') AS running, ",
    "max(0, coalesce(",
    now!(),
    " - (SELECT min(run_at) FROM (SELECT run_at, start_by, circuit FROM jobs INDEXED BY jobs_queued ",
    "WHERE queue = ?1 AND state = 'queued' LIMIT ?2) WHERE ",
    in_time!(),
    " AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "), 0), coalesce(",
    now!(),
    " - (SELECT min(lease_expires_at) FROM jobs INDEXED BY jobs_running WHERE queue = ?1 AND state = 'running' AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "), 0)) AS oldest_ms, ",
    "(SELECT count(*) FROM jobs INDEXED BY jobs_ended WHERE queue = ?1 AND finished_at > ",
    now!(),
    " - 60000 AND state IN ('done', 'failed')) AS ended_last_minute"
);
/// ?3 is how long the input is kept. A job with a `start_by` has waited since `run_at`, when it was submitted or queued
/// again.
pub(super) const EXPIRE: &str = concat!(
    "UPDATE jobs SET state = 'failed', error_class = 'timeout', error_message = 'no worker began it within ' || ",
    "rtrim(rtrim(printf('%.3f', (start_by - run_at) / 1000.0), '0'), '.') || ' s', finished_at = ",
    now!(),
    ", keep_input_until = ",
    now!(),
    " + ?3 WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_expiring WHERE queue = ?1 AND state = 'queued' ",
    "AND start_by <= ",
    now!(),
    " ORDER BY start_by LIMIT ?2) RETURNING id"
);
/// Inputs of every queue: how long they are kept was decided when their jobs failed.
pub(super) const END_INPUTS: &str = concat!(
    "DELETE FROM job_inputs WHERE job IN (SELECT job FROM job_inputs INDEXED BY job_inputs_expiring ",
    "WHERE expires_at <= ",
    now!(),
    " ORDER BY expires_at LIMIT ?1) RETURNING job"
);
/// ?4 is a JSON array of states.
pub(super) const PURGEABLE: &str = concat!(
    "SELECT id FROM jobs INDEXED BY jobs_ended WHERE queue = ?1 AND finished_at <= ",
    now!(),
    " - ?3 AND state IN (SELECT value FROM json_each(?4)) ORDER BY finished_at, seq LIMIT ?2 OFFSET ?5"
);
/// ?1 is a JSON array of ids in hexadecimal, ?3 one of states.
pub(super) const PURGE: &str = concat!(
    "DELETE FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND finished_at <= ",
    now!(),
    " - ?2 AND state IN (SELECT value FROM json_each(?3)) RETURNING id"
);
/// ?1 is a JSON array of ids in hexadecimal.
pub(super) const STILL_UNFINISHED: &str =
    "SELECT id FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND finished_at IS NULL";
pub(super) const COUNTS: &str =
    "SELECT state, count(*) AS n FROM jobs INDEXED BY jobs_by_state WHERE queue = ?1 GROUP BY state";
pub(super) const INPUTS_HELD: &str = "SELECT key, count(*) AS n FROM job_inputs GROUP BY key ORDER BY key";
