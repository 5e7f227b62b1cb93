-- Persons whose ids change, and leads that turn out to be one person.

-- Set once the lead is found to be the same person as an older one: that one has its messages, conversations and ids now.
-- The row stays, for the keys of other programs that refer to it.
ALTER TABLE public.leads ADD COLUMN merged_into uuid REFERENCES public.leads (id);
ALTER TABLE public.leads DROP CONSTRAINT leads_known;
ALTER TABLE public.leads ADD CONSTRAINT leads_known
    CHECK (merged_into IS NOT NULL OR wa_id IS NOT NULL OR phone IS NOT NULL OR user_id IS NOT NULL);
CREATE INDEX leads_merged_into ON public.leads (merged_into) WHERE merged_into IS NOT NULL;

-- Set on a merged lead's conversation whose messages moved into this one, with the same number of ours.
ALTER TABLE public.conversations ADD COLUMN merged_into uuid REFERENCES public.conversations (id);
CREATE INDEX conversations_lead ON public.conversations (lead_id);

-- Ids of leads beside those in leads.wa_id and leads.user_id: former ones, so that a late event finds its lead, and what
-- WhatsApp said about an id and when.
CREATE TABLE public.lead_ids (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    lead_id     uuid        NOT NULL REFERENCES public.leads (id),
    kind        text        NOT NULL CHECK (kind IN ('wa_id', 'user_id')),
    known_id    text        NOT NULL UNIQUE,
    -- The latest time, by WhatsApp's clock, for which WhatsApp said that the person has this id, or has another one instead.
    current_at  timestamptz,
    replaced_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lead_ids_lead ON public.lead_ids (lead_id);

-- Each merge of two leads, with all that is needed to undo it: SELECT twinlog.undo_lead_merge(id).
CREATE TABLE public.lead_merges (
    id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    kept_lead_id   uuid        NOT NULL REFERENCES public.leads (id),
    merged_lead_id uuid        NOT NULL REFERENCES public.leads (id),
    -- Both rows of leads as they were.
    kept           jsonb       NOT NULL,
    merged         jsonb       NOT NULL,
    -- The merged lead's rows of lead_ids, by known_id.
    known_ids      jsonb       NOT NULL DEFAULT '[]',
    -- [{"conversation": id, "into": id or null, "messages": [id, …], "notifications": [id, …]}, …]
    moved          jsonb       NOT NULL DEFAULT '[]',
    created_at     timestamptz NOT NULL DEFAULT now(),
    undone_at      timestamptz
);
CREATE INDEX lead_merges_kept ON public.lead_merges (kept_lead_id);
CREATE INDEX lead_merges_merged ON public.lead_merges (merged_lead_id);

-- Undoes a merge: what was the merged lead's then is its own again. What came later stays with the kept lead.
CREATE FUNCTION twinlog.undo_lead_merge(merge_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    merge public.lead_merges;
    part  jsonb;
BEGIN
    SELECT * INTO merge FROM public.lead_merges m WHERE m.id = merge_id AND m.undone_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no merge % that is not undone yet', merge_id;
    END IF;
    PERFORM FROM public.leads l WHERE l.id IN (merge.kept_lead_id, merge.merged_lead_id) ORDER BY l.id FOR UPDATE;
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
        UPDATE public.conversations c SET lead_id = merge.merged_lead_id, merged_into = NULL, updated_at = now()
         WHERE c.id = (part->>'conversation')::uuid;
        UPDATE public.whatsapp_messages m
           SET lead_id = merge.merged_lead_id, conversation_id = (part->>'conversation')::uuid, updated_at = now()
         WHERE m.id IN (SELECT value::uuid FROM jsonb_array_elements_text(part->'messages'));
        UPDATE public.notifications n SET conversation_id = (part->>'conversation')::uuid
         WHERE n.id IN (SELECT value::uuid FROM jsonb_array_elements_text(part->'notifications'));
    END LOOP;
    UPDATE public.lead_merges m SET undone_at = now() WHERE m.id = merge_id;
END $$;

-- What is known of a person's ids and must still be written to the leads, because two leads may have to be merged. Not
-- replicated: work to do, not a fact about the business.
CREATE TABLE twinlog.lead_statements (
    id               uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    -- The lead that the ids belong to, if it is known by a message; then the number that the message was sent to.
    lead_id          uuid,
    dialled          text,
    previous_wa_id   text,
    previous_user_id text,
    current_wa_id    text,
    current_user_id  text,
    other_wa_id      text,
    other_user_id    text,
    -- When WhatsApp says that the ids changed; NULL: seen together.
    told_at          timestamptz,
    attempts         integer     NOT NULL DEFAULT 0,
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),
    created_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lead_statements_due ON twinlog.lead_statements (next_attempt_at);

-- Media of the history that came before the placeholder of their message, and without saying whose it is.
CREATE TABLE twinlog.early_media (
    account_id uuid        NOT NULL,
    wamid      text        NOT NULL,
    type       text        NOT NULL,
    body       text,
    payload    jsonb       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, wamid)
);
