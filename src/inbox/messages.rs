//! Stores a message: a user's, one that we wrote in the phone's app, or one from before the number joined the API.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::event::{Direction, Message, ReportedStatus};
use crate::site_db::conversations::{Link, Touch, link, link_group};
use crate::site_db::messages::{self, NewSaid, News, ReportedStep, Said};
use crate::site_db::status_events::adopt_orphans;
use crate::site_db::{MessageStatus, SiteError, Transaction, leads};

/// For the metrics: a message that is new, or has a new status.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) direction: Direction,
    pub(super) status: MessageStatus,
}

impl Counted {
    pub(super) const INBOUND: Self = Self {
        direction: Direction::Inbound,
        status: MessageStatus::Received,
    };

    pub(super) const fn outbound(status: MessageStatus) -> Self {
        Self {
            direction: Direction::Outbound,
            status,
        }
    }
}

/// A message that a user wrote to us, as a row. A notice and what is about another message are not announced: a reaction,
/// an edit or a removal is about a message that was announced already.
pub(super) fn received(account_id: Uuid, link: Link, message: &Message, received_at: OffsetDateTime) -> NewSaid<'_> {
    NewSaid {
        announced: !message.is_notice() && !message.is_about_another(),
        ..said(account_id, link, Direction::Inbound, received_at, message)
    }
}

/// What a user's message does to its conversation, if it is news.
pub(super) fn touch_of(message: &Message) -> Touch {
    Touch {
        direction: Direction::Inbound,
        at: message.at,
        unread: !message.is_about_another(),
    }
}

/// What storing a message does beside its own row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    /// What it counts as, if it is news.
    pub(super) counted: Option<Counted>,
    /// What it does to its conversation, which is written last (see the order of the locks in `batch`).
    pub(super) touch: Option<(Uuid, Touch)>,
}

/// Stores a message that a user wrote to us.
pub(super) async fn inbound(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    received_at: OffsetDateTime,
) -> Result<Kept, SiteError> {
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
    if store(tx, received(account_id, link, message, received_at))
        .await?
        .is_none()
    {
        return Ok(Kept::default());
    }
    if message.is_notice() {
        // Not the user's words: it opens no window, and there is nothing to read.
        if let Some(number) = &message.new_number {
            leads::change_number(tx, speaker, number).await?;
        }
        return Ok(Kept {
            counted: Some(Counted::INBOUND),
            touch: None,
        });
    }
    if let Some(referral) = &message.referral {
        leads::set_referrals(tx, &[(speaker, referral)]).await?;
    }
    Ok(Kept {
        counted: Some(Counted::INBOUND),
        touch: Some((link.conversation_id, touch_of(message))),
    })
}

/// Stores a message that we wrote in the app on the phone. It is sent already; the outbox must never send it.
pub(super) async fn echo(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    received_at: OffsetDateTime,
) -> Result<Kept, SiteError> {
    let link = link(tx, account_id, &message.contact).await?;
    let new = said(account_id, link, Direction::Outbound, received_at, message);
    let Some(message_id) = store(tx, new).await? else {
        return Ok(Kept::default());
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
    Ok(Kept {
        counted: adopted.or(shown).map(Counted::outbound),
        touch: Some((link.conversation_id, touch)),
    })
}

/// Stores a message from before the number joined the API, without a notification.
pub(super) async fn history(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    direction: Direction,
    status: Option<&ReportedStatus>,
    received_at: OffsetDateTime,
) -> Result<Kept, SiteError> {
    let link = link(tx, account_id, &message.contact).await?;
    let new = said(account_id, link, direction, message.at.unwrap_or(received_at), message);
    let Some(message_id) = store(tx, new).await? else {
        return Ok(Kept::default());
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
    Ok(Kept {
        counted: None,
        touch: Some((link.conversation_id, touch)),
    })
}

/// A message that is not announced, as a row.
fn said(
    account_id: Uuid,
    link: Link,
    direction: Direction,
    created_at: OffsetDateTime,
    message: &Message,
) -> NewSaid<'_> {
    let contact = &message.contact;
    NewSaid {
        account_id,
        conversation_id: link.conversation_id,
        lead_id: link.lead_id,
        direction,
        created_at,
        announced: false,
        said: Said {
            wamid: &message.wamid,
            kind: &message.kind,
            text: message.text.as_deref(),
            payload: &message.raw,
            recipient: (contact.wa_id.as_ref().map(|id| id.as_str()))
                .or(contact.user_id.as_ref().map(|id| id.as_str())),
            context: message.context.as_ref(),
            at: message.at,
        },
    }
}

async fn store(tx: &mut Transaction<'_>, new: NewSaid<'_>) -> Result<Option<Uuid>, SiteError> {
    Ok(messages::insert_said(tx, &[new]).await?.pop().flatten())
}
