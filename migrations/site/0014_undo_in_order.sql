-- Undoes a merge (0004) as before, but locks rows in the order in which the server does: leads, their ids, messages, conversations.
-- With a conversation first, it and a report about one of its messages waited for each other in a circle.
--
-- And what came after the merge, in a conversation that goes back to the merged lead, stays with the kept lead, in a new
-- conversation: the lead of a message is the lead of its conversation.
CREATE OR REPLACE FUNCTION twinlog.undo_lead_merge(merge_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    merge public.lead_merges;
    part  jsonb;
    going uuid[];
    moved uuid[];
    going_back uuid;
    own   uuid;
BEGIN
    SELECT * INTO merge FROM public.lead_merges m WHERE m.id = merge_id;
    PERFORM FROM public.leads l WHERE l.id IN (merge.kept_lead_id, merge.merged_lead_id) ORDER BY l.id FOR UPDATE;
    -- Somebody else may have undone it meanwhile.
    SELECT * INTO merge FROM public.lead_merges m WHERE m.id = merge_id AND m.undone_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no merge % that is not undone yet', merge_id;
    END IF;
    IF EXISTS (SELECT FROM public.leads l WHERE l.id = merge.kept_lead_id AND l.merged_into IS NOT NULL) THEN
        RAISE EXCEPTION 'the lead % of this merge was merged into another one later', merge.kept_lead_id
            USING HINT = 'Undo that merge first.';
    END IF;
    PERFORM FROM public.lead_ids i WHERE i.lead_id = merge.kept_lead_id ORDER BY i.known_id FOR UPDATE;
    going := ARRAY(SELECT (p->>'conversation')::uuid FROM jsonb_array_elements(merge.moved) AS p);
    moved := ARRAY(SELECT id::uuid FROM jsonb_array_elements(merge.moved) AS p, jsonb_array_elements_text(p->'messages') AS id);
    PERFORM FROM public.whatsapp_messages m WHERE m.id = ANY (moved) OR m.conversation_id = ANY (going)
      ORDER BY m.id FOR NO KEY UPDATE;
    -- As the server locks conversations, instead of their rows.
    PERFORM pg_advisory_xact_lock(key)
       FROM (SELECT DISTINCT hashtextextended('conversations:' || id, 0) AS key FROM unnest(going) AS id ORDER BY key) AS keys;

    DELETE FROM public.lead_ids i WHERE i.lead_id = merge.kept_lead_id AND NOT merge.known_ids ? i.known_id
        AND i.known_id IN (merge.merged->>'wa_id', merge.merged->>'user_id')
        AND i.current_at IS NULL AND i.replaced_at IS NULL;
    UPDATE public.lead_ids i SET lead_id = merge.merged_lead_id
     WHERE i.lead_id = merge.kept_lead_id AND merge.known_ids ? i.known_id;
    UPDATE public.leads l SET
        wa_id   = CASE WHEN l.wa_id = merge.merged->>'wa_id' THEN merge.kept->>'wa_id' ELSE l.wa_id END,
        user_id = CASE WHEN l.user_id = merge.merged->>'user_id' THEN merge.kept->>'user_id' ELSE l.user_id END,
        phone = merge.kept->>'phone', name = merge.kept->>'name', username = merge.kept->>'username',
        referral = nullif(merge.kept->'referral', 'null'), updated_at = now()
     WHERE l.id = merge.kept_lead_id;
    UPDATE public.leads l SET
        merged_into = NULL, wa_id = merge.merged->>'wa_id', user_id = merge.merged->>'user_id',
        phone = merge.merged->>'phone', updated_at = now()
     WHERE l.id = merge.merged_lead_id;

    FOR part IN SELECT * FROM jsonb_array_elements(merge.moved) LOOP
        going_back := (part->>'conversation')::uuid;
        UPDATE public.conversations c SET lead_id = merge.merged_lead_id, merged_into = NULL, updated_at = now()
         WHERE c.id = going_back;
        own := NULL;
        INSERT INTO public.conversations (account_id, lead_id, last_inbound_at, last_outbound_at, last_message_at, unread_count)
            SELECT c.account_id, merge.kept_lead_id, max(m.created_at) FILTER (WHERE m.direction = 'inbound'),
                   max(m.created_at) FILTER (WHERE m.direction = 'outbound'), max(m.created_at),
                   least(c.unread_count, count(*) FILTER (WHERE m.direction = 'inbound'))
              FROM public.conversations c JOIN public.whatsapp_messages m ON m.conversation_id = c.id AND m.id <> ALL (moved)
             WHERE c.id = going_back GROUP BY c.id
            RETURNING id INTO own;
        IF own IS NOT NULL THEN
            UPDATE public.conversations c SET unread_count = c.unread_count - o.unread_count
              FROM public.conversations o WHERE c.id = going_back AND o.id = own;
            UPDATE public.notifications n SET conversation_id = own FROM public.whatsapp_messages m
             WHERE m.id = n.message_id AND m.conversation_id = going_back AND m.id <> ALL (moved);
            UPDATE public.whatsapp_messages m SET conversation_id = own, updated_at = now()
             WHERE m.conversation_id = going_back AND m.id <> ALL (moved);
        END IF;
        UPDATE public.whatsapp_messages m
           SET lead_id = merge.merged_lead_id, conversation_id = going_back, updated_at = now()
         WHERE m.id IN (SELECT value::uuid FROM jsonb_array_elements_text(part->'messages'));
        UPDATE public.notifications n SET conversation_id = going_back
         WHERE n.id IN (SELECT value::uuid FROM jsonb_array_elements_text(part->'notifications'));
    END LOOP;
    UPDATE public.lead_merges m SET undone_at = now() WHERE m.id = merge_id;
END $$;
