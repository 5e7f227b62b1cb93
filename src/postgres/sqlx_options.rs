//! A URL as the options of sqlx, which migrations and the server's pool connect with.

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::config::{DatabaseUrl, Host, SslMode};

/// The options for a URL; nothing comes from the environment or from `~/.pgpass`.
#[must_use]
pub fn sqlx_options(url: &DatabaseUrl, application_name: &str) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(url.port)
        .username(&url.user)
        .database(&url.database)
        .application_name(application_name)
        .ssl_mode(match url.sslmode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        });
    options = match &url.host {
        Host::Tcp(host) => options.host(host),
        Host::Unix(folder) => options.socket(folder),
    };
    if let Some(password) = &url.password {
        options = options.password(password.expose_secret());
    }
    if let Some(file) = &url.sslrootcert {
        options = options.ssl_root_cert(file);
    }
    options
}
