-- The kind of fault for which a table is held, as a word for scripts and metrics; the fault itself and its remedy are in detail.
ALTER TABLE twinlog.tables ADD COLUMN hold_cause text;
