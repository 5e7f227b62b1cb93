ALTER TABLE twinlog.tables
    -- Traces in the Agent DB's catalog of what was done to its table: a table that was created anew, a type, a label of an enum,
    -- a trigger. Where they differ later, rows may have changed, and the table is read again. NULL: not known yet.
    ADD COLUMN agent_marks jsonb,
    -- What the Agent DB's table can't have as the Site DB has it, for people to see.
    ADD COLUMN notes       text;
