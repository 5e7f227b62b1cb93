//! Comparing digests of ranges, and dividing those that differ.

use super::both_sides::Ranges;
use super::{TableVerifier, VerifiedPage, in_rows};
use crate::agent_db::AgentKeys;
use crate::change::Key;
use crate::copy::error::CopyError;

/// The keys after one, up to and with another one.
#[derive(Debug, Clone, Copy)]
struct Range<'k> {
    after: Option<&'k Key>,
    upto: Option<&'k Key>,
}

/// A range of at most so many rows of the Site DB is not divided.
const SMALL: u64 = 1000;

/// Into so many parts a range is divided that differs.
const PARTS: u64 = 16;

impl TableVerifier<'_> {
    /// The page after a key: a range.
    pub(super) async fn range_page(
        &self,
        ranges: &Ranges,
        keys: &AgentKeys<'_>,
        after: Option<&Key>,
    ) -> Result<VerifiedPage, CopyError> {
        let rows = u64::from(self.range_rows);
        let upto = self.reader.source.bound(&ranges.site, after, None, rows).await?;
        let mut page = VerifiedPage::default();
        let range = Range {
            after,
            upto: upto.as_ref(),
        };
        self.range(ranges, keys, range, &mut page).await?;
        if page.next.is_none() {
            page.next = upto.map(in_rows);
        }
        Ok(page)
    }

    /// Compares the digests of a range, and what is in it where they differ.
    async fn range(
        &self,
        ranges: &Ranges,
        keys: &AgentKeys<'_>,
        range: Range<'_>,
        page: &mut VerifiedPage,
    ) -> Result<(), CopyError> {
        let source = self.reader.source;
        let Range { after, upto } = range;
        let (site, agent) = tokio::join!(
            source.digest(self.reader.table, &ranges.site, after, upto),
            self.agent.digest(&ranges.agent, after, upto)
        );
        let (site, agent) = (site?, agent?);
        let rows = site.rows.unsigned_abs();
        page.read += rows;
        if site == agent {
            page.rows += rows;
            return Ok(());
        }
        if rows <= SMALL {
            return self.small_range(keys, range, page).await;
        }
        let mut from = after.cloned();
        loop {
            let part = (rows / PARTS).max(SMALL);
            let to = source.bound(&ranges.site, from.as_ref(), upto, part).await?;
            let part = Range {
                after: from.as_ref(),
                upto: to.as_ref().or(upto),
            };
            Box::pin(self.range(ranges, keys, part, page)).await?;
            // The page ends before the part does.
            if page.next.is_some() {
                return Ok(());
            }
            if to.is_none() || to.as_ref() == upto {
                return Ok(());
            }
            from = to;
        }
    }

    /// Compares the keys that the Agent DB has in a range, then the rows of the Site DB one by one. The page ends before the range
    /// does where more keys than the limit are only in the Agent DB.
    async fn small_range(
        &self,
        keys: &AgentKeys<'_>,
        Range { after, upto }: Range<'_>,
        page: &mut VerifiedPage,
    ) -> Result<(), CopyError> {
        let end = self.extras_between(keys, Range { after, upto }, page).await?;
        let upto = end.as_ref().or(upto);
        let mut from = after.cloned();
        loop {
            let rows = self.rows_between(from.as_ref(), upto).await?;
            page.rows += rows.rows;
            page.read += rows.read;
            page.differences.extend(rows.differences);
            page.parked += rows.parked;
            match rows.last {
                Some(last) if !rows.finished => from = Some(last),
                _ => break,
            }
        }
        page.next = end.map(in_rows);
        Ok(())
    }

    /// Looks for keys of a range that only the Agent DB has. Returns the last one it has looked at where there are more of them
    /// than a page may have.
    async fn extras_between(
        &self,
        keys: &AgentKeys<'_>,
        Range { after, upto }: Range<'_>,
        page: &mut VerifiedPage,
    ) -> Result<Option<Key>, CopyError> {
        let mut from = after.cloned();
        let mut extras = 0;
        loop {
            let keys = keys.page_upto(from.as_ref(), upto, self.limit).await?;
            let Some(last) = keys.last().map(Key::compact) else {
                return Ok(None);
            };
            page.read += keys.len() as u64;
            let comparison = self.extras_of(&keys).await?;
            extras += comparison.differences.len();
            page.differences.extend(comparison.differences);
            page.parked += comparison.parked;
            if extras >= usize::try_from(self.limit).unwrap_or(usize::MAX) {
                return Ok(Some(last));
            }
            from = Some(last);
        }
    }
}
