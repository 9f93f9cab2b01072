//! The SQL statements.
//!
//! Each has one clock: `clock` reads the time once, and `now!()` is that time throughout the statement.
//!
//! Statements over arrays (`q`) answer with `ord`, the position of the call in the arrays, counted from 1. They visit
//! the jobs in the arrays' order, which is that of the ids (in a submit, of the keys, then the ids), so that two of
//! them lock in the same order.

macro_rules! clock {
    () => {
        concat!("WITH ", clock_only!())
    };
}
macro_rules! recursive_clock {
    () => {
        concat!("WITH RECURSIVE ", clock_only!())
    };
}
macro_rules! clock_only {
    () => {
        "clock AS MATERIALIZED (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now) "
    };
}
macro_rules! now {
    () => {
        "(SELECT now FROM clock)"
    };
}
/// Ends the query of a call's arrays, the first of which is `$first`. It drops no rows; but where the limit is a
/// parameter, the planner assumes a tenth of the rows that it would otherwise expect, which is ten for an array: so it
/// assumes one. Thus each job is looked up by its id, instead of reading all jobs, which would be cheaper where there
/// are few. Plans are made once per session, which may be before the first job.
macro_rules! no_more_than {
    ($first:literal) => {
        concat!("LIMIT cardinality(", $first, ")")
    };
}
/// The columns that lists show: all but those that may be large.
macro_rules! small_job_columns {
    () => {
        "uuid_send(id) AS id, seq, queue, circuit, zkey, wasm, idempotency_key, priority, state, stage, progress, attempt, \
         tries_transient, tries_device, tries_lost, worker, error_class, error_message, cancel_requested, created_at, \
         run_at, start_by, started_at, finished_at, lease_expires_at"
    };
}
macro_rules! job_columns {
    () => {
        concat!(small_job_columns!(), ", history::text AS history, result")
    };
}
macro_rules! circuit_columns {
    () => {
        "name, zkey, wasm, n_vars, n_public, domain_size, created_at"
    };
}
/// The last attempt at the job has number $2 and the submission `$submission`. Given `seq` as it is, the planner would
/// read through a whole index that contains it, hence `seq + 0`.
macro_rules! last_attempt {
    ($submission:literal) => {
        concat!("WHERE id = $1::text::uuid AND attempt = $2 AND seq + 0 = ", $submission)
    };
}
/// The fence: the job is running with this attempt. A check of the table ensures that a job with a lease is running;
/// given the state, the planner would search all running jobs.
macro_rules! held {
    ($submission:literal) => {
        concat!(last_attempt!($submission), " AND lease_expires_at IS NOT NULL")
    };
}
/// The attempt with number $2 is not in the history, which has those that failed.
macro_rules! did_not_fail {
    () => {
        "NOT history @> jsonb_build_array(jsonb_build_object('attempt', $2::bigint))"
    };
}
/// The calls of a finish.
macro_rules! finish_calls {
    () => {
        concat!(
            "q AS MATERIALIZED (SELECT * FROM unnest($1::text[]::uuid[], $2::bigint[], $3::text[], $4::bigint[]) ",
            "WITH ORDINALITY AS q (id, attempt, result, seq, ord) ",
            no_more_than!("$1::text[]"),
            ") "
        )
    };
}
/// Largest input that a claim returns, in bytes: almost all jobs then need one statement, and many claims together
/// still return little. [`INPUT`] reads larger ones.
macro_rules! sent_with_claim {
    () => {
        16384
    };
}
pub(super) const SENT_WITH_CLAIM: usize = sent_with_claim!();
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
        "EXISTS (SELECT FROM pauses WHERE scope = 'circuit')"
    };
}
/// The queue, which is the first parameter, is not paused.
macro_rules! queue_goes {
    () => {
        "NOT EXISTS (SELECT FROM pauses WHERE scope = 'queue' AND name = $1)"
    };
}
/// The queued job may still be started.
macro_rules! in_time {
    () => {
        concat!("(start_by IS NULL OR start_by > ", now!(), ")")
    };
}
/// The condition for changing a job `j` for each row of `q`. Stated twice, so that if the planner starts with the jobs
/// after all, it starts with these alone.
macro_rules! each_job {
    () => {
        "j.id = q.id AND j.id = ANY (ARRAY(SELECT id FROM q))"
    };
}
/// The history of the job in `of` with its current attempt and its error appended.
macro_rules! history_with {
    ($of:expr, $class:expr, $message:expr) => {
        concat!(
            "(CASE WHEN jsonb_array_length(",
            $of,
            ".history) >= 50 THEN ",
            $of,
            ".history - 0 ELSE ",
            $of,
            ".history END) || jsonb_build_array(jsonb_build_object('attempt', ",
            $of,
            ".attempt, 'worker', ",
            $of,
            ".worker, 'at', ",
            now!(),
            ", 'error', jsonb_build_object('class', ",
            $class,
            ", 'message', ",
            $message,
            ")))"
        )
    };
}

pub(super) const PUT_CIRCUIT: &str = concat!(
    clock!(),
    "INSERT INTO circuits AS c (",
    circuit_columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, ",
    now!(),
    ") ON CONFLICT (name) DO UPDATE SET zkey = excluded.zkey, wasm = excluded.wasm, n_vars = excluded.n_vars, ",
    "n_public = excluded.n_public, domain_size = excluded.domain_size, created_at = ",
    "CASE WHEN c.zkey = excluded.zkey AND c.wasm IS NOT DISTINCT FROM excluded.wasm THEN c.created_at ",
    "ELSE excluded.created_at END RETURNING ",
    circuit_columns!()
);
/// Waits for submits that share the circuit's row.
pub(super) const SETTLE_CIRCUIT: &str = "SELECT name FROM circuits WHERE name = $1 FOR UPDATE";
pub(super) const CIRCUIT: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits WHERE name = $1");
pub(super) const CIRCUITS: &str = concat!("SELECT ", circuit_columns!(), " FROM circuits ORDER BY name");
/// `OFFSET 0` keeps the condition on the end out of the lookup: by the index of unfinished jobs it would go through all
/// of them.
pub(super) const STILL_UNFINISHED: &str = "SELECT uuid_send(id) AS id FROM (SELECT id, finished_at FROM jobs \
     WHERE id = ANY($1::text[]::uuid[]) OFFSET 0) j WHERE finished_at IS NULL";
pub(super) const KNOWN_CIRCUITS: &str = "SELECT name FROM circuits WHERE name = ANY($1)";
pub(super) const UNFINISHED: &str = "SELECT count(*) AS n FROM jobs WHERE circuit = $1 AND finished_at IS NULL";
/// Its lock blocks submits, which share the row, until the transaction ends.
pub(super) const REMOVE_CIRCUIT: &str = "DELETE FROM circuits WHERE name = $1 RETURNING name";
pub(super) const NOTE_IMPORTED: &str = concat!(
    clock!(),
    "INSERT INTO removable_content (name, zkey, wasm, removable_from) VALUES ($1, $2, $3, ",
    now!(),
    " + $4)"
);
pub(super) const REMOVABLE_CONTENT: &str = concat!(
    clock!(),
    "SELECT id, name, zkey, wasm FROM removable_content WHERE removable_from <= ",
    now!(),
    " ORDER BY id"
);
pub(super) const FORGET_REMOVABLE: &str = "DELETE FROM removable_content WHERE id = $1";
/// Content that jobs of any queue need: unfinished ones, and failed ones that still have their input.
pub(super) const CONTENT_IN_USE: &str = "SELECT zkey AS content FROM jobs WHERE finished_at IS NULL \
                                         UNION SELECT wasm FROM jobs WHERE finished_at IS NULL AND wasm IS NOT NULL \
                                         UNION SELECT content FROM job_inputs CROSS JOIN LATERAL \
                                         (SELECT unnest(ARRAY[zkey, wasm]) AS content FROM jobs WHERE id = job) j \
                                         WHERE expires_at IS NOT NULL AND content IS NOT NULL";

/// $1 is the queue, $2 the channel or null, the rest one array per column.
pub(super) const SUBMIT: &str = concat!(
    clock!(),
    ", q AS MATERIALIZED (SELECT * FROM unnest($3::text[]::uuid[], $4::text[], $5::bytea[], $6::text[], $7::bigint[], ",
    "$8::bigint[], $9::bytea[], $10::text[]) WITH ORDINALITY ",
    "AS q (id, circuit, body, key, priority, start_within, input, input_key, ord)), ",
    // A shared lock, so that the circuit cannot be removed before these jobs are visible.
    "c AS MATERIALIZED (SELECT name, zkey, wasm FROM circuits WHERE name = ANY($4) ORDER BY name FOR KEY SHARE), ",
    "made AS (INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, created_at, run_at, ",
    "start_by) SELECT q.id, $1, c.name, c.zkey, c.wasm, q.body, q.key, q.priority, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    " + q.start_within FROM q JOIN c ON c.name = q.circuit ORDER BY q.ord ON CONFLICT DO NOTHING RETURNING *), ",
    "kept AS (INSERT INTO job_inputs (job, input, key) ",
    "SELECT q.id, q.input, q.input_key FROM q JOIN made ON made.id = q.id) ",
    "SELECT ord, CASE WHEN $2::text IS NOT NULL THEN pg_notify($2::text, '')::text END AS notified, ",
    job_columns!(),
    " FROM made JOIN (SELECT q.id AS q_id, q.ord FROM q) q ON q_id = id"
);
/// The job was rejected before it could be queued.
macro_rules! rejected {
    () => {
        "(state = 'failed' AND attempt = 0 AND error_class = 'bad_input')"
    };
}
/// The jobs that have these ids or else, in this queue, these keys. A rejected one can be replaced, so it comes last
/// for its id.
pub(super) const SAME_JOBS: &str = concat!(
    "SELECT ord, body, ",
    job_columns!(),
    " FROM unnest($2::text[]::uuid[], $3::text[]) WITH ORDINALITY AS q (q_id, q_key, ord) CROSS JOIN LATERAL (",
    "SELECT CASE WHEN ",
    rejected!(),
    " THEN 2 ELSE 0 END AS rank, a.* FROM jobs a WHERE a.id = q_id UNION ALL ",
    "SELECT 1, b.* FROM jobs b WHERE b.queue = $1 AND b.idempotency_key = q_key AND b.id <> q_id ",
    "ORDER BY rank LIMIT 1) AS j"
);
/// A submit that replaces a rejected job with its id: everything but the id is that of the new job. $1 is the queue, $2
/// the channel or null.
pub(super) const REPLACE_REJECTED: &str = concat!(
    clock!(),
    // As in a submit.
    ", c AS MATERIALIZED (SELECT name, zkey, wasm FROM circuits WHERE name = $4 FOR KEY SHARE), ",
    "made AS (UPDATE jobs SET seq = DEFAULT, queue = $1, circuit = c.name, zkey = c.zkey, wasm = c.wasm, body = $5, ",
    "idempotency_key = $6, priority = $7, state = 'queued', error_class = NULL, error_message = NULL, ",
    "finished_at = NULL, created_at = ",
    now!(),
    ", run_at = ",
    now!(),
    ", start_by = ",
    now!(),
    " + $8::bigint FROM c WHERE id = $3::text::uuid AND ",
    rejected!(),
    " RETURNING jobs.*), ",
    "kept AS (INSERT INTO job_inputs (job, input, key) SELECT id, $9, $10 FROM made) ",
    "SELECT CASE WHEN $2::text IS NOT NULL THEN pg_notify($2::text, '')::text END AS notified, ",
    job_columns!(),
    " FROM made"
);
pub(super) const REJECT: &str = concat!(
    clock!(),
    "INSERT INTO jobs (id, queue, circuit, zkey, wasm, body, idempotency_key, priority, state, error_class, ",
    "error_message, created_at, run_at, finished_at) SELECT $2::text::uuid, $1, $3, ",
    "coalesce((SELECT c.zkey FROM circuits c WHERE c.name = $3), decode(repeat('00', 32), 'hex')), ",
    "(SELECT c.wasm FROM circuits c WHERE c.name = $3), $4, $5, $6, 'failed', $7, $8, ",
    now!(),
    ", ",
    now!(),
    ", ",
    now!(),
    " ON CONFLICT DO NOTHING RETURNING ",
    job_columns!()
);
/// The same, replacing a job that was rejected for another reason.
pub(super) const REJECT_ANEW: &str = concat!(
    clock!(),
    "UPDATE jobs SET seq = DEFAULT, queue = $1, circuit = $3, ",
    "zkey = coalesce((SELECT c.zkey FROM circuits c WHERE c.name = $3), decode(repeat('00', 32), 'hex')), ",
    "wasm = (SELECT c.wasm FROM circuits c WHERE c.name = $3), body = $4, idempotency_key = $5, priority = $6, ",
    "error_class = $7, error_message = $8, created_at = ",
    now!(),
    ", run_at = ",
    now!(),
    ", finished_at = ",
    now!(),
    " WHERE id = $2::text::uuid AND ",
    rejected!(),
    " RETURNING ",
    job_columns!()
);

pub(super) const JOB: &str = concat!("SELECT ", job_columns!(), " FROM jobs WHERE id = $1::text::uuid");
/// Whether a write would be refused, found out without writing.
pub(super) const TAKES_WRITES: &str = "SELECT pg_is_in_recovery() AS standby, \
                                       current_setting('transaction_read_only') = 'on' AS read_only, \
                                       has_table_privilege('jobs', 'INSERT') AND has_table_privilege('jobs', 'UPDATE') \
                                       AND has_table_privilege('job_inputs', 'INSERT') \
                                       AND has_table_privilege('job_inputs', 'DELETE') AS allowed";
/// A dump restored elsewhere gets another cluster, or another oid. The schema is that of the tables, whichever way a
/// role's search_path leads there.
pub(super) const IDENTITY: &str = "SELECT format('postgres %s.%s %s-%s', current_database(), \
                                   (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'jobs'::regclass), \
                                   system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())) \
                                   AS identity FROM pg_control_system()";
pub(super) const JOB_STATE: &str = "SELECT state FROM jobs WHERE id = $1::text::uuid";

/// Lists jobs in a state; the state is part of the text, so that its partial index is used.
pub(super) fn jobs(state: Option<&'static str>, of_circuit: bool, by_key: bool) -> String {
    const COLUMNS: &str = concat!(small_job_columns!(), ", '[]' AS history, NULL::text AS result");
    let state = state.map(|s| format!(" AND state = '{s}'")).unwrap_or_default();
    // Parameters without a condition are bound all the same.
    let circuit = if of_circuit { "circuit = $3" } else { "$3::text IS NULL" };
    let key = if by_key { "idempotency_key = $5" } else { "$5::text IS NULL" };
    let before = "seq < coalesce((SELECT seq FROM jobs WHERE id = $4::text::uuid), 9223372036854775807)";
    format!(
        "SELECT {COLUMNS} FROM jobs WHERE queue = $1 AND {circuit} AND {key}{state} AND {before} ORDER BY seq DESC LIMIT $2"
    )
}

/// Claims jobs and reads their inputs, unless they are large. `o` is the job as the statement's snapshot has it, and
/// the input read at the end belongs to that version; a job that was changed in between (`j.ctid`) is left to the next
/// claim, since its input may be another. `j.xmin` says the same again: after waiting for the change of another
/// transaction, Postgres checks the other conditions on the new version of the row, but servers older than 13.23,
/// 14.20, 15.15, 16.11, 17.7 and 18.1 do not check `ctid`, and two claims at the same time would both get the job.
pub(super) const CLAIM: &str = concat!(
    clock!(),
    ", q AS MATERIALIZED (SELECT * FROM unnest($1::text[]::uuid[], $2::text[], $3::bigint[]) WITH ORDINALITY ",
    "AS q (id, worker, lease, ord) ",
    no_more_than!("$1::text[]"),
    "), ",
    // A job with a lapsed lease whose cancellation was requested: no holder is left to confirm it, and it must not run
    // again.
    "cancelled AS (UPDATE jobs j SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL FROM q WHERE ",
    each_job!(),
    " AND j.cancel_requested AND j.lease_expires_at <= ",
    now!(),
    "), taken AS (UPDATE jobs j SET tries_lost = o.tries_lost + (o.state = 'running')::int, ",
    "history = CASE WHEN o.state = 'running' THEN ",
    history_with!("o", "'lost_worker'", "'worker ' || coalesce(o.worker, '?') || ' fell silent; its lease lapsed'"),
    " ELSE o.history END, state = 'running', attempt = o.attempt + 1, worker = q.worker, stage = 'load', ",
    "progress = 0, start_by = NULL, started_at = coalesce(o.started_at, ",
    now!(),
    "), lease_expires_at = ",
    now!(),
    // With `OFFSET 0` each is looked up by itself, whatever the planner expects.
    " + q.lease FROM q CROSS JOIN LATERAL (SELECT ctid, xmin, state, circuit, queue, attempt, worker, history, tries_lost, ",
    "run_at, start_by, started_at, finished_at, lease_expires_at, cancel_requested FROM jobs WHERE id = q.id OFFSET 0) o ",
    "WHERE ",
    each_job!(),
    " AND j.ctid = o.ctid AND j.xmin = o.xmin AND ((o.lease_expires_at IS NULL AND o.finished_at IS NULL AND o.run_at <= ",
    now!(),
    " AND (o.start_by IS NULL OR o.start_by > ",
    now!(),
    ")) OR (o.lease_expires_at <= ",
    now!(),
    " AND NOT o.cancel_requested)) AND o.circuit NOT IN (SELECT name FROM pauses WHERE scope = 'circuit') ",
    "AND o.queue NOT IN (SELECT name FROM pauses WHERE scope = 'queue') ",
    // Not in the update itself, which would copy whole inputs once more.
    "RETURNING q.ord, j.*) SELECT ord, CASE WHEN octet_length(i.input) <= ",
    sent_with_claim!(),
    " THEN i.input END AS input, i.key AS input_key, ",
    job_columns!(),
    " FROM taken LEFT JOIN LATERAL ",
    "(SELECT input, key FROM job_inputs WHERE job = taken.id OFFSET 0) i ON true"
);
pub(super) const HEARTBEAT: &str = concat!(
    clock!(),
    ", q AS MATERIALIZED (SELECT * FROM unnest($1::text[]::uuid[], $2::bigint[], $3::bigint[], $4::text[], ",
    "$5::double precision[], $6::bigint[]) WITH ORDINALITY AS q (id, attempt, lease, stage, progress, seq, ord) ",
    no_more_than!("$1::text[]"),
    ") ",
    "UPDATE jobs j SET lease_expires_at = ",
    now!(),
    " + q.lease, stage = q.stage, progress = q.progress FROM q WHERE ",
    each_job!(),
    " AND j.attempt = q.attempt AND j.seq + 0 = q.seq AND j.lease_expires_at IS NOT NULL ",
    "RETURNING q.ord, j.cancel_requested"
);
/// Part of a held job's input: $4 is the place of its first byte, counted from 1, and $5 its length. The server fetches
/// no more than that, because inputs are stored outside the row and uncompressed.
pub(super) const INPUT: &str = concat!(
    "SELECT octet_length(input)::bigint AS length, substring(input FROM $4::int FOR $5::int) AS part FROM ",
    "(SELECT id FROM jobs ",
    held!("$3"),
    " OFFSET 0) j CROSS JOIN LATERAL (SELECT input FROM job_inputs WHERE job = j.id OFFSET 0) i"
);
pub(super) const FINISH: &str = concat!(
    clock!(),
    ", ",
    finish_calls!(),
    "UPDATE jobs j SET state = 'done', result = q.result, error_class = NULL, error_message = NULL, ",
    "stage = NULL, progress = 1, lease_expires_at = NULL, finished_at = ",
    now!(),
    " FROM q WHERE ",
    each_job!(),
    " AND j.attempt = q.attempt AND j.seq + 0 = q.seq AND j.lease_expires_at IS NOT NULL ",
    "RETURNING q.ord, j.cancel_requested"
);
/// Recognises what an earlier `FINISH` did, of those that found nothing to change. Not part of that statement, whose
/// snapshot may be older: it may have waited for the earlier one, which was still in progress.
pub(super) const FINISHED: &str = concat!(
    "WITH ",
    finish_calls!(),
    "SELECT q.ord, j.cancel_requested FROM q CROSS JOIN LATERAL ",
    "(SELECT attempt, seq, state, result, cancel_requested FROM jobs WHERE id = q.id OFFSET 0) j ",
    "WHERE j.attempt = q.attempt AND j.seq = q.seq AND j.state = 'done' AND j.result = q.result"
);
/// $8 is the delay, null to fail for good, $9 how long the input is kept, $10 the channel or null.
pub(super) const FAIL: &str = concat!(
    clock!(),
    ", f AS (UPDATE jobs SET tries_transient = tries_transient + $3, tries_device = tries_device + $4, ",
    "tries_lost = tries_lost + $5, error_class = $6::text, error_message = $7::text, history = ",
    history_with!("jobs", "$6::text", "$7::text"),
    ", state = CASE WHEN $8::bigint IS NULL THEN 'failed' WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END, ",
    "finished_at = CASE WHEN $8::bigint IS NULL OR cancel_requested THEN ",
    now!(),
    " END, run_at = CASE WHEN $8::bigint IS NULL OR cancel_requested THEN run_at ELSE ",
    now!(),
    " + $8::bigint END, progress = CASE WHEN $8::bigint IS NULL OR cancel_requested THEN progress ELSE 0 END, ",
    "keep_input_until = CASE WHEN $8::bigint IS NULL THEN ",
    now!(),
    " + $9::bigint END, stage = NULL, lease_expires_at = NULL ",
    held!("$11"),
    " RETURNING state, cancel_requested) SELECT cancel_requested, ",
    "CASE WHEN state = 'queued' AND $10::text IS NOT NULL THEN pg_notify($10::text, '')::text END AS notified FROM f"
);
/// Recognises an earlier `FAIL` by the history. A request to cancel that came after it was for a later attempt.
pub(super) const FAILED: &str = concat!(
    "SELECT cancel_requested AND attempt = $2 AS cancel_requested FROM jobs WHERE id = $1::text::uuid AND seq + 0 = $3 ",
    "AND history @> jsonb_build_array(jsonb_build_object('attempt', $2::bigint, ",
    "'error', jsonb_build_object('class', $4::text, 'message', $5::text)))"
);
/// $3 is the channel or null.
pub(super) const RELEASE: &str = concat!(
    clock!(),
    ", r AS (UPDATE jobs SET state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END, ",
    "finished_at = CASE WHEN cancel_requested THEN ",
    now!(),
    " END, run_at = CASE WHEN cancel_requested THEN run_at ELSE ",
    now!(),
    " END, progress = CASE WHEN cancel_requested THEN progress ELSE 0 END, stage = NULL, lease_expires_at = NULL ",
    held!("$4"),
    " RETURNING state, cancel_requested) SELECT cancel_requested, ",
    "CASE WHEN state = 'queued' AND $3::text IS NOT NULL THEN pg_notify($3::text, '')::text END AS notified FROM r"
);
/// Recognises an earlier `RELEASE`, after which the job may have been cancelled.
pub(super) const RELEASED: &str = concat!(
    "SELECT cancel_requested FROM jobs ",
    last_attempt!("$3"),
    " AND state IN ('queued', 'cancelled') AND ",
    did_not_fail!()
);
/// Returns no row if no cancellation was requested; the caller then runs [`HELD_OR_CANCELLED`].
pub(super) const CONFIRM_CANCEL: &str = concat!(
    clock!(),
    "UPDATE jobs SET state = 'cancelled', finished_at = ",
    now!(),
    ", stage = NULL, lease_expires_at = NULL ",
    held!("$3"),
    " AND cancel_requested RETURNING cancel_requested"
);
/// Whether the attempt holds the job, or an earlier `CONFIRM_CANCEL` is recognised.
pub(super) const HELD_OR_CANCELLED: &str = concat!(
    "SELECT state, cancel_requested FROM jobs ",
    last_attempt!("$3"),
    " AND (lease_expires_at IS NOT NULL OR (state = 'cancelled' AND cancel_requested AND ",
    did_not_fail!(),
    "))"
);
pub(super) const CANCEL: &str = concat!(
    clock!(),
    "UPDATE jobs SET cancel_requested = (state = 'running'), finished_at = CASE WHEN state = 'queued' THEN ",
    now!(),
    " END, state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END ",
    "WHERE id = $1::text::uuid AND state IN ('queued', 'running') RETURNING state"
);

/// As in a submit: the circuit cannot be removed until the job is queued again.
pub(super) const LOCK_CIRCUIT: &str = "SELECT c.name FROM jobs j JOIN circuits c ON c.name = j.circuit \
                                       WHERE j.id = $1::text::uuid FOR KEY SHARE OF c";
/// `gone`: the content it is to be proved with is no longer registered under any name.
pub(super) const REQUEUEABLE: &str = "SELECT state, circuit, body, zkey = decode(repeat('00', 32), 'hex') \
                                      AND NOT EXISTS (SELECT FROM circuits c WHERE c.name = circuit) AS unregistered, \
                                      zkey <> decode(repeat('00', 32), 'hex') \
                                      AND (NOT EXISTS (SELECT FROM circuits c WHERE c.zkey = jobs.zkey) \
                                      OR (wasm IS NOT NULL \
                                      AND NOT EXISTS (SELECT FROM circuits c WHERE c.wasm = jobs.wasm))) AS gone \
                                      FROM jobs WHERE id = $1::text::uuid FOR UPDATE";
/// Locked, so that no sweep deletes it.
pub(super) const LOCK_INPUT: &str = "SELECT key FROM job_inputs WHERE job = $1::text::uuid FOR UPDATE";
/// A job that was rejected before it had a circuit uses what is registered under the name now. $2 is how long it may
/// wait, $3 the hash that identifies its repeats.
pub(super) const REQUEUE: &str = concat!(
    clock!(),
    "UPDATE jobs SET state = 'queued', run_at = ",
    now!(),
    ", start_by = ",
    now!(),
    " + $2::bigint, body = $3, finished_at = NULL, keep_input_until = NULL, tries_transient = 0, tries_device = 0, ",
    "tries_lost = 0, error_class = NULL, error_message = NULL, cancel_requested = false, progress = 0, ",
    "wasm = CASE WHEN zkey = decode(repeat('00', 32), 'hex') ",
    "THEN (SELECT c.wasm FROM circuits c WHERE c.name = jobs.circuit) ELSE wasm END, ",
    "zkey = CASE WHEN zkey = decode(repeat('00', 32), 'hex') ",
    "THEN (SELECT c.zkey FROM circuits c WHERE c.name = jobs.circuit) ELSE zkey END ",
    "WHERE id = $1::text::uuid RETURNING ",
    job_columns!()
);
pub(super) const REPLACE_INPUT: &str = "INSERT INTO job_inputs (job, input, key) VALUES ($1::text::uuid, $2, $3) \
                                        ON CONFLICT (job) DO UPDATE SET input = excluded.input, key = excluded.key, \
                                        expires_at = NULL";
pub(super) const KEEP_INPUT: &str = "UPDATE job_inputs SET expires_at = NULL WHERE job = $1::text::uuid";

pub(super) const PAUSE: &str = concat!(
    clock!(),
    "INSERT INTO pauses (scope, name, since) VALUES ($1, $2, ",
    now!(),
    ") ON CONFLICT DO NOTHING RETURNING since"
);
pub(super) const RESUME: &str = "DELETE FROM pauses WHERE scope = $1 AND name = $2 RETURNING since";
pub(super) const PAUSED: &str = "SELECT scope, name, since FROM pauses WHERE scope = 'circuit' OR name = $1 \
                                 ORDER BY scope DESC, name";
/// Queues with unfinished jobs of a circuit.
pub(super) const QUEUES_OF: &str = "SELECT DISTINCT queue FROM jobs WHERE circuit = $1 AND finished_at IS NULL";
pub(super) const NOTIFY: &str = "SELECT pg_notify(channel, '')::text AS notified FROM unnest($1::text[]) AS channel";

/// In three parts: queued jobs while no circuit is paused; while one is, the jobs of each other circuit, so that paused
/// jobs need not be read through; and jobs whose lease has lapsed, of which those that are to be cancelled are due
/// under a pause, too: the claim cancels them. One of the first two is always empty, and costs nothing.
pub(super) const DUE: &str = concat!(
    recursive_clock!(),
    ", waiting AS ((SELECT circuit FROM jobs WHERE queue = $1 AND state = 'queued' AND ",
    some_circuit_held!(),
    " ORDER BY circuit LIMIT 1) UNION ALL SELECT (SELECT j.circuit FROM jobs j WHERE j.queue = $1 AND j.state = 'queued' ",
    "AND j.circuit > w.circuit ORDER BY j.circuit LIMIT 1) FROM waiting w WHERE w.circuit IS NOT NULL) ",
    "SELECT uuid_send(id) AS id, priority, again FROM ((SELECT id, priority, seq, ",
    came_again!(),
    " AS again FROM jobs ",
    "WHERE queue = $1 AND state = 'queued' AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " AND NOT ",
    some_circuit_held!(),
    " AND ",
    queue_goes!(),
    " ORDER BY priority DESC, seq LIMIT $2) UNION ALL SELECT j.* FROM waiting w CROSS JOIN LATERAL (",
    "SELECT id, priority, seq, ",
    came_again!(),
    " AS again FROM jobs WHERE queue = $1 AND circuit = w.circuit AND state = 'queued' ",
    "AND run_at <= ",
    now!(),
    " AND ",
    in_time!(),
    " ORDER BY priority DESC, seq LIMIT $2) AS j WHERE w.",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    " UNION ALL SELECT id, priority, seq, ",
    came_again!(),
    " AS again FROM jobs ",
    "WHERE queue = $1 AND state = 'running' AND lease_expires_at <= ",
    now!(),
    " AND (cancel_requested OR (",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    "))) AS d ORDER BY priority DESC, seq LIMIT $2"
);
/// $2 is the number of queued jobs to look at, null for all.
pub(super) const LOAD: &str = concat!(
    clock!(),
    "SELECT q.queued, r.running, greatest(0, ",
    now!(),
    " - q.oldest, ",
    now!(),
    " - r.oldest) AS oldest_ms, e.n AS ended_last_minute FROM ",
    "(SELECT count(*) AS queued, min(run_at) FILTER (WHERE ",
    in_time!(),
    " AND ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    ") AS oldest FROM (SELECT run_at, start_by, circuit FROM jobs WHERE queue = $1 AND state = 'queued' ",
    "ORDER BY priority DESC, seq LIMIT $2::bigint) AS j) AS q, ",
    "(SELECT count(*) AS running, min(lease_expires_at) FILTER (WHERE ",
    circuit_goes!(),
    " AND ",
    queue_goes!(),
    ") AS oldest FROM jobs WHERE queue = $1 AND state = 'running') AS r, ",
    "(SELECT count(*) AS n FROM jobs WHERE queue = $1 AND state IN ('done', 'failed', 'cancelled') ",
    "AND state <> 'cancelled' AND finished_at > ",
    now!(),
    " - 60000) AS e"
);
/// $3 is how long the input is kept. A job with a `start_by` has waited since `run_at`, when it was submitted or queued
/// again.
pub(super) const EXPIRE: &str = concat!(
    clock!(),
    "UPDATE jobs SET state = 'failed', error_class = 'timeout', error_message = 'no worker began it within ' || ",
    "trim_scale(round((start_by - run_at) / 1000.0, 3)) || ' s', finished_at = ",
    now!(),
    ", keep_input_until = ",
    now!(),
    " + $3 WHERE id = ANY (ARRAY(SELECT id FROM jobs WHERE queue = $1 AND state = 'queued' AND start_by <= ",
    now!(),
    " ORDER BY start_by LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING uuid_send(id) AS id"
);
/// Inputs of every queue: how long they are kept was decided when their jobs failed.
pub(super) const END_INPUTS: &str = concat!(
    clock!(),
    "DELETE FROM job_inputs WHERE job = ANY (ARRAY(SELECT job FROM job_inputs WHERE expires_at <= ",
    now!(),
    " ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING uuid_send(job) AS id"
);
/// $3 is the age, $4 the states.
pub(super) const PURGEABLE: &str = concat!(
    clock!(),
    "SELECT uuid_send(id) AS id FROM jobs WHERE queue = $1 ",
    "AND state IN ('done', 'failed', 'cancelled') AND state = ANY ($4::text[]) AND finished_at <= ",
    now!(),
    " - $3 ORDER BY finished_at, id LIMIT $2 OFFSET $5"
);
/// The limit is for the planner, as in `no_more_than!`. Jobs that another worker purges now are left to it.
pub(super) const PURGE: &str = concat!(
    clock!(),
    "DELETE FROM jobs WHERE id = ANY (ARRAY(SELECT id FROM jobs WHERE id = ANY ($1::text[]::uuid[]) AND finished_at <= ",
    now!(),
    " - $2 AND state = ANY ($3::text[]) ORDER BY id LIMIT cardinality($1::text[]) FOR UPDATE SKIP LOCKED)) ",
    "RETURNING uuid_send(id) AS id"
);
/// Counts at most $2 ended jobs.
pub(super) const ENDED: &str = "SELECT state, count(*) AS n FROM (SELECT state FROM jobs WHERE queue = $1 \
                                AND state IN ('done', 'failed', 'cancelled') ORDER BY finished_at DESC LIMIT $2) AS j \
                                GROUP BY state";
/// Counts each up to $2.
pub(super) const FAILED_AND_CANCELLED: &str = concat!(
    "SELECT 'failed' AS state, count(*) AS n ",
    "FROM (SELECT FROM jobs WHERE queue = $1 AND state = 'failed' LIMIT $2) AS f ",
    "UNION ALL SELECT 'cancelled', count(*) ",
    "FROM (SELECT FROM jobs WHERE queue = $1 AND state = 'cancelled' LIMIT $2) AS c"
);
/// Returns a statement whose plan has, in its first line, the number of rows that the server expects. `queue` must be a
/// literal quoted by the server.
pub(super) fn estimate(queue: &str, state: &'static str) -> String {
    format!("EXPLAIN SELECT FROM jobs WHERE queue = {queue} AND state = '{state}'")
}
pub(super) const INPUTS_HELD: &str = "SELECT key, count(*) AS n FROM job_inputs GROUP BY key ORDER BY key";

/// Returns the statements whose plans are watched.
pub(super) fn watched() -> Vec<(&'static str, String)> {
    let fixed = [
        ("submit", SUBMIT),
        ("same jobs", SAME_JOBS),
        ("claim", CLAIM),
        ("heartbeat", HEARTBEAT),
        ("input", INPUT),
        ("finish", FINISH),
        ("finished", FINISHED),
        ("fail", FAIL),
        ("failed", FAILED),
        ("release", RELEASE),
        ("released", RELEASED),
        ("held or cancelled", HELD_OR_CANCELLED),
        ("status", JOB),
        ("due", DUE),
        ("load", LOAD),
        ("expire", EXPIRE),
        ("end inputs", END_INPUTS),
        ("purgeable", PURGEABLE),
        ("purge", PURGE),
        ("ended", ENDED),
        ("put aside", FAILED_AND_CANCELLED),
        ("unfinished", UNFINISHED),
        ("still unfinished", STILL_UNFINISHED),
        ("content in use", CONTENT_IN_USE),
    ];
    let lists = [
        ("list", None, false, false),
        ("list failed", Some("failed"), false, false),
        ("list of circuit", None, true, false),
        ("list by key", None, false, true),
    ];
    let lists = lists.map(|(name, state, of_circuit, by_key)| (name, jobs(state, of_circuit, by_key)));
    fixed.map(|(name, sql)| (name, sql.to_owned())).into_iter().chain(lists).collect()
}
