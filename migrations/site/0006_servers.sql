-- What each running server reports about itself, for `twinlog status`. Not replicated.
CREATE TABLE twinlog.servers (
    id          uuid        PRIMARY KEY,
    hostname    text        NOT NULL,
    pid         bigint      NOT NULL,
    version     text        NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    reported_at timestamptz NOT NULL DEFAULT now(),
    -- As /health shows it: each part of the server with its state and the reason.
    components  jsonb       NOT NULL
);
