-- While a table is held, its changes are received and passed over: they are read again when it is released. They are counted
-- too, so received = applied + unchanged + superseded + filtered + parked + held.
ALTER TABLE twinlog.accounting ADD COLUMN held bigint NOT NULL DEFAULT 0;
ALTER TABLE twinlog.accounting DROP CONSTRAINT accounting_check;
ALTER TABLE twinlog.accounting ADD CONSTRAINT accounting_check
    CHECK (received = applied + unchanged + superseded + filtered + parked + held);
