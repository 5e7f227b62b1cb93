//! Carries the sequences of the replicated tables along: what the Site DB's has given, the Agent DB's never gives again, so that the
//! Agent DB can take over. The log of the Site DB does not have sequences, so they are looked at every few seconds.
//!
//! A sequence of the Agent DB is only ever moved forward, and a little further than the Site DB's is: by several times of what it
//! grew by since the last look, so that rows that come before the next one are covered too. Its increment and its start are kept:
//! a database that gives the even numbers goes on to do so. What can't be done (a right that is missing) is said once, and stops
//! nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent_db::Control;
use crate::change::TableName;
use crate::postgres::sequences::ColumnSequence;
use crate::retry::Disposition;
use crate::shutdown;
use crate::source::{Source, SourceTable, sequences};

use super::error::SyncError;
use super::settings::PipelineSettings;

/// Interval between two looks: two queries of the catalog.
const INTERVAL: Duration = Duration::from_secs(5);

/// The same where no table of the Site DB has a sequence.
const WITHOUT: Duration = Duration::from_secs(60);

/// With thousands of tables it is longer, so that a look takes at most this part of the time.
const SHARE: u32 = 20;

/// Values that the Agent DB's is ahead at least, and as many times the growth since the last look.
const MARGIN: (i64, i64) = (32, 4);

/// What carrying along needs from the run.
pub(super) struct SequenceCarrier {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
}

/// Connections of its own, opened when there is something to look at.
#[derive(Default)]
struct Sessions {
    source: Option<Source>,
    control: Option<Control>,
}

/// A column, by which the sequences of both databases are matched: they may have other names.
type Column = (TableName, String);

impl SequenceCarrier {
    /// Carries along until it is stopped. Whatever fails is tried again at the next look: no row depends on it.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), SyncError> {
        let names: Vec<&TableName> = self.tables.keys().collect();
        let (mut before, mut told) = (HashMap::new(), BTreeSet::new());
        let mut interval = Duration::ZERO;
        let mut sessions = Sessions::default();
        while shutdown::sleep(interval, stop).await {
            let began = Instant::now();
            let looked = Box::pin(self.look(&mut sessions, &names, &mut before)).await;
            let complaints = match looked {
                Ok(Some(complaints)) => complaints,
                // Nothing to carry: no session is kept for it.
                Ok(None) => {
                    sessions = Sessions::default();
                    interval = WITHOUT;
                    continue;
                }
                Err(error) => {
                    sessions = Sessions::default();
                    let lasts = error.disposition() != Disposition::Transient;
                    lasts.then(|| error.explain()).into_iter().collect()
                }
            };
            for reason in &complaints {
                if told.insert(reason.clone()) {
                    warn!(%reason, "a sequence is not carried along: rows are not concerned");
                }
            }
            // What comes back after it was gone is said again.
            told.retain(|reason| complaints.contains(reason));
            interval = INTERVAL.max(began.elapsed() * SHARE);
        }
        Ok(())
    }

    /// Looks at both, and moves those of the Agent DB that must be; returns what keeps some from being carried along, or `None` if
    /// there is nothing to carry.
    async fn look(
        &self,
        sessions: &mut Sessions,
        names: &[&TableName],
        before: &mut HashMap<Column, i64>,
    ) -> Result<Option<Vec<String>>, SyncError> {
        let Sessions { source, control } = sessions;
        let source = match source {
            Some(source) => source,
            none => none.insert(Source::connect(&self.settings.site, "twinlog sequences").await?),
        };
        let of_site = sequences(source.client(), names).await?;
        if of_site.is_empty() {
            return Ok(None);
        }
        let control = match control {
            Some(control) => control,
            none => {
                none.insert(Control::connect(&self.settings.agent, &self.settings.slot, "twinlog sequences").await?)
            }
        };
        let of_agent = control.sequences(names).await?;
        let mut complaints = Vec::new();
        for pair in Pair::all(&of_site, &of_agent) {
            if let Some(complaint) = pair.complaint(&self.settings) {
                complaints.push(complaint);
                continue;
            }
            let Some(last) = pair.site.last else { continue };
            let column = (pair.site.table.clone(), pair.site.column.clone());
            let growth = before
                .insert(column, last)
                .map_or(0, |before| last.saturating_sub(before).saturating_abs());
            let Some(value) = pair.next(last, growth) else { continue };
            if let Err(error) = control.move_sequence(pair.agent, value).await {
                complaints.push(SyncError::from(error).explain());
                continue;
            }
            info!(sequence = %pair.agent.sequence, table = %pair.site.table, "a sequence of the Agent DB is moved forward");
        }
        Ok(Some(complaints))
    }
}

/// The sequences of one column in both databases.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    site: &'a ColumnSequence,
    agent: &'a ColumnSequence,
}

impl<'a> Pair<'a> {
    /// Those of the columns that have one in both. A column that has none in the Agent DB gives no values there.
    fn all(of_site: &'a [ColumnSequence], of_agent: &'a [ColumnSequence]) -> Vec<Self> {
        let of_column: HashMap<(&TableName, &str), &ColumnSequence> = of_agent
            .iter()
            .map(|agent| ((&agent.table, agent.column.as_str()), agent))
            .collect();
        of_site
            .iter()
            .filter_map(|site| {
                let agent = of_column.get(&(&site.table, site.column.as_str()))?;
                Some(Self { site, agent })
            })
            .collect()
    }

    /// Why the one can't follow the other, and what to do.
    fn complaint(&self, settings: &PipelineSettings) -> Option<String> {
        let Self { site, agent } = self;
        let column = format!("{}.{}", site.table, site.column);
        if !site.readable {
            let grant = site.grant("SELECT", &settings.site.user);
            return Some(format!(
                "{column}: the Site DB's sequence may not be read — on the Site DB: {grant};"
            ));
        }
        if !agent.readable || !agent.writable {
            let grant = agent.grant("SELECT, UPDATE", &settings.agent.user);
            return Some(format!(
                "{column}: the Agent DB's sequence may not be moved — on the Agent DB: {grant};"
            ));
        }
        if (site.increment > 0) != (agent.increment > 0) {
            return Some(format!(
                "{column}: its sequence ascends in one database and descends in the other"
            ));
        }
        if let Some(last) = site.last
            && !(agent.min..=agent.max).contains(&last)
        {
            return Some(format!(
                "{column}: the Site DB's sequence has come to {last}, which the Agent DB's can't give (its range is {} to {})",
                agent.min, agent.max
            ));
        }
        None
    }

    /// Whether the Agent DB's could give a value that the Site DB's has given.
    fn is_behind(&self) -> bool {
        let Some(last) = self.site.last else { return false };
        let is_at = |agent: i64| {
            if self.agent.increment > 0 {
                agent >= last
            } else {
                agent <= last
            }
        };
        !self.agent.last.is_some_and(is_at)
    }

    /// The value to which the Agent DB's is to be moved; `None`: it is far enough. `growth`: of the Site DB's since the last look.
    fn next(&self, last: i64, growth: i64) -> Option<i64> {
        let ascends = self.agent.increment > 0;
        // Descending ones are looked at in a mirror.
        let turned = |value: i64| if ascends { i128::from(value) } else { -i128::from(value) };
        let step = i128::from(self.agent.increment.unsigned_abs());
        let margin = (i128::from(MARGIN.0) * i128::from(self.site.increment.unsigned_abs()))
            .max(i128::from(MARGIN.1) * i128::from(growth));
        let (last, start) = (turned(last), turned(self.agent.start));
        let limit = turned(if ascends { self.agent.max } else { self.agent.min });
        if let Some(agent) = self.agent.last
            && turned(agent) >= (last + margin / 2).min(limit - step)
        {
            return None;
        }
        // The first value of the Agent DB's own that is far enough; near the end of the range, none but those that were given.
        let aligned = |target: i128| start + ((target - start).max(0) + step - 1) / step * step;
        let value = [aligned(last + margin), aligned(last)]
            .into_iter()
            .find(|value| *value <= limit);
        // Past its end: it gives no value any more.
        let value = value.unwrap_or(limit);
        if self.agent.last.is_some_and(|agent| turned(agent) >= value) {
            return None;
        }
        i64::try_from(if ascends { value } else { -value }).ok()
    }
}

/// Why sequences of replicated tables are not fit for a takeover: one line for each column.
///
/// # Errors
/// A connection's.
pub async fn unfit_sequences(
    settings: &PipelineSettings,
    control: &Control,
    tables: &[&TableName],
) -> Result<Vec<String>, SyncError> {
    let source = Source::connect(&settings.site, "twinlog cutover").await?;
    // The Agent DB's first: the Site DB's only grow meanwhile.
    let of_agent = control.sequences(tables).await?;
    let of_site = sequences(source.client(), tables).await?;
    let has_one = |site: &ColumnSequence| {
        of_agent
            .iter()
            .any(|agent| agent.table == site.table && agent.column == site.column)
    };
    let without = of_site.iter().filter(|site| !has_one(site)).map(|site| {
        format!(
            "{}.{}: the Agent DB's column takes no values from a sequence, as the Site DB's does",
            site.table, site.column
        )
    });
    let behind = Pair::all(&of_site, &of_agent).into_iter().filter_map(|pair| {
        let behind = || {
            let Pair { site, agent } = pair;
            pair.is_behind().then(|| {
                format!(
                    "{}.{}: {} is behind the Site DB's sequence",
                    site.table, site.column, agent.sequence
                )
            })
        };
        pair.complaint(settings).or_else(behind)
    });
    Ok(without.chain(behind).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last: Option<i64>, start: i64, increment: i64, max: i64) -> ColumnSequence {
        let table = TableName::new("public", "t");
        ColumnSequence {
            column: "id".to_owned(),
            sequence: table.clone(),
            table,
            readable: true,
            writable: true,
            last,
            start,
            increment,
            min: if increment > 0 { 1 } else { -max },
            max: if increment > 0 { max } else { -1 },
        }
    }

    fn next(site: &ColumnSequence, agent: &ColumnSequence, growth: i64) -> Option<i64> {
        Pair { site, agent }.next(site.last?, growth)
    }

    #[test]
    fn a_sequence_is_moved_ahead_and_left_alone_while_it_is_far_enough() {
        let site = sequence(Some(100), 1, 1, i64::MAX);
        assert_eq!(next(&site, &sequence(None, 1, 1, i64::MAX), 0), Some(132));
        assert_eq!(next(&site, &sequence(Some(132), 1, 1, i64::MAX), 0), None);
        assert_eq!(next(&site, &sequence(Some(116), 1, 1, i64::MAX), 0), None);
        assert_eq!(next(&site, &sequence(Some(115), 1, 1, i64::MAX), 0), Some(132));
        assert_eq!(next(&site, &sequence(Some(132), 1, 1, i64::MAX), 1000), Some(4100));
        // Never back.
        assert_eq!(next(&site, &sequence(Some(1_000_000), 1, 1, i64::MAX), 0), None);
    }

    #[test]
    fn the_agent_dbs_own_numbers_stay_its_own_and_a_range_is_not_left() {
        let site = sequence(Some(101), 1, 2, i64::MAX);
        let even = next(&site, &sequence(None, 2, 2, i64::MAX), 0).unwrap();
        assert!(even % 2 == 0 && even >= 165, "{even}");
        let site = sequence(Some(100), 1, 1, 32_767);
        assert_eq!(next(&site, &sequence(Some(50), 1, 1, 110), 0), Some(100));
        assert_eq!(next(&site, &sequence(Some(100), 1, 1, 100), 0), None);
        let site = sequence(Some(i64::MAX), 1, 1, i64::MAX);
        assert_eq!(next(&site, &sequence(None, 1, 1, i64::MAX), i64::MAX), Some(i64::MAX));
    }

    #[test]
    fn a_descending_sequence_is_moved_down() {
        let site = sequence(Some(-100), -1, -1, 1_000);
        assert_eq!(next(&site, &sequence(Some(-1), -1, -1, 1_000), 0), Some(-132));
        let is_behind = |last| {
            let agent = sequence(Some(last), -1, -1, 1_000);
            Pair {
                site: &site,
                agent: &agent,
            }
            .is_behind()
        };
        assert!(is_behind(-99) && !is_behind(-100));
    }
}
