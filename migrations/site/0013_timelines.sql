-- The timeline on which a round was placed. After a failover to a standby that had not received everything, transactions may have
-- numbers that others had before, so a snapshot of another timeline does not tell which events were placed.
ALTER TABLE twinlog.event_rounds ADD COLUMN timeline text;

CREATE OR REPLACE FUNCTION twinlog.place_events(process text) RETURNS integer LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last  twinlog.event_rounds;
    here  bigint := (SELECT system_identifier FROM pg_control_system());
    -- Not from the control file: it learns of a promotion only at the next checkpoint.
    line  text := left(pg_walfile_name(pg_current_wal_lsn()), 8);
    seen  pg_snapshot;
    fresh bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('twinlog.events', 0));
    SELECT r.* INTO last FROM twinlog.event_rounds r ORDER BY r.round DESC LIMIT 1;
    -- Rounds of an earlier version have no timeline.
    IF last.cluster <> here OR last.timeline <> line
       OR pg_snapshot_xmax(last.snapshot) > pg_snapshot_xmax(pg_current_snapshot()) THEN
        -- What was committed here since is not known: without their round, all listeners are told to load anew.
        DELETE FROM twinlog.event_rounds;
        INSERT INTO twinlog.event_rounds (round, ids, snapshot, cluster, timeline)
            VALUES (last.round + 1, '{}', pg_current_snapshot(), here, line);
        RETURN 0;
    END IF;
    SELECT pg_current_snapshot(), array_agg(e.id ORDER BY e.id) INTO seen, fresh FROM (
        SELECT id FROM twinlog.events WHERE xid >= pg_snapshot_xmax(last.snapshot)
        UNION ALL
        SELECT id FROM twinlog.events WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(last.snapshot)))) AS e;
    IF fresh IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO twinlog.event_rounds (round, ids, snapshot, cluster, timeline)
        SELECT last.round + 1 + (n - 1) / 500, array_agg(id ORDER BY n), seen, here, line
          FROM unnest(fresh) WITH ORDINALITY AS f(id, n) GROUP BY (n - 1) / 500;
    PERFORM pg_notify('twinlog_events', process);
    RETURN cardinality(fresh);
END $$;
