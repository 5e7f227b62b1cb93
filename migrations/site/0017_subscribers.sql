-- Receivers that webhooks are handed on to ([[subscribers]]), by the names in the configuration. Not replicated.
CREATE TABLE twinlog.subscribers (
    name         text        PRIMARY KEY,
    -- The server that delivers to it, and until when it has the right to.
    owner        uuid,
    lease_until  timestamptz NOT NULL DEFAULT '-infinity',
    -- The hash of the address and the token with which its handshake succeeded last.
    verified     text,
    -- When a server had it in its configuration last.
    seen_at      timestamptz NOT NULL DEFAULT now(),
    -- No server has it any more: nothing is kept for it from then on.
    removed_at   timestamptz,
    delivered_at timestamptz,
    -- Why it does not get its webhooks now, in our words.
    problem      text
);

-- Webhooks that a subscriber has not taken yet. A row is deleted when it has.
CREATE TABLE twinlog.deliveries (
    subscriber      text        NOT NULL,
    -- Of the webhook: the order in which they are delivered.
    received_at     timestamptz NOT NULL,
    webhook_id      uuid        NOT NULL,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    -- It was tried for as long as it may be; only a person has it tried again.
    given_up_at     timestamptz,
    problem         text,
    PRIMARY KEY (subscriber, received_at, webhook_id)
);
CREATE INDEX deliveries_waiting ON twinlog.deliveries (subscriber, received_at, webhook_id) WHERE given_up_at IS NULL;
CREATE INDEX deliveries_given_up ON twinlog.deliveries (given_up_at) WHERE given_up_at IS NOT NULL;

-- In the transaction that stores a webhook: so nothing that Meta got a 200 for is missing, whatever dies when.
CREATE FUNCTION twinlog.queue_deliveries() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO twinlog.deliveries (subscriber, received_at, webhook_id)
    SELECT s.name, a.received_at, a.id FROM after a CROSS JOIN twinlog.subscribers s WHERE s.removed_at IS NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION twinlog.queue_deliveries() FROM PUBLIC;
CREATE TRIGGER twinlog_deliveries_insert AFTER INSERT ON public.webhook_events
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.queue_deliveries();
