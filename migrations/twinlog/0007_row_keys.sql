-- By what a table's rows are told apart: the columns of a unique key as a JSON array, or, where there is none, all columns as
-- {"rows": [...]}. Where it changes, the keys of parked rows and the place of a copy mean nothing any more.
ALTER TABLE twinlog.tables
    ADD COLUMN row_key           text,
    -- all; or inserts, where a table without a replica identity can have no others.
    ADD COLUMN published_changes text NOT NULL DEFAULT 'all';
ALTER TABLE twinlog.failed_rows ADD COLUMN row_key text;
