-- When a person has given a parked row up: it stays parked, since it differs, but is not tried again before it changes or a person
-- asks for it.
ALTER TABLE twinlog.failed_rows ADD COLUMN discarded_at timestamptz;
-- Each such decision. It stays when the row is healed.
CREATE TABLE twinlog.discards (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot            text        NOT NULL,
    schema_name     text        NOT NULL,
    table_name      text        NOT NULL,
    key             text        NOT NULL,
    -- The entry in failed_rows, which may be gone.
    failed_row_id   bigint      NOT NULL,
    -- What was given up, and what had refused it.
    operation       text        NOT NULL,
    reason          text        NOT NULL,
    constraint_name text,
    -- Why, in the person's words.
    why             text        NOT NULL,
    -- Who, as the command line knows it (user@host), and the role, as the database knows it.
    who             text        NOT NULL,
    role            text        NOT NULL DEFAULT session_user,
    discarded_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX discards_table ON twinlog.discards (slot, schema_name, table_name);
