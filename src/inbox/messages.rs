//! Stores a message: a user's, one that we wrote in the phone's app, or one from before the number joined the API.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::event::{Direction, Message, ReportedStatus, credible};
use crate::site_db::conversations::{Link, Touch, link, link_group, of_lead};
use crate::site_db::leads::{self, Source};
use crate::site_db::messages::{self, Medium, NewSaid, News, Repeated, ReportedStep, Said};
use crate::site_db::status_events::adopt_orphans;
use crate::site_db::{MessageStatus, SiteError, Transaction, early_media};

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

/// A message that a user wrote to us, as far as its row changes if it is stored already.
pub(super) fn repeated<'a>(new: &NewSaid<'a>) -> Repeated<'a> {
    Repeated {
        account_id: new.account_id,
        wamid: new.said.wamid,
        received_at: new.created_at,
    }
}

/// What a user's message does to its conversation, if it is news.
pub(super) fn touch_of(message: &Message) -> Touch {
    Touch {
        direction: Direction::Inbound,
        at: message.at,
        unread: !message.is_about_another(),
        takes_over: None,
    }
}

/// What storing a message does beside its own row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept<'a> {
    /// What it counts as, if it is news.
    pub(super) counted: Option<Counted>,
    /// What it does to its conversation, which is written last (see the order of the locks in `batch`).
    pub(super) touch: Option<(Uuid, Touch)>,
    /// The advertisement that a lead came from, written late for the same reason.
    pub(super) referral: Option<(Uuid, &'a Value)>,
}

/// Stores a message that a user wrote to us.
pub(super) async fn inbound<'a>(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &'a Message,
    received_at: OffsetDateTime,
) -> Result<Kept<'a>, SiteError> {
    let speaker = match &message.change {
        Some(change) => {
            let at = credible(change.at, received_at).unwrap_or(received_at);
            Some(leads::changed(tx, change, at).await?)
        }
        None if message.contact.is_known() => Some(leads::find_or_make(tx, &message.contact, Source::WhatsApp).await?),
        None => None,
    };
    let link = match (&message.group, speaker) {
        // A group's messages belong to the group's conversation; the speaker still becomes a lead.
        (Some(group), _) => link_group(tx, account_id, group).await?,
        (None, Some(speaker)) => of_lead(tx, account_id, speaker).await?,
        (None, None) => return Err(SiteError::Anonymous),
    };
    let new = received(account_id, link, message, received_at);
    if store(tx, new).await?.is_none() {
        messages::received_before(tx, &[repeated(&new)]).await?;
        return Ok(Kept::default());
    }
    if message.is_notice() {
        // Not the user's words: it opens no window, and there is nothing to read.
        return Ok(Kept {
            counted: Some(Counted::INBOUND),
            ..Kept::default()
        });
    }
    Ok(Kept {
        referral: speaker.zip(message.referral.as_ref()),
        counted: Some(Counted::INBOUND),
        touch: Some((link.conversation_id, touch_of(message))),
    })
}

/// Where a message belongs that we wrote, or one of the history: to its group, else to its user. `None`: it names neither.
async fn place(tx: &mut Transaction<'_>, account_id: Uuid, message: &Message) -> Result<Option<Link>, SiteError> {
    Ok(match &message.group {
        Some(group) => Some(link_group(tx, account_id, group).await?),
        None if message.contact.is_known() => Some(link(tx, account_id, &message.contact).await?),
        None => None,
    })
}

/// Stores a message that we wrote in the app on the phone. It is sent already; the outbox must never send it. It keeps programs
/// out of its conversation for `takeover`.
pub(super) async fn echo(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    received_at: OffsetDateTime,
    takeover: Duration,
) -> Result<Kept<'static>, SiteError> {
    let link = place(tx, account_id, message).await?.ok_or(SiteError::Anonymous)?;
    let new = said(account_id, link, Direction::Outbound, received_at, message);
    let Some(message_id) = store(tx, new).await? else {
        return Ok(Kept::default());
    };
    let at = credible(message.at, received_at).unwrap_or(received_at);
    let sent = [ReportedStep::of(&ReportedStatus::Sent, at, None)];
    let shown = messages::apply_steps(tx, message_id, &message.wamid, &sent, News::Told).await?;
    let adopted = adopt_orphans(tx, message_id, &message.wamid).await?;
    let touch = Touch {
        direction: Direction::Outbound,
        at: Some(at),
        unread: false,
        takes_over: Some(takeover),
    };
    Ok(Kept {
        counted: adopted.or(shown).map(Counted::outbound),
        touch: Some((link.conversation_id, touch)),
        referral: None,
    })
}

/// Stores a message from before the number joined the API, without a notification. A medium takes the place of the message that
/// stands for it, which came before or comes later.
pub(super) async fn history(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    message: &Message,
    direction: Direction,
    status: Option<&ReportedStatus>,
    received_at: OffsetDateTime,
) -> Result<Kept<'static>, SiteError> {
    if message.kind != PLACEHOLDER && messages::replace_placeholder(tx, &medium(account_id, message)).await? {
        return Ok(Kept::default());
    }
    let Some(link) = place(tx, account_id, message).await? else {
        early_media::keep(tx, &medium(account_id, message)).await?;
        return Ok(Kept::default());
    };
    let at = credible(message.at, received_at).unwrap_or(received_at);
    let Some(message_id) = store(tx, said(account_id, link, direction, at, message)).await? else {
        return Ok(Kept::default());
    };
    if message.kind == PLACEHOLDER
        && let Some(early) = early_media::take(tx, account_id, &message.wamid).await?
    {
        let medium = Medium {
            account_id,
            wamid: &message.wamid,
            kind: &early.kind,
            text: early.body.as_deref(),
            payload: &early.payload,
        };
        messages::replace_placeholder(tx, &medium).await?;
    }
    if direction == Direction::Outbound {
        let step = [ReportedStep::of(status.unwrap_or(&ReportedStatus::Sent), at, None)];
        messages::apply_steps(tx, message_id, &message.wamid, &step, News::Silent).await?;
        adopt_orphans(tx, message_id, &message.wamid).await?;
    }
    let touch = Touch {
        direction,
        at: Some(at),
        unread: false,
        takes_over: None,
    };
    Ok(Kept {
        counted: None,
        touch: Some((link.conversation_id, touch)),
        referral: None,
    })
}

/// Meta's type of a message of the history whose medium comes with an event of its own.
const PLACEHOLDER: &str = "media_placeholder";

fn medium(account_id: Uuid, message: &Message) -> Medium<'_> {
    Medium {
        account_id,
        wamid: &message.wamid,
        kind: &message.kind,
        text: message.text.as_deref(),
        payload: &message.raw,
    }
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
