//! How far the sequences of the Site DB's tables are.

use tokio_postgres::Client;

use super::error::{SourceError, failed};
use crate::change::TableName;
use crate::postgres::sequences::{self, ColumnSequence};

/// The sequences from which columns of tables take their values.
///
/// # Errors
/// The statement failed.
pub async fn sequences(client: &Client, tables: &[&TableName]) -> Result<Vec<ColumnSequence>, SourceError> {
    sequences::sequences(client, tables)
        .await
        .map_err(failed("read the sequences"))
}
