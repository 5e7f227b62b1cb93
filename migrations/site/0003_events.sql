-- Events: what listeners are told of, in the order of the commits. Not replicated: news about rows, not facts of their own.
--
-- Triggers write them, in the transaction of the change, so that no writer can forget one, another program included. One
-- row for each statement, kind and number: a batch of 256 messages costs one row.
CREATE TABLE twinlog.events (
    -- Drawn after the change was made, so a change that saw another one has the higher id.
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The transaction of the change, by which place_events knows whether it was committed when it looked last.
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
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
CREATE INDEX events_xid ON twinlog.events (xid);

-- The order of the events: rounds follow each other without a gap, and each has the events that were committed between it and
-- the one before. Rows are only inserted, and deleted when they are old: searching must not become slower while somebody's old
-- snapshot keeps dead rows.
CREATE TABLE twinlog.event_rounds (
    round      bigint      PRIMARY KEY,
    -- At most 500 events, in their order.
    ids        bigint[]    NOT NULL,
    -- What was committed then.
    snapshot   pg_snapshot NOT NULL,
    -- The cluster in which this snapshot means something: a restored dump has other transactions.
    cluster    bigint      NOT NULL,
    placed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO twinlog.event_rounds (round, ids, snapshot, cluster)
    SELECT 0, '{}', pg_current_snapshot(), system_identifier FROM pg_control_system();

-- Gives the events that were committed since the last round their places, tells all who listen, and returns how many they are.
-- One transaction at a time; each statement sees what was committed before it began (READ COMMITTED).
CREATE FUNCTION twinlog.place_events(process text) RETURNS integer LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last  twinlog.event_rounds;
    here  bigint := (SELECT system_identifier FROM pg_control_system());
    seen  pg_snapshot;
    fresh bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('twinlog.events', 0));
    SELECT r.* INTO last FROM twinlog.event_rounds r ORDER BY r.round DESC LIMIT 1;
    IF last.cluster <> here OR pg_snapshot_xmax(last.snapshot) > pg_snapshot_xmax(pg_current_snapshot()) THEN
        -- What was committed here since is not known: without their round, all listeners are told to load anew.
        DELETE FROM twinlog.event_rounds;
        INSERT INTO twinlog.event_rounds (round, ids, snapshot, cluster)
            VALUES (last.round + 1, '{}', pg_current_snapshot(), here);
        RETURN 0;
    END IF;
    SELECT pg_current_snapshot(), array_agg(e.id ORDER BY e.id) INTO seen, fresh FROM (
        SELECT id FROM twinlog.events WHERE xid >= pg_snapshot_xmax(last.snapshot)
        UNION ALL
        SELECT id FROM twinlog.events WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(last.snapshot)))) AS e;
    IF fresh IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO twinlog.event_rounds (round, ids, snapshot, cluster)
        SELECT last.round + 1 + (n - 1) / 500, array_agg(id ORDER BY n), seen, here
          FROM unnest(fresh) WITH ORDINALITY AS f(id, n) GROUP BY (n - 1) / 500;
    PERFORM pg_notify('twinlog_events', process);
    RETURN cardinality(fresh);
END $$;

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

-- Firing a trigger needs no right on its function; to use one for a trigger of one's own would.
REVOKE ALL ON FUNCTION twinlog.note_new_messages(), twinlog.note_statuses(), twinlog.note_rows_of_number(), twinlog.note_rows()
    FROM PUBLIC;

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
