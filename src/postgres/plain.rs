//! A session with nothing pinned, like any application's. For throwaway clusters, whose users rely on the usual
//! `search_path`.

use std::path::Path;

use tokio_postgres::{Client, Config, Error, NoTls};

/// Opens a session over a Unix socket. A task of the current runtime drives the connection.
///
/// # Errors
/// The server does not run, or refuses the login.
pub async fn connect_plain(
    folder: &Path,
    port: u16,
    user: &str,
    database: &str,
    application_name: &str,
) -> Result<Client, Error> {
    let (client, connection) = Config::new()
        .host_path(folder)
        .port(port)
        .user(user)
        .dbname(database)
        .application_name(application_name)
        .connect(NoTls)
        .await?;
    // When the connection ends, the client's calls fail.
    tokio::spawn(connection);
    Ok(client)
}
