-- Circuits and jobs. Times are milliseconds since 1970 by the database's clock; hashes and ids are raw bytes.

CREATE TABLE circuits (
    name        TEXT    NOT NULL PRIMARY KEY,
    zkey        BLOB    NOT NULL CHECK (length(zkey) = 32),
    wasm        BLOB             CHECK (length(wasm) = 32),
    n_vars      INTEGER NOT NULL,
    n_public    INTEGER NOT NULL,
    domain_size INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    -- Order of submission, which does not depend on a clock.
    seq              INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id               BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    -- By name and by content at submission. No foreign key: a finished job outlives its circuit.
    circuit          TEXT    NOT NULL,
    zkey             BLOB    NOT NULL CHECK (length(zkey) = 32),
    wasm             BLOB             CHECK (length(wasm) = 32),
    body             BLOB    NOT NULL CHECK (length(body) = 32),
    idempotency_key  TEXT    UNIQUE,
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
    -- JSON.
    result           TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    created_at       INTEGER NOT NULL,
    run_at           INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    lease_expires_at INTEGER,
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'done') = (result IS NOT NULL)),
    CHECK ((error_class IS NULL) = (error_message IS NULL))
) STRICT;

-- Queued jobs, best first; covers the look for due ones.
CREATE INDEX jobs_queued ON jobs (priority DESC, seq, run_at, id) WHERE state = 'queued';
-- Running jobs by the end of their lease.
CREATE INDEX jobs_running ON jobs (lease_expires_at) WHERE state = 'running';
-- Lists and counts by state.
CREATE INDEX jobs_by_state ON jobs (state, seq);
-- Whether a circuit is in use.
CREATE INDEX jobs_unfinished ON jobs (circuit) WHERE state IN ('queued', 'running');

-- Inputs are secrets and live no longer than their job is unfinished.
CREATE TABLE job_inputs (
    job   INTEGER NOT NULL PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
    input BLOB    NOT NULL
) STRICT;

-- Whichever statement ends a job ends its input, in the same transaction.
CREATE TRIGGER jobs_end_input AFTER UPDATE OF state ON jobs
WHEN new.state IN ('done', 'failed', 'cancelled')
BEGIN
    DELETE FROM job_inputs WHERE job = new.seq;
END;
