//! A database URL as options for sqlx, with the same meaning as for the other connections.
//!
//! sqlx verifies certificates itself. Where it differs from [`super::tls`]:
//! - `require` with `sslrootcert`, and `sslrootcert=system`, are translated here, so that they mean what they mean in libpq;
//! - beside the file's authorities it also trusts the system's;
//! - a certificate that is marked as an authority (`CA:TRUE`), or that has only a CN, is refused by `verify-ca` and `verify-full` even
//!   if it is in `sslrootcert`. Use a certificate with a `subjectAltName` that is no authority.

use std::path::Path;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::tls::SYSTEM_ROOTS;
use crate::config::{DatabaseUrl, Host, SslMode};

/// How sqlx connects to this database.
#[must_use]
pub fn sqlx_options(url: &DatabaseUrl, application_name: &str) -> PgConnectOptions {
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
