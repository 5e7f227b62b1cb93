-- What each table was on the Site DB when its copy began. Where it is something else later (dropped and created anew,
-- taken out of the publication and put back, another column, another row filter), changes were made that no stream
-- brings, and the table is read again.
ALTER TABLE twinlog.tables
    ADD COLUMN source_oid        oid,
    -- Publication, entry in it, and what it sends.
    ADD COLUMN source_membership text,
    -- Published columns with their types.
    ADD COLUMN source_columns    text[],
    ADD COLUMN source_filter     text;
