//! Replies to requests that wait for a commit.

use tokio::sync::oneshot;

use crate::replication::tables::life::TransitionError;

/// A reply that is sent with the next commit.
pub(super) enum Unanswered {
    /// A table's event is stored.
    Table(oneshot::Sender<Result<(), TransitionError>>),
    /// What was asked is stored.
    Done(oneshot::Sender<()>),
    /// Whether the gap was cleared.
    Gap(oneshot::Sender<bool>, bool),
}

impl Unanswered {
    /// Sends it. The receiver may have been stopped with the run.
    pub(super) fn send(self) {
        match self {
            Self::Table(reply) => drop(reply.send(Ok(()))),
            Self::Done(reply) => drop(reply.send(())),
            Self::Gap(reply, cleared) => drop(reply.send(cleared)),
        }
    }
}
