//! Reads the rows of parked keys, of all tables whose rows may wait for each other: between one pair of fences and under
//! one snapshot, so that they are right together at one point of the log.

use std::sync::Arc;

use tracing::debug;

use super::chunk::{Chunk, Delivery, InvalidChunk, Merged, Purpose, RequestedKeys};
use super::counted;
use super::error::CopyError;
use super::merge::merge;
use super::reader::REREAD_WAIT;
use super::registry::ChunkRegistry;
use crate::change::{Change, Relation, RelationId};
use crate::failpoint;
use crate::retry::backoff;
use crate::source::{CountedRows, Fence, KeysOfTable, ParkedRows, Source};

/// Reads parked keys and has their rows written.
#[derive(Debug)]
pub struct ParkedReader<'a> {
    /// The registry through which chunks are passed to the stream.
    pub chunks: &'a ChunkRegistry,
    /// The connection to the Site DB.
    pub source: &'a Source,
}

impl ParkedReader<'_> {
    /// Reads the keys' present rows, and waits until what could be written of them is durable.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub async fn heal(&self, tables: &[KeysOfTable]) -> Result<(), CopyError> {
        let relations: Vec<RelationId> = tables.iter().map(|table| table.relation.id).collect();
        let mut attempt = 0;
        loop {
            let mut chunk = self.chunks.register(&relations);
            // If any of this fails, the chunk is dropped, and with it the stream's window.
            self.source.fence(Fence::Low(chunk.id)).await?;
            let rows = self.source.read_parked(tables).await?;
            failpoint::reach(failpoint::name::HEAL_AFTER_READ);
            self.chunks.deliver(chunk.id, delivery(tables, rows));
            self.source.fence(Fence::High(chunk.id)).await?;
            match (&mut chunk.outcome).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(InvalidChunk::RelationChanged)) => return Err(relation_changed(tables)),
                Ok(Err(invalid)) => {
                    attempt += 1;
                    debug!(attempt, reason = invalid.as_str(), "parked rows read again");
                    tokio::time::sleep(backoff(attempt, REREAD_WAIT.0, REREAD_WAIT.1)).await;
                }
                Err(_) => return Err(CopyError::StreamEnded),
            }
        }
    }
}

/// What healing would write of the present rows of parked keys, at the snapshot of their read, whatever the stream brings.
///
/// # Errors
/// None that is known of: without changes beside the snapshot, every read is valid.
pub fn present_rows(tables: &[KeysOfTable], read: ParkedRows) -> Result<Merged, InvalidChunk> {
    let mut all = Merged::default();
    for read in delivery(tables, read).reads {
        let Merged { changes, respelled } = merge(read, &[])?;
        all.changes.extend(changes);
        all.respelled.extend(respelled);
    }
    Ok(all)
}

/// The same for rows that are counted.
#[must_use]
pub fn present_counts(relation: &Arc<Relation>, read: CountedRows) -> Vec<Change> {
    let (rows, counts): (Vec<_>, Vec<_>) = read.rows.into_iter().unzip();
    counted::merge(relation, rows, &counts, &[])
}

fn relation_changed(tables: &[KeysOfTable]) -> CopyError {
    tables.first().map_or(CopyError::StreamEnded, |table| {
        CopyError::RelationChanged(table.relation.table.clone())
    })
}

fn delivery(tables: &[KeysOfTable], read: ParkedRows) -> Delivery {
    let ParkedRows { snapshot, tables: rows } = read;
    let reads = tables.iter().zip(rows).map(|(request, rows)| Chunk {
        relation: Arc::clone(&request.relation),
        snapshot: snapshot.clone(),
        rows: rows.rows,
        purpose: Purpose::Parked(RequestedKeys {
            keys: request.keys.iter().take(rows.looked_up).cloned().collect(),
            found_by: rows.found_by,
            spelled_alike: request.table.spells_keys_alike(&request.relation),
        }),
    });
    Delivery {
        reads: reads.collect(),
        step: None,
    }
}
