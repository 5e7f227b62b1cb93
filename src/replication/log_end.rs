//! Where the Site DB's log ends, for a person who asks whether everything is applied.

use super::error::SyncError;
use super::settings::PipelineSettings;
use crate::lsn::Lsn;
use crate::source::{self, Source};

/// The end of the Site DB's log: what is committed now stands before it.
///
/// # Errors
/// The connection's or the statement's.
pub async fn log_end(settings: &PipelineSettings) -> Result<Lsn, SyncError> {
    let source = Source::connect(&settings.site, "twinlog cutover").await?;
    Ok(source::sample(source.client(), &settings.slot).await?.end)
}
