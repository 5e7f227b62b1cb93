-- Merging (0004) finds the notifications of a conversation, and the conversations that were merged into it.
CREATE INDEX notifications_conversation ON public.notifications (conversation_id);
CREATE INDEX conversations_merged_into ON public.conversations (merged_into) WHERE merged_into IS NOT NULL;
