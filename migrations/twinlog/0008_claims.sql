-- Which pipeline writes which table, so that a second one does not write the same table unseen. Stays while the daemon is
-- stopped; given back when the pipeline leaves the table out. By hand, for a pipeline that is given up for good:
-- DELETE FROM twinlog.claims WHERE slot = '...';
CREATE TABLE twinlog.claims (
    -- The pipeline: it is known by its slot.
    slot              text        NOT NULL,
    schema_name       text        NOT NULL,
    table_name        text        NOT NULL,
    -- The table in this database, which keeps its oid when it is renamed.
    relation          oid         NOT NULL,
    -- The database for which the oid holds. After a restore from a dump the oids are others, and the name counts.
    place             text        NOT NULL,
    -- What the pipeline reads.
    system_identifier text        NOT NULL,
    database          text        NOT NULL,
    -- Whether the pipeline's configuration allows others to write the table as well (sync.shared_tables).
    shared            boolean     NOT NULL,
    claimed_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (slot, schema_name, table_name)
);
CREATE INDEX claims_relation ON twinlog.claims (relation);
