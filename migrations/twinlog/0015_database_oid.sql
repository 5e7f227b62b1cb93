-- The OID of the Site DB: one that was dropped and restored under the same name is another one. NULL: not known, as before this
-- migration.
ALTER TABLE twinlog.checkpoint ADD COLUMN database_oid oid;
