-- Content that a circuit had before it was replaced or removed. Jobs may still need it: it is removed, and then its row
-- here, once none does.
CREATE TABLE former_circuits (
    id   INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name TEXT    NOT NULL,
    zkey BLOB    NOT NULL,
    wasm BLOB
) STRICT;

CREATE TRIGGER circuits_replaced AFTER UPDATE ON circuits
WHEN (old.zkey, old.wasm) IS NOT (new.zkey, new.wasm)
BEGIN
    INSERT INTO former_circuits (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
END;

CREATE TRIGGER circuits_removed AFTER DELETE ON circuits
BEGIN
    INSERT INTO former_circuits (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
END;
