//! Stores a message: a user's, one that we wrote in the phone's app, or one from before the number joined the API.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::event::{Direction, Message, ReportedStatus};
use crate::site_db::conversations::{self, Link, Touch, link, link_group};
use crate::site_db::messages::{self, News, Origin, ReportedStep, Said};
use crate::site_db::status_events::adopt_orphans;
use crate::site_db::{MessageStatus, SiteError, Transaction, leads, notifications};

/// For the metrics: a message that is new, or has a new status.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) direction: Direction,
    pub(super) status: MessageStatus,
}

impl Counted {
    pub(super) const fn outbound(status: MessageStatus) -> Self {
        Self {
            direction: Direction::Outbound,
            status,
        }
    }
}

/// Stores a message that a user wrote to us. `None`: it is stored already.
pub(super) async fn inbound(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
) -> Result<Option<Counted>, SiteError> {
    let (speaker, link) = match &message.group {
        // A group's messages belong to the group's conversation; the speaker still becomes a lead.
        Some(group) => (
            leads::find_or_make(tx, &message.contact).await?,
            link_group(tx, account_id, group).await?,
        ),
        None => {
            let link = link(tx, account_id, &message.contact).await?;
            (link.lead_id, link)
        }
    };
    let Some(message_id) = store(tx, account_id, link, Direction::Inbound, None, message).await? else {
        return Ok(None);
    };
    let counted = Counted {
        direction: Direction::Inbound,
        status: MessageStatus::Received,
    };
    if message.is_notice() {
        // Not the user's words: it opens no window, and there is nothing to read.
        if let Some(number) = &message.new_number {
            leads::change_number(tx, speaker, number).await?;
        }
        return Ok(Some(counted));
    }
    // A reaction, an edit or a removal is about a message that was announced already.
    let announced = !message.is_about_another();
    let touch = Touch {
        direction: Direction::Inbound,
        at: message.at,
        unread: announced,
    };
    conversations::touch(tx, link.conversation_id, touch).await?;
    if announced {
        notifications::inbound_message(tx, account_id, link.conversation_id, message_id).await?;
    }
    if let Some(referral) = &message.referral {
        leads::set_referral(tx, speaker, referral).await?;
    }
    Ok(Some(counted))
}

/// Stores a message that we wrote in the app on the phone. It is sent already; the outbox must never send it.
pub(super) async fn echo(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
) -> Result<Option<Counted>, SiteError> {
    let link = link(tx, account_id, &message.contact).await?;
    let Some(message_id) = store(tx, account_id, link, Direction::Outbound, None, message).await? else {
        return Ok(None);
    };
    let at = message.at.unwrap_or_else(OffsetDateTime::now_utc);
    let sent = [ReportedStep::of(&ReportedStatus::Sent, at, None)];
    let shown = messages::apply_steps(tx, message_id, &message.wamid, &sent, News::Told).await?;
    let adopted = adopt_orphans(tx, message_id, &message.wamid).await?;
    let touch = Touch {
        direction: Direction::Outbound,
        at: message.at,
        unread: false,
    };
    conversations::touch(tx, link.conversation_id, touch).await?;
    Ok(adopted.or(shown).map(Counted::outbound))
}

/// Stores a message from before the number joined the API, without a notification.
pub(super) async fn history(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    direction: Direction,
    status: Option<&ReportedStatus>,
) -> Result<(), SiteError> {
    let link = link(tx, account_id, &message.contact).await?;
    let Some(message_id) = store(tx, account_id, link, direction, message.at, message).await? else {
        return Ok(());
    };
    if direction == Direction::Outbound {
        let at = message.at.unwrap_or_else(OffsetDateTime::now_utc);
        let step = [ReportedStep::of(status.unwrap_or(&ReportedStatus::Sent), at, None)];
        messages::apply_steps(tx, message_id, &message.wamid, &step, News::Silent).await?;
        adopt_orphans(tx, message_id, &message.wamid).await?;
    }
    let touch = Touch {
        direction,
        at: message.at,
        unread: false,
    };
    conversations::touch(tx, link.conversation_id, touch).await
}

async fn store(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    link: Link,
    direction: Direction,
    created_at: Option<OffsetDateTime>,
    message: &Message,
) -> Result<Option<Uuid>, SiteError> {
    let contact = &message.contact;
    let origin = Origin {
        account_id,
        conversation_id: link.conversation_id,
        lead_id: link.lead_id,
        direction,
        created_at,
    };
    let said = Said {
        wamid: &message.wamid,
        kind: &message.kind,
        text: message.text.as_deref(),
        payload: &message.raw,
        recipient: (contact.wa_id.as_ref().map(|id| id.as_str())).or(contact.user_id.as_ref().map(|id| id.as_str())),
        context: message.context.as_ref(),
        at: message.at,
    };
    messages::insert_said(tx, &origin, &said).await
}
