//! One exchange with the Site DB, beside the deliveries: records what became of webhooks, then loads the next ones.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::prepared::prepare;
use super::queue::Entry;
use crate::failpoint;
use crate::provider::cloud::handed_on::{HandedOn, Selection};
use crate::site_db::deliveries::{self, Failed, Key, Waiting, Window};
use crate::site_db::{Pool, SiteError};

/// Most webhooks that are loaded at a time, and bytes.
const LOAD: (u16, u32) = (200, 2 << 20);
/// How long an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What became of webhooks and is not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    /// Delivered or not wanted.
    pub(super) done: Vec<Key>,
    /// Refused or given up.
    pub(super) failed: Vec<Failed>,
}

/// What is to be exchanged.
pub(super) struct Exchange {
    pub(super) pool: Pool,
    pub(super) subscriber: String,
    pub(super) selection: Selection,
    pub(super) unrecorded: Unrecorded,
    /// The newest part of what waits, if it is to be looked at.
    pub(super) newest: Option<Window>,
    /// Another part, which may hold what came late.
    pub(super) sweep: Option<Window>,
    /// Webhooks whose bodies are to be read again.
    pub(super) lacking: Vec<Key>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// What could not be recorded.
    pub(super) unrecorded: Unrecorded,
    /// What was loaded.
    pub(super) loaded: Result<Loaded, SiteError>,
}

/// A webhook, and what of it is for the subscriber.
pub(super) type Prepared<T> = (T, Outcome);

/// What of a webhook is for the subscriber.
#[derive(Debug)]
pub(super) enum Outcome {
    /// This.
    Wanted(HandedOn),
    /// Nothing.
    Unwanted,
    /// It was deleted.
    Lost,
}

/// What was loaded.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// From the newest part.
    pub(super) newest: Vec<Prepared<Waiting>>,
    /// From the part that was swept, and up to where, if nothing was there.
    pub(super) swept: Vec<Prepared<Waiting>>,
    /// See [`swept`](Self::swept).
    pub(super) swept_until: Option<Key>,
    /// Those whose bodies were read again.
    pub(super) again: Vec<Prepared<Key>>,
}

impl Unrecorded {
    pub(super) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.failed.is_empty()
    }

    /// Adds what was not recorded, which is older.
    pub(super) fn put_back(&mut self, mut older: Self) {
        older.done.append(&mut self.done);
        older.failed.append(&mut self.failed);
        *self = older;
    }

    /// Records all of it.
    pub(super) async fn record(&mut self, pool: &Pool, subscriber: &str) -> Result<(), SiteError> {
        if !self.done.is_empty() {
            failpoint::reach(failpoint::name::DELIVERY_BEFORE_RECORD);
            deliveries::done(pool, subscriber, &self.done).await?;
            self.done.clear();
        }
        if !self.failed.is_empty() {
            deliveries::failed(pool, subscriber, &self.failed).await?;
            self.failed.clear();
        }
        Ok(())
    }
}

impl Exchange {
    pub(super) async fn run(mut self) -> Exchanged {
        let mut unrecorded = std::mem::take(&mut self.unrecorded);
        let exchanged = timeout(TIMEOUT, self.exchange(&mut unrecorded)).await;
        Exchanged {
            loaded: exchanged.unwrap_or_else(|_| Err(SiteError::timed_out())),
            unrecorded,
        }
    }

    async fn exchange(&self, unrecorded: &mut Unrecorded) -> Result<Loaded, SiteError> {
        // Before the look: otherwise it would find what is done.
        unrecorded.record(&self.pool, &self.subscriber).await?;
        let mut loaded = Loaded {
            again: self.read_again().await?,
            ..Loaded::default()
        };
        if let Some(window) = &self.newest {
            loaded.newest = self.load(window).await?;
        }
        if let Some(window) = &self.sweep {
            loaded.swept = self.load(window).await?;
            loaded.swept_until = window.until.filter(|_| loaded.swept.is_empty());
        }
        Ok(loaded)
    }

    async fn load(&self, window: &Window) -> Result<Vec<Prepared<Waiting>>, SiteError> {
        let (limit, bytes) = LOAD;
        let found = deliveries::waiting(&self.pool, &self.subscriber, window, limit, bytes).await?;
        let with_bodies = found.into_iter().map(|mut row| {
            let body = row.body.take().map(Bytes::from);
            (row, body)
        });
        self.prepare(with_bodies.collect()).await
    }

    async fn read_again(&self) -> Result<Vec<Prepared<Key>>, SiteError> {
        if self.lacking.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = self.lacking.iter().map(|key| key.webhook_id).collect();
        let mut found: HashMap<_, _> = deliveries::bodies(&self.pool, &ids).await?.into_iter().collect();
        let with_bodies = self
            .lacking
            .iter()
            .map(|key| (*key, found.remove(&key.webhook_id).map(Bytes::from)));
        self.prepare(with_bodies.collect()).await
    }

    async fn prepare<T>(&self, rows: Vec<(T, Option<Bytes>)>) -> Result<Vec<Prepared<T>>, SiteError> {
        let bodies = rows.iter().filter_map(|(_, body)| body.clone()).collect();
        let mut prepared = prepare(&self.pool, &self.selection, bodies).await?.into_iter();
        let outcome = |body: Option<Bytes>| match body.and_then(|_| prepared.next()) {
            Some(Some(handed_on)) => Outcome::Wanted(handed_on),
            Some(None) => Outcome::Unwanted,
            None => Outcome::Lost,
        };
        let (rows, bodies): (Vec<T>, Vec<_>) = rows.into_iter().unzip();
        Ok(rows.into_iter().zip(bodies.into_iter().map(outcome)).collect())
    }
}

/// A webhook that was loaded at `now`, to be queued.
pub(super) fn entry(row: &Waiting, now: Instant, give_up_after: Duration, handed_on: HandedOn) -> Entry {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Entry {
        about: handed_on.about,
        body: Some(handed_on.body),
        attempts: u32::try_from(row.attempts).unwrap_or(0),
        due: now + seconds(row.wait_seconds),
        until: now + give_up_after.saturating_sub(seconds(row.waited_seconds)),
        is_blocked: false,
        under_way: false,
    }
}
