-- Events: what listeners are told of, in the order of the commits. Not replicated: news about rows, not facts of their own.
--
-- Triggers write them, in the transaction of the change, so that no writer can forget one, another program included. One
-- row for each statement, kind and number: a batch of 256 messages costs one row.
CREATE TABLE twinlog.events (
    -- Drawn after the change was made, so a change that saw another one has the higher id.
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL until a server has placed the event, after its commit (site_db::events). Positions become visible in their order.
    position   bigint      UNIQUE,
    kind       text        NOT NULL,
    -- The number that it is about.
    account_id uuid,
    -- The rows, in the order of the change; for messages, the status of each.
    ids        uuid[]      NOT NULL,
    statuses   text[],
    -- The server process that wrote it; NULL: another program.
    origin     uuid,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX events_unplaced ON twinlog.events (id) WHERE position IS NULL;

CREATE SEQUENCE twinlog.event_position;

-- The highest position that was deleted because of its age: who stopped before it has missed events.
CREATE TABLE twinlog.events_floor (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    position bigint  NOT NULL
);
INSERT INTO twinlog.events_floor (position) VALUES (0);

-- With the rights of their owner, because any program that may change the tables must be able to go on doing so. At most
-- 500 rows an event, so that a change of a million rows does not make one event of 16 MB.
CREATE FUNCTION twinlog.event_origin() RETURNS uuid LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT CASE WHEN length(current_setting('twinlog.process', true)) = 36
                      THEN current_setting('twinlog.process', true)::uuid END $$;

CREATE FUNCTION twinlog.note_new_messages() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO twinlog.events (kind, account_id, ids, statuses, origin)
    SELECT 'message.created', account_id, array_agg(id ORDER BY n), array_agg(status ORDER BY n), twinlog.event_origin()
      FROM (SELECT id, account_id, status, row_number() OVER () - 1 AS n FROM after) AS r
     GROUP BY account_id, n / 500 ORDER BY min(n);
    RETURN NULL;
END $$;

CREATE FUNCTION twinlog.note_statuses() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO twinlog.events (kind, account_id, ids, statuses, origin)
    SELECT 'message.status', account_id, array_agg(id ORDER BY n), array_agg(status ORDER BY n), twinlog.event_origin()
      FROM (SELECT id, a.account_id, a.status, row_number() OVER () - 1 AS n FROM after a JOIN before b USING (id)
             WHERE a.status <> b.status) AS r
     GROUP BY account_id, n / 500 ORDER BY min(n);
    RETURN NULL;
END $$;

-- The trigger's argument is the kind.
CREATE FUNCTION twinlog.note_rows_of_number() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO twinlog.events (kind, account_id, ids, origin)
    SELECT TG_ARGV[0], account_id, array_agg(id ORDER BY n), twinlog.event_origin()
      FROM (SELECT id, account_id, row_number() OVER () - 1 AS n FROM after) AS r
     GROUP BY account_id, n / 500 ORDER BY min(n);
    RETURN NULL;
END $$;

CREATE FUNCTION twinlog.note_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO twinlog.events (kind, ids, origin)
    SELECT TG_ARGV[0], array_agg(id ORDER BY n), twinlog.event_origin()
      FROM (SELECT id, row_number() OVER () - 1 AS n FROM after) AS r
     GROUP BY n / 500 ORDER BY min(n);
    RETURN NULL;
END $$;

CREATE TRIGGER twinlog_events_insert AFTER INSERT ON public.whatsapp_messages
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_new_messages();
CREATE TRIGGER twinlog_events_update AFTER UPDATE ON public.whatsapp_messages
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_statuses();
CREATE TRIGGER twinlog_events_insert AFTER INSERT ON public.conversations
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_rows_of_number('conversation.updated');
CREATE TRIGGER twinlog_events_update AFTER UPDATE ON public.conversations
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_rows_of_number('conversation.updated');
CREATE TRIGGER twinlog_events_insert AFTER INSERT ON public.leads
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_rows('lead.updated');
CREATE TRIGGER twinlog_events_update AFTER UPDATE ON public.leads
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_rows('lead.updated');
CREATE TRIGGER twinlog_events_insert AFTER INSERT ON public.notifications
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION twinlog.note_rows_of_number('notification.created');
