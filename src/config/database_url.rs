//! A Postgres connection URL, parsed in one place, so that all drivers get the same meaning.
//!
//! Follows libpq where it takes the same: <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

/// How much TLS a connection must have, as libpq's `sslmode` (without `allow` and `prefer`: a mode that may fall back to
/// plain text unnoticed protects nothing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS with any certificate.
    Require,
    /// TLS, and a trusted authority has signed the certificate.
    VerifyCa,
    /// As [`Self::VerifyCa`], and the certificate is for this host.
    VerifyFull,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or IP address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

/// A database and how to reach it. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct DatabaseUrl {
    /// `localhost` where the URL names none.
    pub host: Host,
    /// 5432 where the URL names none. A Unix socket has it in its name.
    pub port: u16,
    /// The role to log in as.
    pub user: String,
    /// Percent sequences are decoded.
    pub password: Option<SecretString>,
    /// The name of the database, which the URL must give.
    pub database: String,
    /// Where the URL does not say: TLS, except to this machine.
    pub sslmode: SslMode,
    /// PEM file of the trusted authorities, instead of the system's.
    pub sslrootcert: Option<PathBuf>,
}

/// Why a text is not a usable URL. Never quotes the text: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It has no `://`, or the rest is not one of a URL.
    #[error("it is not a URL of the form postgres://user:password@host:port/database")]
    Malformed,
    /// Something else than `postgres` or `postgresql` stands before the `://`.
    #[error("the scheme must be postgres:// or postgresql://")]
    Scheme,
    /// A character that has a meaning in a URL ends the password early.
    #[error("a / ? or # stands before its @: in a user or password write them as %2F, %3F and %23")]
    Unescaped,
    /// Postgres would take the name of the operating system's user; a service should say it.
    #[error("it names no user: postgres://USER@…")]
    NoUser,
    /// Postgres would take the role's name; a service should say it.
    #[error("it names no database: postgres://…/DATABASE")]
    NoDatabase,
    /// A value of `sslmode` that libpq does not have, or that may fall back to plain text.
    #[error("sslmode must be disable, require, verify-ca or verify-full")]
    SslMode,
    /// `sslmode` asks for TLS, and `host` is a folder.
    #[error("a Unix socket has no TLS: use sslmode=disable or leave it out")]
    TlsOnUnixSocket,
    /// The drivers would have to agree on which of the hosts is the primary at the moment.
    #[error("several hosts are not supported: name one, or a DNS name or proxy that leads to the primary")]
    SeveralHosts,
    /// One of the three drivers has no channel binding, so it can't be required.
    #[error("channel_binding=require is not supported: leave it out, and use sslmode=verify-full against impostors")]
    ChannelBinding,
    /// A parameter that would have no effect.
    #[error("the parameter {0:?} is not supported: leave it out")]
    UnknownParameter(String),
    /// Percent-encoding that is not UTF-8, or a port out of range.
    #[error("the value of {0} is not valid")]
    Value(&'static str),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = parse_url(text)?;
        let mut parts = Parts::before_the_query(&url)?;
        for (name, value) in url.query_pairs() {
            parts.set(&name, value.into_owned())?;
        }
        parts.complete()
    }
}

/// The host that stands for a missing one, see [`parse_url`]. `.invalid` never resolves (RFC 2606).
const NO_HOST: &str = "no-host.invalid";

/// The text as a URL. The crate `url` refuses `postgres:///db?host=…` with a user, and `postgres://user@/db`, which libpq
/// takes: where there is no host, [`NO_HOST`] is put in.
fn parse_url(text: &str) -> Result<url::Url, DatabaseUrlError> {
    let (scheme, rest) = text.split_once("://").ok_or(DatabaseUrlError::Malformed)?;
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(DatabaseUrlError::Scheme);
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Otherwise the rest of a password would be taken for a path or a parameter, and be named in an error.
    if tail.contains('@') {
        return Err(DatabaseUrlError::Unescaped);
    }
    let after_user = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    if after_user.contains(',') {
        return Err(DatabaseUrlError::SeveralHosts);
    }
    let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let at = if user.is_empty() { "" } else { "@" };
    let host = if address.is_empty() || address.starts_with(':') {
        NO_HOST
    } else {
        ""
    };
    url::Url::parse(&format!("{scheme}://{user}{at}{host}{address}{tail}")).map_err(|_| DatabaseUrlError::Malformed)
}

/// What a URL has said so far.
struct Parts {
    host: Option<Host>,
    port: u16,
    user: String,
    password: Option<String>,
    database: String,
    sslmode: Option<SslMode>,
    sslrootcert: Option<PathBuf>,
}

impl Parts {
    fn before_the_query(url: &url::Url) -> Result<Self, DatabaseUrlError> {
        let host = url.host_str().filter(|&name| name != NO_HOST);
        Ok(Self {
            host: host
                .map(|name| decode(name.trim_start_matches('[').trim_end_matches(']'), "host"))
                .transpose()?
                .map(as_host),
            port: url.port().unwrap_or(5432),
            user: decode(url.username(), "user")?,
            password: url.password().map(|part| decode(part, "password")).transpose()?,
            database: decode(url.path().trim_start_matches('/'), "database")?,
            sslmode: None,
            sslrootcert: None,
        })
    }

    /// Takes a parameter of the query, which counts more than what comes before the query.
    fn set(&mut self, name: &str, value: String) -> Result<(), DatabaseUrlError> {
        match name {
            "host" | "port" if value.contains(',') => return Err(DatabaseUrlError::SeveralHosts),
            "host" => self.host = Some(as_host(value)),
            "port" => self.port = value.parse().map_err(|_| DatabaseUrlError::Value("port"))?,
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" => self.database = value,
            "sslmode" => self.sslmode = Some(value.parse().map_err(|_| DatabaseUrlError::SslMode)?),
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            // Where it can be had, it is used.
            "channel_binding" if matches!(value.as_str(), "prefer" | "disable") => {}
            "channel_binding" => return Err(DatabaseUrlError::ChannelBinding),
            // Twinlog sets the name and the time-outs of its connections itself; to ask for them does no harm.
            "application_name" | "connect_timeout" => {}
            other => return Err(DatabaseUrlError::UnknownParameter(other.to_owned())),
        }
        Ok(())
    }

    fn complete(self) -> Result<DatabaseUrl, DatabaseUrlError> {
        if self.user.is_empty() {
            return Err(DatabaseUrlError::NoUser);
        }
        if self.database.is_empty() {
            return Err(DatabaseUrlError::NoDatabase);
        }
        let host = self.host.unwrap_or_else(|| Host::Tcp("localhost".to_owned()));
        let sslmode = match (&host, self.sslmode) {
            (Host::Unix(_), None | Some(SslMode::Disable)) => SslMode::Disable,
            (Host::Unix(_), Some(_)) => return Err(DatabaseUrlError::TlsOnUnixSocket),
            (Host::Tcp(_), Some(mode)) => mode,
            // Passwords and messages cross a network: TLS, unless the URL says no. This machine needs none.
            (Host::Tcp(name), None) if is_loopback(name) => SslMode::Disable,
            (Host::Tcp(_), None) => SslMode::Require,
        };
        Ok(DatabaseUrl {
            host,
            port: self.port,
            user: self.user,
            password: self.password.map(SecretString::from),
            database: self.database,
            sslmode,
            sslrootcert: self.sslrootcert,
        })
    }
}

fn as_host(text: String) -> Host {
    if text.starts_with('/') {
        Host::Unix(text.into())
    } else {
        Host::Tcp(text)
    }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A part of the URL without its percent sequences.
fn decode(part: &str, what: &'static str) -> Result<String, DatabaseUrlError> {
    // The crate leaves a % as it is where no two digits follow; libpq refuses it.
    let has_digits = |rest: &str| {
        rest.as_bytes()
            .get(..2)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !part.split('%').skip(1).all(has_digits) {
        return Err(DatabaseUrlError::Value(what));
    }
    let decoded = percent_decode_str(part).decode_utf8();
    decoded.map(String::from).map_err(|_| DatabaseUrlError::Value(what))
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user, port, database, ..
        } = self;
        match &self.host {
            Host::Tcp(host) if host.contains(':') => write!(f, "postgres://{user}@[{host}]:{port}/{database}"),
            Host::Tcp(host) => write!(f, "postgres://{user}@{host}:{port}/{database}"),
            Host::Unix(folder) => write!(f, "postgres://{user}@/{database}?host={}&port={port}", folder.display()),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (sslmode {:?})", self.sslmode)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn takes_what_libpq_takes() {
        let url: DatabaseUrl = "postgres://me:p%40ss+1@db.example.com:6432/crm?sslmode=verify-full"
            .parse()
            .unwrap();
        assert_eq!(
            (url.host, url.port, url.user.as_str()),
            (Host::Tcp("db.example.com".into()), 6432, "me")
        );
        assert_eq!(url.password.unwrap().expose_secret(), "p@ss+1");
        assert_eq!((url.database.as_str(), url.sslmode), ("crm", SslMode::VerifyFull));

        let url: DatabaseUrl = "postgresql://me@/crm?host=/var/run/postgresql&port=5433"
            .parse()
            .unwrap();
        assert_eq!(
            (url.host, url.port, url.sslmode),
            (Host::Unix("/var/run/postgresql".into()), 5433, SslMode::Disable)
        );

        let url: DatabaseUrl = "postgres://me:a,b@db.example.com/crm?channel_binding=prefer"
            .parse()
            .unwrap();
        assert_eq!(url.host, Host::Tcp("db.example.com".into()));

        let url: DatabaseUrl = "postgres:///crm?user=me".parse().unwrap();
        assert_eq!((url.host, url.user.as_str()), (Host::Tcp("localhost".into()), "me"));

        let url: DatabaseUrl = "postgres://me@[::1]/crm".parse().unwrap();
        assert_eq!((url.host, url.sslmode), (Host::Tcp("::1".into()), SslMode::Disable));
    }

    #[test]
    fn tls_is_the_default_over_a_network() {
        let mode = |text: &str| text.parse::<DatabaseUrl>().map(|url| url.sslmode);
        assert_eq!(mode("postgres://me@db.example.com/crm"), Ok(SslMode::Require));
        assert_eq!(mode("postgres://me@127.0.0.1/crm"), Ok(SslMode::Disable));
        assert_eq!(
            mode("postgres://me@h/crm?sslmode=prefer"),
            Err(DatabaseUrlError::SslMode)
        );
        assert_eq!(
            mode("postgres://me@/crm?host=/tmp&sslmode=require"),
            Err(DatabaseUrlError::TlsOnUnixSocket)
        );
    }

    #[test]
    fn refuses_what_it_would_have_to_guess() {
        let error = |text: &str| text.parse::<DatabaseUrl>().unwrap_err();
        assert_eq!(error("me@host/crm"), DatabaseUrlError::Malformed);
        assert_eq!(error("mysql://me@host/crm"), DatabaseUrlError::Scheme);
        assert_eq!(error("postgres://host/crm"), DatabaseUrlError::NoUser);
        assert_eq!(error("postgres://me@host"), DatabaseUrlError::NoDatabase);
        assert_eq!(
            error("postgres://me@host/crm?x=1"),
            DatabaseUrlError::UnknownParameter("x".into())
        );
        for several in [
            "postgres://me:p,w@one,two/crm",
            "postgres://me@one:5432,two:5433/crm",
            "postgres://me@/crm?host=one,two",
        ] {
            assert_eq!(error(several), DatabaseUrlError::SeveralHosts);
        }
        assert_eq!(
            error("postgres://me@host/crm?channel_binding=require"),
            DatabaseUrlError::ChannelBinding
        );
        assert_eq!(error("postgres://me:pa?ss@host/crm"), DatabaseUrlError::Unescaped);
        assert_eq!(error("postgres://me:pa/ss@host/crm"), DatabaseUrlError::Unescaped);
        assert_eq!(error("postgres://me:%FF@host/crm"), DatabaseUrlError::Value("password"));
        assert_eq!(
            error("postgres://me:100%@host/crm"),
            DatabaseUrlError::Value("password")
        );
        assert_eq!(error("postgres://me:%4é@host/crm"), DatabaseUrlError::Value("password"));
    }

    #[test]
    fn never_prints_the_password() {
        let url: DatabaseUrl = "postgres://me:hunter2@db.example.com/crm".parse().unwrap();
        assert!(!format!("{url} {url:?}").contains("hunter2"));
    }
}
