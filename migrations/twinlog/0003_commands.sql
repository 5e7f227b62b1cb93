-- Any kind of command may be written: the daemon knows which it serves, and fails the others with a reason. So a new kind
-- needs no migration.
ALTER TABLE twinlog.commands DROP CONSTRAINT commands_kind_check;
