-- Several queues in one database, histories, deadlines, pauses, inputs that outlive a failure for a while.
--
-- Both tables are made anew, since idempotency keys become unique within a queue and SQLite cannot drop a column's
-- UNIQUE in place. The inputs move first: dropping the old jobs would take theirs along.

CREATE TABLE jobs_2 (
    -- Order of submission, which does not depend on a clock.
    seq              INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id               BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    queue            TEXT    NOT NULL DEFAULT 'prove',
    -- By name and by content at submission. No foreign key: a finished job outlives its circuit.
    circuit          TEXT    NOT NULL,
    -- Zeros for a job that was refused before it had a circuit.
    zkey             BLOB    NOT NULL CHECK (length(zkey) = 32),
    wasm             BLOB             CHECK (length(wasm) = 32),
    body             BLOB    NOT NULL CHECK (length(body) = 32),
    idempotency_key  TEXT,
    priority         INTEGER NOT NULL,
    state            TEXT    NOT NULL DEFAULT 'queued'
                     CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    stage            TEXT,
    progress         REAL    NOT NULL DEFAULT 0,
    attempt          INTEGER NOT NULL DEFAULT 0,
    tries_transient  INTEGER NOT NULL DEFAULT 0,
    tries_device     INTEGER NOT NULL DEFAULT 0,
    tries_lost       INTEGER NOT NULL DEFAULT 0,
    worker           TEXT,
    error_class      TEXT,
    error_message    TEXT,
    -- JSON array of failed attempts, oldest first, at most the last 50.
    history          TEXT    NOT NULL DEFAULT '[]',
    -- JSON.
    result           TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    created_at       INTEGER NOT NULL,
    run_at           INTEGER NOT NULL,
    -- Not begun before this time, it fails; null once it has begun.
    start_by         INTEGER,
    started_at       INTEGER,
    finished_at      INTEGER,
    lease_expires_at INTEGER,
    -- How long the input of a failed job is kept; null: not at all.
    keep_input_until INTEGER,
    UNIQUE (queue, idempotency_key),
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'done') = (result IS NOT NULL)),
    CHECK ((error_class IS NULL) = (error_message IS NULL))
) STRICT;

INSERT INTO jobs_2 (seq, id, circuit, zkey, wasm, body, idempotency_key, priority, state, stage, progress, attempt,
                    tries_transient, tries_device, tries_lost, worker, error_class, error_message, result,
                    cancel_requested, created_at, run_at, started_at, finished_at, lease_expires_at)
SELECT seq, id, circuit, zkey, wasm, body, idempotency_key, priority, state, stage, progress, attempt,
       tries_transient, tries_device, tries_lost, worker, error_class, error_message, result,
       cancel_requested, created_at, run_at, started_at, finished_at, lease_expires_at
FROM jobs ORDER BY seq;

-- Inputs are secrets: they live while their job is unfinished, and those of failed jobs until they expire.
CREATE TABLE job_inputs_2 (
    job        INTEGER NOT NULL PRIMARY KEY REFERENCES jobs_2 (seq) ON DELETE CASCADE,
    -- Name of the key it is sealed with; empty if it is not.
    key        TEXT    NOT NULL DEFAULT '',
    -- Null while the job is unfinished.
    expires_at INTEGER,
    input      BLOB    NOT NULL
) STRICT;

INSERT INTO job_inputs_2 (job, input) SELECT job, input FROM job_inputs;

DROP TABLE job_inputs;
DROP TABLE jobs;
ALTER TABLE jobs_2 RENAME TO jobs;
ALTER TABLE job_inputs_2 RENAME TO job_inputs;

-- Queued jobs, best first; covers the look for due ones and the load.
CREATE INDEX jobs_queued ON jobs (queue, priority DESC, seq, run_at, start_by, circuit, id) WHERE state = 'queued';
-- Queued jobs that may expire.
CREATE INDEX jobs_expiring ON jobs (queue, start_by) WHERE state = 'queued' AND start_by IS NOT NULL;
-- Running jobs by the end of their lease; covers the load.
CREATE INDEX jobs_running ON jobs (queue, lease_expires_at, circuit) WHERE state = 'running';
-- Ended jobs by age; covers the rate of the last minute.
CREATE INDEX jobs_ended ON jobs (queue, finished_at, state) WHERE finished_at IS NOT NULL;
-- Lists, and counts by state.
CREATE INDEX jobs_in_order ON jobs (queue, seq);
CREATE INDEX jobs_by_state ON jobs (queue, state, seq);
CREATE INDEX jobs_by_circuit ON jobs (queue, circuit, seq);
-- Whether a circuit is in use, and which content.
CREATE INDEX jobs_unfinished ON jobs (circuit, state, zkey, wasm) WHERE state IN ('queued', 'running');
-- Inputs that are to go.
CREATE INDEX job_inputs_expiring ON job_inputs (expires_at) WHERE expires_at IS NOT NULL;

-- Whichever statement ends a job ends its input, or says how long it is kept, in the same transaction.
CREATE TRIGGER jobs_end_input AFTER UPDATE OF state ON jobs
WHEN new.state IN ('done', 'failed', 'cancelled')
BEGIN
    DELETE FROM job_inputs WHERE job = new.seq AND (new.state <> 'failed' OR new.keep_input_until IS NULL);
    UPDATE job_inputs SET expires_at = new.keep_input_until WHERE job = new.seq;
END;

-- What is held back: a queue, or a circuit in every queue.
CREATE TABLE pauses (
    scope TEXT    NOT NULL CHECK (scope IN ('queue', 'circuit')),
    name  TEXT    NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
