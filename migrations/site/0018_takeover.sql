-- A person has taken a conversation over: programs whose API token says automation = true send nothing into it until then. Set in the
-- transaction that stores the person's message, and read in the one that would store a program's. People may change both.
ALTER TABLE public.conversations
    ADD COLUMN automation_paused_until timestamptz,
    ADD COLUMN automation_paused_by text;
