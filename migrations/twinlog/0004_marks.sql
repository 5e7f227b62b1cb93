-- Traces in the Site DB's catalog of what its log does not carry (a rewrite, a renamed label of an enum, a publication that
-- sent less for a while), as they were when the table's copy began. NULL: stored by an older version.
ALTER TABLE twinlog.tables ADD COLUMN source_marks jsonb;
