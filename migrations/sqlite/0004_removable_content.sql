-- Content to be removed from the artifacts, unless a circuit or a job needs it: what a circuit had before it was replaced
-- or removed, and what is imported for a circuit that is not registered yet.
CREATE TABLE removable_content (
    id             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- The circuit's name.
    name           TEXT    NOT NULL,
    zkey           BLOB    NOT NULL,
    wasm           BLOB,
    -- Not to be removed before this time.
    removable_from INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TRIGGER circuits_replaced AFTER UPDATE ON circuits
WHEN (old.zkey, old.wasm) IS NOT (new.zkey, new.wasm)
BEGIN
    INSERT INTO removable_content (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
END;

CREATE TRIGGER circuits_removed AFTER DELETE ON circuits
BEGIN
    INSERT INTO removable_content (name, zkey, wasm) VALUES (old.name, old.zkey, old.wasm);
END;
