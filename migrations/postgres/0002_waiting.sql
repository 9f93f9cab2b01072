-- Queued jobs of a circuit, best first: where some circuits are held back, the others' jobs are found past them.
CREATE INDEX jobs_waiting ON jobs (queue, circuit, priority DESC, seq) WHERE state = 'queued';
