//! A database URL as options for sqlx, with the same meaning as for the other connections.
//!
//! On Linux, the connection and its TLS are not sqlx's: see [`super::sqlx_relay`]. On other systems they are. Where sqlx's TLS
//! differs from [`super::tls`]: it trusts the system's authorities beside those of the file, refuses a certificate that is marked
//! as an authority even if it is in the file, and `verify-full` refuses one that has only a CN.

use std::path::Path;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::sqlx_relay::SqlxAccess;
use super::tls::SYSTEM_ROOTS;
use crate::config::{DatabaseUrl, Host, SslMode};

/// How sqlx reaches this database.
#[must_use]
pub fn sqlx_access(url: &DatabaseUrl, application_name: &str) -> SqlxAccess {
    SqlxAccess::new(url, sqlx_options(url, application_name))
}

/// As if sqlx did TLS itself.
fn sqlx_options(url: &DatabaseUrl, application_name: &str) -> PgConnectOptions {
    let (mode, root) = ssl(url.sslmode, url.sslrootcert.as_deref());
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(url.port)
        .username(&url.user)
        .database(&url.database)
        .application_name(application_name)
        .ssl_mode(mode);
    options = match &url.host {
        Host::Tcp(host) => options.host(host),
        Host::Unix(folder) => options.socket(folder),
    };
    if let Some(password) = &url.password {
        options = options.password(password.expose_secret());
    }
    if let Some(file) = root {
        options = options.ssl_root_cert(file);
    }
    options
}

/// `require` with authorities is `verify-ca`, as in libpq; the system's authorities are what sqlx trusts without a file.
fn ssl(mode: SslMode, root: Option<&Path>) -> (PgSslMode, Option<&Path>) {
    let mode = match (mode, root) {
        (SslMode::Disable, _) => PgSslMode::Disable,
        (SslMode::Require, None) => PgSslMode::Require,
        (SslMode::Require, Some(_)) | (SslMode::VerifyCa, _) => PgSslMode::VerifyCa,
        (SslMode::VerifyFull, _) => PgSslMode::VerifyFull,
    };
    (mode, root.filter(|path| *path != Path::new(SYSTEM_ROOTS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_with_authorities_verifies_them_and_system_is_no_file() {
        let file = Path::new("/root.crt");
        let system = Path::new("system");
        for (mode, root, expected, expected_root) in [
            (SslMode::Disable, Some(file), "Disable", Some(file)),
            (SslMode::Require, None, "Require", None),
            (SslMode::Require, Some(file), "VerifyCa", Some(file)),
            (SslMode::Require, Some(system), "VerifyCa", None),
            (SslMode::VerifyCa, None, "VerifyCa", None),
            (SslMode::VerifyFull, Some(system), "VerifyFull", None),
            (SslMode::VerifyFull, Some(file), "VerifyFull", Some(file)),
        ] {
            let (mode, root) = ssl(mode, root);
            assert_eq!((format!("{mode:?}").as_str(), root), (expected, expected_root));
        }
    }
}
