//! Failpoints: the places where a test may kill or stall the process, one at each step after which something is durable.
//!
//! A failpoint is compiled only with the feature `failpoints`, which the tests switch on; a release build has none.
//! Set them through the environment (`FAILPOINTS="name=return(abort)"`), see the `fail` crate for the syntax.
//! The names are constants here, so that a test cannot misspell one.

/// The names of all failpoints; the comment says what is durable at that point.
pub mod name {
    /// The batch is written inside the open Agent transaction; nothing is committed.
    pub const AGENT_BEFORE_COMMIT: &str = "agent.before_commit";
    /// The Agent transaction is committed; the position has not been reported to the Site DB.
    pub const AGENT_AFTER_COMMIT: &str = "agent.after_commit";
    /// A failed row is in the open Agent transaction.
    pub const AGENT_AFTER_PARK: &str = "agent.after_park";
    /// A status update with the durable position is about to be sent to the Site DB.
    pub const FEEDBACK_BEFORE_SEND: &str = "feedback.before_send";
    /// The slot exists on the Site DB; the Agent DB holds no checkpoint yet.
    pub const SLOT_AFTER_CREATE: &str = "slot.after_create";
    /// The slot is dropped on the Site DB, as it kept too much; the Agent DB does not say so.
    pub const SLOT_AFTER_GIVE_UP: &str = "slot.after_give_up";
    /// A chunk was read; its closing fence is not written.
    pub const COPY_BEFORE_HIGH_FENCE: &str = "copy.before_high_fence";
    /// A chunk is merged in the open Agent transaction.
    pub const COPY_AFTER_MERGE: &str = "copy.after_merge";
    /// Parked keys were read again from the Site DB; nothing is healed yet.
    pub const HEAL_AFTER_READ: &str = "heal.after_read";
    /// Rows that differ were read again from the Site DB; nothing is repaired yet.
    pub const REPAIR_AFTER_READ: &str = "repair.after_read";
    /// Rows that differ are repaired and durable; the command does not say so yet.
    pub const REPAIR_AFTER_WRITE: &str = "repair.after_write";
    /// The message is committed `pending`; nothing was sent.
    pub const SEND_AFTER_PENDING: &str = "send.after_pending";
    /// The message is committed `sending`; the Graph API was not called.
    pub const SEND_AFTER_SENDING: &str = "send.after_sending";
    /// The Graph API answered; the answer is not committed.
    pub const SEND_BEFORE_OUTCOME: &str = "send.before_outcome";
    /// The outcome is committed; the client was not answered.
    pub const SEND_AFTER_OUTCOME: &str = "send.after_outcome";
    /// The raw webhook event is committed; Meta has no 200 yet.
    pub const WEBHOOK_AFTER_COMMIT: &str = "webhook.after_commit";
    /// A subscriber has taken a webhook; that is not recorded.
    pub const DELIVERY_BEFORE_RECORD: &str = "delivery.before_record";
    /// A webhook event's rows are written in the open transaction; nothing is committed.
    pub const INBOX_BEFORE_COMMIT: &str = "inbox.before_commit";
}

/// Lets a test act at this point: `return(abort)` aborts the process as `kill -9` would, `sleep`/`pause`/`panic` as in
/// the `fail` crate. Costs nothing without the feature.
#[inline]
pub fn reach(name: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |action| {
        if action.as_deref() == Some("abort") {
            std::process::abort();
        }
    });
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}
