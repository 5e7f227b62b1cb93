-- What verifying has found of each table the last time: as of when it is proved to be equal, or in how many rows it differs.
CREATE TABLE twinlog.proofs (
    slot        text        NOT NULL,
    schema_name text        NOT NULL,
    table_name  text        NOT NULL,
    -- When the last verification of it began: rows were compared no earlier.
    verified_at timestamptz NOT NULL,
    -- When the last one began by which it was equal; NULL: none.
    proved_at   timestamptz,
    -- Rows that differed and were not repaired.
    missing     bigint      NOT NULL,
    extra       bigint      NOT NULL,
    different   bigint      NOT NULL,
    -- The command, whose row has the keys.
    command_id  bigint      NOT NULL,
    PRIMARY KEY (slot, schema_name, table_name)
);
