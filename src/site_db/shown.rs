//! Rows as people and their programs are shown them: one shape for pages and for events.
//!
//! The database makes the JSON, and it is passed on as it is: what is shown to ten thousand listeners is read once, and parsed by
//! none of us. Values that are NULL are left out; times are in UTC. Changes nothing.

/// A message; `m` is `whatsapp_messages`, `a` its `whatsapp_accounts`. `content` is Meta's object of a received message's type (a
/// medium's id, a place, a reaction…), where it says more than `body`.
pub(super) const MESSAGE: &str = "json_strip_nulls(json_build_object('id', m.id, 'conversation_id', m.conversation_id, \
     'lead_id', m.lead_id, 'phone_number_id', a.phone_number_id, 'direction', m.direction, 'status', m.status, 'type', m.type, \
     'body', m.body, 'content', CASE WHEN m.type <> 'text' THEN m.payload -> m.type END, 'wamid', m.wamid, 'to', m.recipient, \
     'reply_to', m.context_wamid, 'client_id', m.client_id, 'error', CASE WHEN m.error_code IS NOT NULL OR m.error_class IS NOT NULL \
       THEN json_build_object('code', m.error_code, 'class', m.error_class, 'message', m.error_message) END, \
     'created_at', m.created_at, 'provider_at', m.provider_at, 'sending_at', m.sending_at, 'accepted_at', m.accepted_at, \
     'held_at', m.held_at, 'sent_at', m.sent_at, 'delivered_at', m.delivered_at, 'read_at', m.read_at, 'played_at', m.played_at, \
     'failed_at', m.failed_at, 'unknown_at', m.unknown_at, 'cancelled_at', m.cancelled_at))::text";

/// A conversation with its lead; `c` is `conversations`, `a` and `l` its `whatsapp_accounts` and `leads`.
pub(super) const CONVERSATION: &str = "json_strip_nulls(json_build_object('id', c.id, 'phone_number_id', a.phone_number_id, \
     'lead_id', c.lead_id, 'lead', json_build_object('id', l.id, 'name', l.name, 'username', l.username, \
       'phone', coalesce(l.wa_id, l.phone), 'user_id', l.user_id), \
     'unread_count', c.unread_count, 'last_inbound_at', c.last_inbound_at, 'last_outbound_at', c.last_outbound_at, \
     'last_message_at', c.last_message_at, 'automation_paused_until', c.automation_paused_until, \
     'automation_paused_by', c.automation_paused_by, 'merged_into', c.merged_into, 'created_at', c.created_at, \
     'updated_at', c.updated_at))::text";

/// A lead; `l` is `leads`.
pub(super) const LEAD: &str = "json_strip_nulls(json_build_object('id', l.id, 'name', l.name, 'username', l.username, \
     'phone', coalesce(l.wa_id, l.phone), 'wa_id', l.wa_id, 'user_id', l.user_id, 'source', l.source, 'referral', l.referral, \
     'merged_into', l.merged_into, 'created_at', l.created_at, 'updated_at', l.updated_at))::text";
