//! What many callers share: one statement that stores their messages, one that reads them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::group_commit::Committer;
use crate::retry::Disposition;
use crate::site_db::messages::{self, MessageRow, StoreError, Submission, SubmitResult};
use crate::site_db::{Pool, SiteError};

/// How long a statement may take, with the wait for a connection, which ends earlier by itself; its callers wait for seconds at
/// most.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of a batch that meets deadlocks. Twinlog's own transactions lock in one order; another program's may not.
const DEADLOCK_TRIES: u32 = 3;
/// What a submission takes in memory beside its request, about.
const SUBMISSION_BYTES: usize = 1024;

/// Stores submissions.
#[derive(Debug)]
pub(super) struct SubmissionWriter {
    pub(super) pool: Pool,
}

impl Committer for SubmissionWriter {
    type Item = Arc<Submission>;
    type Done = SubmitResult;
    type Error = StoreError;

    fn bytes(submission: &Arc<Submission>) -> usize {
        SUBMISSION_BYTES + submission.request.len()
    }

    fn is_an_items_fault(error: &StoreError) -> bool {
        matches!(error, StoreError::NotStored(error) if error.disposition() == Disposition::Row)
    }

    async fn commit(&self, submissions: &[Arc<Submission>]) -> Result<Vec<SubmitResult>, StoreError> {
        let store = async {
            let mut tries = 1;
            loop {
                match messages::submit(&self.pool, submissions).await {
                    // Nothing was stored, and the other side of the circle has what it waited for.
                    Err(error) if error.cause().is_deadlock() && tries < DEADLOCK_TRIES => tries += 1,
                    result => return result,
                }
            }
        };
        // A statement was on its way by then.
        tokio::time::timeout(TIMEOUT, store)
            .await
            .unwrap_or_else(|_| Err(StoreError::of_commit(SiteError::timed_out())))
    }
}

/// Reads messages.
#[derive(Debug)]
pub(super) struct MessageReader {
    pub(super) pool: Pool,
}

impl Committer for MessageReader {
    type Item = Uuid;
    type Done = Option<MessageRow>;
    type Error = SiteError;

    fn bytes(_: &Uuid) -> usize {
        size_of::<Uuid>()
    }

    fn is_an_items_fault(_: &SiteError) -> bool {
        false
    }

    async fn commit(&self, ids: &[Uuid]) -> Result<Vec<Option<MessageRow>>, SiteError> {
        let found = tokio::time::timeout(TIMEOUT, messages::find_many(&self.pool, ids))
            .await
            .unwrap_or(Err(SiteError::timed_out()))?;
        let found: HashMap<Uuid, MessageRow> = found.into_iter().map(|message| (message.id, message)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }
}
