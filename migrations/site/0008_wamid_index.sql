-- One index instead of two: it finds a wamid's messages as well, and a change of a status writes one entry less. (An index
-- that begins with the number looks as good as the primary key to a planner without statistics.)
DROP INDEX public.whatsapp_messages_by_wamid;
DROP INDEX public.whatsapp_messages_wamid;
-- One wamid may be met by two numbers of ours that write to each other: once out, once in.
CREATE UNIQUE INDEX whatsapp_messages_wamid ON public.whatsapp_messages (wamid, account_id, direction);
