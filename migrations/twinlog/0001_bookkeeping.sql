-- The daemon's own bookkeeping in the Agent DB. Every row that says how far the daemon is, is written by the same
-- transaction that writes the rows it speaks of. (The schema itself is created by the migrator.)

-- How far the Agent DB has everything, one row a slot. The identity says whose positions these are.
CREATE TABLE twinlog.checkpoint (
    slot              text        PRIMARY KEY,
    publication       text        NOT NULL,
    system_identifier text        NOT NULL,
    timeline          integer     NOT NULL,
    database          text        NOT NULL,
    -- The end of the last source transaction whose effects are all here.
    end_lsn           pg_lsn      NOT NULL,
    -- When that transaction was committed, by the source's clock.
    source_commit_at  timestamptz,
    -- Set while a hole is possible: rows may be missing and only a full resync can tell. NULL is healthy.
    gap_reason        text,
    gap_since         timestamptz,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- Each table that is synchronised, and how far its copy is.
CREATE TABLE twinlog.tables (
    slot             text        NOT NULL,
    schema_name      text        NOT NULL,
    table_name       text        NOT NULL,
    -- new: nothing copied; copying: the first copy runs; streaming: equal but for lag; resyncing: streaming, and being
    -- read again; held: stopped until a person acts, reason in "detail".
    state            text        NOT NULL CHECK (state IN ('new', 'copying', 'streaming', 'resyncing', 'held')),
    -- Within a copy: rows (the source's rows by key order) or extras (rows that only the Agent DB has).
    phase            text        CHECK (phase IN ('rows', 'extras')),
    -- The last key done in this phase, as a JSON array of texts; NULL before the first chunk.
    last_key         text,
    rows_copied      bigint      NOT NULL DEFAULT 0,
    rows_estimated   bigint,
    -- A resync may be limited to a condition on the source's rows.
    condition        text,
    command_id       bigint,
    detail           text,
    started_at       timestamptz,
    finished_at      timestamptz,
    -- The source position as of which the last finished copy is right.
    copied_at_lsn    pg_lsn,
    PRIMARY KEY (slot, schema_name, table_name)
);

-- Rows that the Agent DB refused, one entry a key. Later changes to the key fold in; a retry reads the row's present
-- state from the Site DB.
CREATE TABLE twinlog.failed_rows (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot            text        NOT NULL,
    schema_name     text        NOT NULL,
    table_name      text        NOT NULL,
    -- The primary key as a JSON array of texts, in key order.
    key             text        NOT NULL,
    -- The folded operation: upsert, partial or delete.
    operation       text        NOT NULL CHECK (operation IN ('upsert', 'partial', 'delete')),
    -- The folded image: column name to text value (null is SQL NULL, an absent column is unchanged).
    image           jsonb       NOT NULL DEFAULT '{}',
    -- Why: the SQLSTATE of the refusal, or TW001 (a partial update whose row is missing).
    reason          text        NOT NULL,
    constraint_name text,
    message         text        NOT NULL,
    -- Where in the source's log the first and the last folded change stand, and how many there are.
    first_lsn       pg_lsn,
    last_lsn        pg_lsn,
    changes         bigint      NOT NULL DEFAULT 1,
    attempts        integer     NOT NULL DEFAULT 0,
    parked_at       timestamptz NOT NULL DEFAULT now(),
    last_attempt_at timestamptz,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (slot, schema_name, table_name, key)
);
CREATE INDEX failed_rows_due ON twinlog.failed_rows (slot, next_attempt_at);

-- received = applied + unchanged + superseded + filtered + parked, for the changes that the stream brought.
CREATE TABLE twinlog.accounting (
    slot        text   NOT NULL,
    schema_name text   NOT NULL,
    table_name  text   NOT NULL,
    received    bigint NOT NULL DEFAULT 0,
    applied     bigint NOT NULL DEFAULT 0,
    unchanged   bigint NOT NULL DEFAULT 0,
    superseded  bigint NOT NULL DEFAULT 0,
    filtered    bigint NOT NULL DEFAULT 0,
    parked      bigint NOT NULL DEFAULT 0,
    -- Rows written or deleted by copies and healing, outside of the sum.
    copied      bigint NOT NULL DEFAULT 0,
    healed      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (slot, schema_name, table_name),
    CHECK (received = applied + unchanged + superseded + filtered + parked)
);

-- What people asked a running daemon to do. The daemon takes them in order; any machine may write one.
CREATE TABLE twinlog.commands (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot         text        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('resync')),
    arguments    jsonb       NOT NULL DEFAULT '{}',
    -- requested: by the command line; running, done, failed: by the daemon.
    state        text        NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'running', 'done', 'failed')),
    progress     jsonb       NOT NULL DEFAULT '{}',
    error        text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);
CREATE INDEX commands_open ON twinlog.commands (slot, id) WHERE state IN ('requested', 'running');

-- The daemon's last word about itself, for `twinlog status`: rewritten every second or so.
CREATE TABLE twinlog.daemon (
    slot        text        PRIMARY KEY,
    instance    uuid        NOT NULL,
    hostname    text        NOT NULL,
    pid         integer     NOT NULL,
    version     text        NOT NULL,
    started_at  timestamptz NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    -- connecting, copying, streaming, held, gap, stopped
    state       text        NOT NULL,
    detail      text,
    report      jsonb       NOT NULL DEFAULT '{}'
);
