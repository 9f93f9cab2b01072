-- Content to be removed from the artifacts, unless a circuit or a job needs it: what a circuit had before it was replaced
-- or removed, and what is imported for a circuit that is not registered yet.
CREATE TABLE removable_content (
    id             bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The circuit's name.
    name           text   COLLATE "C" NOT NULL,
    zkey           bytea  NOT NULL,
    wasm           bytea,
    -- Not to be removed before this time.
    removable_from bigint NOT NULL DEFAULT 0
);

CREATE FUNCTION circuits_leave_content() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO removable_content (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
    RETURN NULL;
END
$$;

CREATE TRIGGER circuits_replaced AFTER UPDATE ON circuits FOR EACH ROW
WHEN ((old.zkey, old.wasm) IS DISTINCT FROM (new.zkey, new.wasm))
EXECUTE FUNCTION circuits_leave_content();

CREATE TRIGGER circuits_removed AFTER DELETE ON circuits FOR EACH ROW
EXECUTE FUNCTION circuits_leave_content();
