-- The Agent DB's copy of migrations/site/0004_identities.sql.

ALTER TABLE public.leads ADD COLUMN merged_into uuid;
ALTER TABLE public.conversations ADD COLUMN merged_into uuid;

CREATE TABLE public.lead_ids (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    lead_id     uuid        NOT NULL,
    kind        text        NOT NULL,
    known_id    text        NOT NULL,
    -- The latest time, by WhatsApp's clock, for which WhatsApp said that the person has this id, or has another one instead.
    current_at  timestamptz,
    replaced_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX lead_ids_known ON public.lead_ids (known_id);

CREATE TABLE public.lead_merges (
    id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    kept_lead_id   uuid        NOT NULL,
    merged_lead_id uuid        NOT NULL,
    kept           jsonb       NOT NULL,
    merged         jsonb       NOT NULL,
    known_ids      jsonb       NOT NULL DEFAULT '[]',
    moved          jsonb       NOT NULL DEFAULT '[]',
    created_at     timestamptz NOT NULL DEFAULT now(),
    undone_at      timestamptz
);
