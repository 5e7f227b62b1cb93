-- For readers of the Agent DB: how far it is. A reader's role needs USAGE on the schema twinlog, and no right on its tables.

-- As of when a held table's rows are those of the Site DB.
ALTER TABLE twinlog.tables ADD COLUMN held_as_of timestamptz;

-- As of when everything of a slot is applied: what was committed in the Site DB until then is here, or parked, or passed over as
-- its table is held.
CREATE FUNCTION twinlog.applied_as_of(slot text) RETURNS timestamptz LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT greatest(c.source_commit_at,
            -- The age of the oldest transaction that was committed and not applied; 0 only if there was none.
            d.reported_at - make_interval(secs => (d.report ->> 'delay_seconds')::double precision))
      FROM twinlog.checkpoint c LEFT JOIN twinlog.daemon d ON d.slot = c.slot
     WHERE c.slot = applied_as_of.slot AND c.gap_reason IS NULL
$$;

-- As of when the rows of a table are those of the Site DB; NULL: not known.
CREATE FUNCTION twinlog.fresh_as_of(relation regclass) RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_and(f.as_of IS NOT NULL) THEN min(f.as_of) END FROM (
        SELECT CASE
                -- It is not read to its end, or read again since the log did not carry everything.
                WHEN t.state IN ('new', 'copying') OR t.state = 'resyncing' AND t.command_id IS NULL THEN NULL
                -- Verified since it was read, and different.
                WHEN p.missing + p.extra + p.different > 0 AND (t.finished_at IS NULL OR t.finished_at < p.verified_at) THEN least(p.proved_at, a.as_of)
                -- (least() passes over NULL: no row is parked.)
                ELSE least(a.as_of, CASE WHEN a.as_of IS NOT NULL THEN
                    (SELECT min(f.parked_at) FROM twinlog.failed_rows f
                      WHERE f.slot = t.slot AND f.schema_name = t.schema_name AND f.table_name = t.table_name) END)
            END AS as_of
          FROM twinlog.tables t
          JOIN pg_class c ON c.relname = t.table_name
          JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schema_name
          CROSS JOIN LATERAL (SELECT CASE t.state WHEN 'held' THEN t.held_as_of ELSE twinlog.applied_as_of(t.slot) END) AS a (as_of)
          LEFT JOIN twinlog.proofs p ON p.slot = t.slot AND p.schema_name = t.schema_name AND p.table_name = t.table_name
         WHERE c.oid = fresh_as_of.relation) AS f
$$;

-- Waits until what was committed in the Site DB up to a position is applied: true; false: not within the time. The slot has to be
-- named where several write this database.
CREATE FUNCTION twinlog.wait_for(lsn pg_lsn, timeout interval DEFAULT '30 seconds', slot text DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waits_until constant timestamptz := clock_timestamp() + wait_for.timeout;
    waits_at text := wait_for.slot;
    pause double precision := 0.002;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'twinlog.wait_for() waits in vain: this transaction does not see what is committed meanwhile'
            USING ERRCODE = 'active_sql_transaction', HINT = 'call it before BEGIN, or in a transaction that is READ COMMITTED';
    END IF;
    IF waits_at IS NULL THEN
        SELECT min(c.slot) INTO waits_at FROM twinlog.checkpoint c HAVING count(*) = 1;
        IF waits_at IS NULL AND (SELECT count(*) > 1 FROM twinlog.checkpoint) THEN
            RAISE EXCEPTION 'several slots are applied in this database'
                USING ERRCODE = 'ambiguous_parameter', HINT = 'name one (sync.slot) as the third argument';
        END IF;
    END IF;
    LOOP
        IF EXISTS (SELECT FROM twinlog.checkpoint c WHERE (waits_at IS NULL OR c.slot = waits_at) AND c.end_lsn >= wait_for.lsn)
            -- Where nothing is to be applied the daemon's report says how far it is, each second.
            OR EXISTS (SELECT FROM twinlog.daemon d WHERE d.slot = waits_at
                AND d.reported_at > clock_timestamp() - interval '10 seconds' AND (d.report ->> 'durable_lsn')::pg_lsn >= wait_for.lsn)
        THEN
            RETURN true;
        END IF;
        IF clock_timestamp() >= waits_until THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(least(pause, extract(epoch FROM waits_until - clock_timestamp())));
        pause := least(pause * 1.5, 0.1);
    END LOOP;
END $$;
