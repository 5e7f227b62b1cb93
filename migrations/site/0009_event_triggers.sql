-- The same events for half of the time. A function in SQL that is not inlined is parsed and planned anew for each statement;
-- PL/pgSQL keeps its plan. And many statements change no row: one that stores messages may also store new leads.
CREATE OR REPLACE FUNCTION twinlog.event_origin() RETURNS uuid LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN pg_catalog.length(pg_catalog.current_setting('twinlog.process', true)) OPERATOR(pg_catalog.=) 36
                THEN pg_catalog.current_setting('twinlog.process', true)::pg_catalog.uuid END;
END $$;

CREATE OR REPLACE FUNCTION twinlog.note_new_messages() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM after) THEN
        INSERT INTO twinlog.events (kind, account_id, ids, statuses, origin)
        SELECT 'message.created', account_id, array_agg(id ORDER BY n), array_agg(status ORDER BY n), twinlog.event_origin()
          FROM (SELECT id, account_id, status, row_number() OVER () - 1 AS n FROM after) AS r
         GROUP BY account_id, n / 500 ORDER BY min(n);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION twinlog.note_statuses() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM after) THEN
        INSERT INTO twinlog.events (kind, account_id, ids, statuses, origin)
        SELECT 'message.status', account_id, array_agg(id ORDER BY n), array_agg(status ORDER BY n), twinlog.event_origin()
          FROM (SELECT id, a.account_id, a.status, row_number() OVER () - 1 AS n FROM after a JOIN before b USING (id)
                 WHERE a.status <> b.status) AS r
         GROUP BY account_id, n / 500 ORDER BY min(n);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION twinlog.note_rows_of_number() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM after) THEN
        INSERT INTO twinlog.events (kind, account_id, ids, origin)
        SELECT TG_ARGV[0], account_id, array_agg(id ORDER BY n), twinlog.event_origin()
          FROM (SELECT id, account_id, row_number() OVER () - 1 AS n FROM after) AS r
         GROUP BY account_id, n / 500 ORDER BY min(n);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION twinlog.note_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM after) THEN
        INSERT INTO twinlog.events (kind, ids, origin)
        SELECT TG_ARGV[0], array_agg(id ORDER BY n), twinlog.event_origin()
          FROM (SELECT id, row_number() OVER () - 1 AS n FROM after) AS r
         GROUP BY n / 500 ORDER BY min(n);
    END IF;
    RETURN NULL;
END $$;
