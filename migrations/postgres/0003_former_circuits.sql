-- Content that a circuit had before it was replaced or removed. Jobs may still need it: it is removed, and then its row
-- here, once none does.
CREATE TABLE former_circuits (
    id   bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text   COLLATE "C" NOT NULL,
    zkey bytea  NOT NULL,
    wasm bytea
);

CREATE FUNCTION circuits_keep_former() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO former_circuits (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
    RETURN NULL;
END
$$;

CREATE TRIGGER circuits_replaced AFTER UPDATE ON circuits FOR EACH ROW
WHEN ((old.zkey, old.wasm) IS DISTINCT FROM (new.zkey, new.wasm))
EXECUTE FUNCTION circuits_keep_former();

CREATE TRIGGER circuits_removed AFTER DELETE ON circuits FOR EACH ROW
EXECUTE FUNCTION circuits_keep_former();
