-- Circuits and jobs. Times are milliseconds since 1970 by the database's clock; hashes are raw bytes.

CREATE TABLE circuits (
    name        text   COLLATE "C" NOT NULL PRIMARY KEY,
    zkey        bytea  NOT NULL CHECK (octet_length(zkey) = 32),
    wasm        bytea           CHECK (octet_length(wasm) = 32),
    n_vars      bigint NOT NULL,
    n_public    bigint NOT NULL,
    domain_size bigint NOT NULL,
    created_at  bigint NOT NULL
);

CREATE TABLE jobs (
    id               uuid    NOT NULL PRIMARY KEY,
    -- Order of submission, which does not depend on a clock.
    seq              bigint  NOT NULL GENERATED ALWAYS AS IDENTITY,
    queue            text    COLLATE "C" NOT NULL,
    -- By name and by content at submission. No foreign key: a finished job outlives its circuit.
    circuit          text    COLLATE "C" NOT NULL,
    -- Zeros for a job that was refused before it had a circuit.
    zkey             bytea   NOT NULL CHECK (octet_length(zkey) = 32),
    wasm             bytea            CHECK (octet_length(wasm) = 32),
    body             bytea   NOT NULL CHECK (octet_length(body) = 32),
    idempotency_key  text    COLLATE "C",
    priority         bigint  NOT NULL,
    state            text    COLLATE "C" NOT NULL DEFAULT 'queued'
                     CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    stage            text    COLLATE "C",
    progress         double precision NOT NULL DEFAULT 0,
    attempt          bigint  NOT NULL DEFAULT 0,
    tries_transient  bigint  NOT NULL DEFAULT 0,
    tries_device     bigint  NOT NULL DEFAULT 0,
    tries_lost       bigint  NOT NULL DEFAULT 0,
    worker           text    COLLATE "C",
    error_class      text    COLLATE "C",
    error_message    text,
    -- Array of failed attempts, oldest first, at most the last 50.
    history          jsonb   NOT NULL DEFAULT '[]',
    -- JSON, kept as it was written.
    result           text,
    cancel_requested boolean NOT NULL DEFAULT false,
    created_at       bigint  NOT NULL,
    run_at           bigint  NOT NULL,
    -- Not begun before this time, it fails; null once it has begun.
    start_by         bigint,
    started_at       bigint,
    finished_at      bigint,
    -- In no index, so that a heartbeat touches the row alone.
    lease_expires_at bigint,
    -- How long the input of a failed job is kept; null: not at all.
    keep_input_until bigint,
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'done') = (result IS NOT NULL)),
    CHECK ((error_class IS NULL) = (error_message IS NULL))
) WITH (
    -- Room on the page for the versions that a job goes through.
    fillfactor = 80,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.05
);

-- The submitter's own names.
CREATE UNIQUE INDEX jobs_by_key ON jobs (queue, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Queued jobs, best first.
CREATE INDEX jobs_queued ON jobs (queue, priority DESC, seq) WHERE state = 'queued';
-- Queued jobs that may expire.
CREATE INDEX jobs_expiring ON jobs (queue, start_by) WHERE state = 'queued' AND start_by IS NOT NULL;
-- Running jobs: as few as the fleet has slots.
CREATE INDEX jobs_running ON jobs (queue) WHERE state = 'running';
-- Ended jobs by age; covers counts and the rate of the last minute.
CREATE INDEX jobs_ended ON jobs (queue, finished_at, state) WHERE state IN ('done', 'failed', 'cancelled');
-- Lists.
CREATE INDEX jobs_in_order ON jobs (queue, seq);
CREATE INDEX jobs_by_circuit ON jobs (queue, circuit, seq);
CREATE INDEX jobs_put_aside ON jobs (queue, state, seq) WHERE state IN ('failed', 'cancelled');
-- Whether a circuit is in use. Not by state, or the planner would take it for queued ones too.
CREATE INDEX jobs_unfinished ON jobs (circuit) WHERE finished_at IS NULL;

-- Inputs are secrets: they live while their job is unfinished, and those of failed jobs until they expire.
CREATE TABLE job_inputs (
    job        uuid  NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    -- Name of the key it is sealed with; empty if it is not.
    key        text  COLLATE "C" NOT NULL DEFAULT '',
    -- Null while the job is unfinished.
    expires_at bigint,
    input      bytea NOT NULL
) WITH (
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_scale_factor = 0.02
);

-- Sealed bytes do not shrink.
ALTER TABLE job_inputs ALTER COLUMN input SET STORAGE EXTERNAL;

-- Inputs that are to go.
CREATE INDEX job_inputs_expiring ON job_inputs (expires_at) WHERE expires_at IS NOT NULL;

-- Whichever statement ends a job ends its input, or says how long it is kept, in the same transaction. A trigger sees
-- an input that was replaced while the statement waited for the job's row; a part of the statement would not.
CREATE FUNCTION jobs_end_input() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.state = 'failed' AND new.keep_input_until IS NOT NULL THEN
        UPDATE job_inputs SET expires_at = new.keep_input_until WHERE job = new.id;
    ELSE
        DELETE FROM job_inputs WHERE job = new.id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER jobs_end_input AFTER UPDATE OF state ON jobs FOR EACH ROW
WHEN (old.state <> new.state AND new.state IN ('done', 'failed', 'cancelled'))
EXECUTE FUNCTION jobs_end_input();

-- What is held back: a queue, or a circuit in every queue.
CREATE TABLE pauses (
    scope text   COLLATE "C" NOT NULL CHECK (scope IN ('queue', 'circuit')),
    name  text   COLLATE "C" NOT NULL,
    since bigint NOT NULL,
    PRIMARY KEY (scope, name)
);
