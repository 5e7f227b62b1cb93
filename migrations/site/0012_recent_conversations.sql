-- The list of conversations, the ones with the newest messages first, reads a page and not the table.
CREATE INDEX IF NOT EXISTS conversations_recent ON public.conversations (coalesce(last_message_at, created_at) DESC, id DESC)
    WHERE merged_into IS NULL;
