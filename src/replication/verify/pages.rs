//! One attempt to verify a table, page by page from where it stopped.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Verification;
use super::served::{Goes, Served};
use crate::agent_db::{Comparer, Comparison};
use crate::copy::{ChunkReader, CopyError, CopyPlace, ForeignRows, TableVerifier};
use crate::replication::error::SyncError;
use crate::shutdown;
use crate::source::{Source, SourceTable};

/// How often progress is stored while nothing is found.
const STORE_EVERY: Duration = Duration::from_millis(500);

/// Rows of a range whose digests are compared: some tens of milliseconds.
const RANGE_ROWS: u32 = 50_000;

impl Verification {
    /// Verifies a table's pages from where it stopped.
    pub(super) async fn verify_pages(
        &self,
        command: &mut Served<'_>,
        at: usize,
        table: &SourceTable,
        stop: &CancellationToken,
    ) -> Result<Goes, SyncError> {
        let Some(opened) = command.while_wanted(stop, Box::pin(self.open(table, stop))).await? else {
            return Ok(Goes::NoFurther);
        };
        let (source, agent) = opened?;
        let relation = self.requests.resolve(table.description()).await?;
        let of = identity(&agent, table).await?;
        if command
            .table(at)
            .is_some_and(|shown| shown.of.as_ref().is_some_and(|before| *before != of))
        {
            command.begin_anew(at);
        }
        let reader = ChunkReader {
            chunks: &self.chunks,
            source: &source,
            table,
            relation: &relation,
            foreign_rows: if self.shared.is_shared(&table.table) {
                ForeignRows::Keep
            } else {
                ForeignRows::Delete
            },
        };
        let (repair, rate) = (command.verify.arguments.repair, command.verify.arguments.rate);
        // A page takes no more than a second at the rate that is asked for, so that it can be given up.
        let at_most = |rows: u32| rows.min(rate.unwrap_or(rows)).max(1);
        let (limit, range) = (at_most(self.settings.copies.chunk_rows), at_most(RANGE_ROWS));
        let verifier = TableVerifier::new(reader, &agent, limit, range).await?;
        let Some(shown) = command.table(at) else {
            return Ok(Goes::On);
        };
        shown.of = Some(of.clone());
        shown.estimated = Some(table.estimated_rows).filter(|&rows| rows >= 0);
        let (phase, last_key) = shown.place();
        let mut next = Some(CopyPlace { phase, last_key });
        while let Some(place) = next {
            let began = Instant::now();
            let Some(page) = command.while_wanted(stop, Box::pin(verifier.page(&place))).await? else {
                return Ok(Goes::NoFurther);
            };
            let page = page?;
            if command.add(at, &page.differences).await? == Goes::NoFurther {
                return Ok(Goes::NoFurther);
            }
            let mut left = Comparison::default();
            if repair && !page.differences.is_empty() {
                let repaired = verifier.repair(&page.differences);
                let Some(repaired) = command.while_wanted(stop, Box::pin(repaired)).await? else {
                    return Ok(Goes::NoFurther);
                };
                left = repaired?;
            }
            command.repaired(at, &left);
            next = page.next;
            let Some(shown) = command.table(at) else {
                return Ok(Goes::On);
            };
            shown.rows += page.rows;
            shown.parked += page.parked;
            if let Some(place) = &next {
                shown.set_place(place.phase, place.last_key.as_ref());
            }
            let is_due = !page.differences.is_empty() || command.stored.elapsed() >= STORE_EVERY;
            if is_due && command.store().await? == Goes::NoFurther {
                return Ok(Goes::NoFurther);
            }
            if !shutdown::sleep(pause(page.read, rate, began.elapsed()), stop).await {
                return Ok(Goes::NoFurther);
            }
        }
        let Some(settled) = command.while_wanted(stop, Box::pin(verifier.settle())).await? else {
            return Ok(Goes::NoFurther);
        };
        settled?;
        if identity(&agent, table).await? != of {
            // What was compared is not the table that has the name now.
            return Err(CopyError::RelationChanged(table.table.clone()).into());
        }
        Ok(Goes::On)
    }

    /// Sessions with both databases, once the Site DB shows what the stream has passed.
    async fn open(&self, table: &SourceTable, stop: &CancellationToken) -> Result<(Source, Comparer), SyncError> {
        let source = Source::connect(&self.settings.site, "twinlog verify").await?;
        let who = format!("the verification of {}", table.table);
        let on_wait = &|wait| self.status.set_wait(&who, wait);
        self.visibility.wait(source.client(), stop, on_wait).await?;
        let agent = Comparer::connect(&self.settings.agent, &table.description()).await?;
        Ok((source, agent))
    }
}

/// What the table is in both databases.
async fn identity(agent: &Comparer, table: &SourceTable) -> Result<String, SyncError> {
    Ok(agent.identity(&format!("{:?}", table.shape())).await?)
}

/// How long to wait after a page so that no more rows are read than asked for.
fn pause(rows: u64, rate: Option<u32>, took: Duration) -> Duration {
    let Some(rate) = rate.filter(|&rate| rate > 0) else {
        return Duration::ZERO;
    };
    Duration::from_secs_f64(rows as f64 / f64::from(rate)).saturating_sub(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_as_long_as_its_rate_says() {
        let took = Duration::from_millis(200);
        for (rows, rate, expected) in [
            (1000, None, 0),
            (1000, Some(1000), 800),
            (100, Some(1000), 0),
            (1000, Some(0), 0),
        ] {
            assert_eq!(pause(rows, rate, took), Duration::from_millis(expected));
        }
    }
}
