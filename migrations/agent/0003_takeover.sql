-- The Agent DB's copy of migrations/site/0018_takeover.sql.
ALTER TABLE public.conversations
    ADD COLUMN automation_paused_until timestamptz,
    ADD COLUMN automation_paused_by text;
