-- twinlog.fresh_as_of() and twinlog.wait_for() claim nothing that is not known.

-- As of when the table's rows were those of the Site DB before the row was parked; NULL: not known.
ALTER TABLE twinlog.failed_rows ADD COLUMN parked_as_of timestamptz;

-- As of when everything of a slot is applied, by the Site DB's clock: the last transaction that was applied, or the last time as
-- of which the daemon has seen that nothing else was to be applied.
CREATE OR REPLACE FUNCTION twinlog.applied_as_of(slot text) RETURNS timestamptz LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT greatest(c.source_commit_at, to_timestamp((d.report ->> 'settled_at_micros')::double precision / 1000000))
      FROM twinlog.checkpoint c LEFT JOIN twinlog.daemon d ON d.slot = c.slot
     WHERE c.slot = applied_as_of.slot AND c.gap_reason IS NULL
$$;

-- As of when the rows of a table are those of the Site DB, by the Site DB's clock; NULL: not known.
CREATE OR REPLACE FUNCTION twinlog.fresh_as_of(relation regclass) RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
    WITH t AS (
        SELECT t.* FROM twinlog.tables t
          JOIN pg_class c ON c.relname = t.table_name
          JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schema_name
         WHERE c.oid = fresh_as_of.relation)
    -- Where several slots write the table, or several of these say something, the least; NULL if one does not know.
    SELECT CASE WHEN bool_and(f.as_of IS NOT NULL) THEN min(f.as_of) END FROM (
        -- While it is read, for whatever reason, its rows are those of no time.
        SELECT CASE t.state WHEN 'held' THEN t.held_as_of WHEN 'streaming' THEN twinlog.applied_as_of(t.slot) END AS as_of FROM t
        UNION ALL
        -- Verified, different, and not read again as a whole since.
        SELECT p.proved_at FROM t
          JOIN twinlog.proofs p ON p.slot = t.slot AND p.schema_name = t.schema_name AND p.table_name = t.table_name
         WHERE p.missing + p.extra + p.different > 0
           AND (t.started_at > p.verified_at AND t.finished_at > p.verified_at) IS NOT TRUE
        UNION ALL
        SELECT f.parked_as_of FROM t
          JOIN twinlog.failed_rows f ON f.slot = t.slot AND f.schema_name = t.schema_name AND f.table_name = t.table_name) AS f
$$;

-- As before; but where rows may be missing (a gap) nothing has come for certain.
CREATE OR REPLACE FUNCTION twinlog.wait_for(lsn pg_lsn, timeout interval DEFAULT '30 seconds', slot text DEFAULT NULL) RETURNS boolean
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
        IF EXISTS (SELECT FROM twinlog.checkpoint c LEFT JOIN twinlog.daemon d ON d.slot = c.slot
            WHERE (waits_at IS NULL OR c.slot = waits_at) AND c.gap_reason IS NULL
              AND (c.end_lsn >= wait_for.lsn
                -- Where nothing is to be applied the daemon's report says how far it is, each second.
                OR d.reported_at > clock_timestamp() - interval '10 seconds' AND (d.report ->> 'durable_lsn')::pg_lsn >= wait_for.lsn))
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
