//! How ranges of a table are digested in both databases.

use crate::agent_db::Comparer;
use crate::copy::error::CopyError;
use crate::copy::reader::{ChunkReader, ForeignRows};
use crate::postgres::row_digest::DigestedTable;

/// How ranges are digested in both databases.
#[derive(Debug)]
pub(super) struct Ranges {
    pub(super) site: DigestedTable,
    pub(super) agent: DigestedTable,
}

impl Ranges {
    /// How ranges of a table are digested; `None` where that would be in vain: the databases may sort its keys in another way, or
    /// another pipeline has rows among them.
    pub(super) async fn of(reader: &ChunkReader<'_>, agent: &Comparer) -> Result<Option<Self>, CopyError> {
        let mut ranges = Self {
            site: reader.table.digested(reader.relation)?,
            agent: agent.digested(),
        };
        ranges.site.agree(&mut ranges.agent);
        let is_alike = reader.foreign_rows == ForeignRows::Delete
            && ranges.site.is_sorted_as(&ranges.agent)
            && reader.source.encoding().await? == agent.encoding().await?;
        Ok(Some(ranges).filter(|_| is_alike))
    }
}
