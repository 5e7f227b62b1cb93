-- For writers of the Site DB: a position up to which everything that they have committed stands in the log. A reader of the Agent DB
-- waits for it (twinlog.wait_for there).
CREATE FUNCTION twinlog.written_lsn() RETURNS pg_lsn LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN pg_last_wal_replay_lsn();
    END IF;
    -- The commit will stand after any position of now.
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION 'twinlog.written_lsn() is called in a transaction that has written'
            USING ERRCODE = 'active_sql_transaction', HINT = 'call it after the COMMIT';
    END IF;
    RETURN pg_current_wal_insert_lsn();
END $$;
