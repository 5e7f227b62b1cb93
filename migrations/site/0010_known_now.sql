-- Whether somebody is known by one of these ids, as of now: a volatile function sees what was committed since its statement
-- began. The statement that stores what clients submit calls it when it has locked the person, before it makes a lead: the
-- person may have become known while it waited. `after` is the number of keys that it locked, so that it locks them first.
CREATE FUNCTION twinlog.is_known(of_user_id text, of_wa_id text, of_other_form text, after bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM public.leads l WHERE l.user_id = of_user_id)
        OR EXISTS (SELECT FROM public.leads l WHERE l.wa_id IN (of_wa_id, of_other_form))
        OR EXISTS (SELECT FROM public.lead_ids k WHERE k.known_id IN (of_user_id, of_wa_id, of_other_form))
        OR EXISTS (SELECT FROM public.leads l
                    WHERE l.phone IN (of_wa_id, '+' || of_wa_id, of_other_form, '+' || of_other_form)
                      AND l.merged_into IS NULL);
END $$;
