//! A Postgres connection URL, parsed once and in one place, so that all drivers agree on what it means.
//!
//! Follows libpq for what it takes: <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use secrecy::SecretString;

/// How much TLS a connection must have, as libpq's `sslmode` (without `allow` and `prefer`: a mode that may silently
/// fall back to plain text protects nothing).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS, whoever answers.
    Require,
    /// TLS, and the certificate comes from a trusted authority.
    VerifyCa,
    /// TLS, a trusted authority, and the name is the host's.
    VerifyFull,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

/// A database and how to reach it. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct DatabaseUrl {
    /// Where the server listens.
    pub host: Host,
    /// Its port (also part of a Unix socket's name).
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password, if any.
    pub password: Option<SecretString>,
    /// The database.
    pub database: String,
    /// TLS.
    pub sslmode: SslMode,
    /// PEM file of trusted authorities; the system's where it is missing.
    pub sslrootcert: Option<PathBuf>,
}

/// Why a text is not a usable URL. Never quotes the text: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Not a URL.
    #[error("it is not a URL of the form postgres://user:password@host:port/database")]
    Malformed,
    /// Another scheme.
    #[error("the scheme must be postgres:// or postgresql://")]
    Scheme,
    /// The password is cut off by a character that has a meaning in a URL.
    #[error("a / ? or # stands before its @: in a user or password write them as %2F, %3F and %23")]
    Unescaped,
    /// No role.
    #[error("it names no user: postgres://USER@…")]
    NoUser,
    /// No database.
    #[error("it names no database: postgres://…/DATABASE")]
    NoDatabase,
    /// A mode that is not one of ours.
    #[error("sslmode must be disable, require, verify-ca or verify-full")]
    SslMode,
    /// TLS on a Unix socket.
    #[error("a Unix socket has no TLS: use sslmode=disable or leave it out")]
    TlsOnUnixSocket,
    /// A parameter that we would have to ignore.
    #[error("the parameter {0:?} is not supported: leave it out")]
    UnknownParameter(String),
    /// Percent-encoding that is not UTF-8, or a port out of range.
    #[error("the value of {0} is not valid")]
    Value(&'static str),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `url` refuses postgres:///db?host=… with a user part, and postgres://user@/db: libpq takes both. Give it a
        // host where there is none and take it away again.
        let (scheme, rest) = text.split_once("://").ok_or(DatabaseUrlError::Malformed)?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(DatabaseUrlError::Scheme);
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // Else the rest of a password would be taken for a path or a parameter, and be named in an error.
        if tail.contains('@') {
            return Err(DatabaseUrlError::Unescaped);
        }
        let (credentials, address) = authority
            .rsplit_once('@')
            .map_or(("", authority), |(user, host)| (user, host));
        let no_host = address.is_empty() || address.starts_with(':');
        let at = if credentials.is_empty() { "" } else { "@" };
        let filler = if no_host { "localhost" } else { "" };
        let url = url::Url::parse(&format!("{scheme}://{credentials}{at}{filler}{address}{tail}"))
            .map_err(|_| DatabaseUrlError::Malformed)?;

        let decode = |part: &str, what| percent_decode(part).ok_or(DatabaseUrlError::Value(what));
        let mut host = match url.host_str() {
            Some(name) if !no_host => {
                let name = decode(name.trim_start_matches('[').trim_end_matches(']'), "host")?;
                Some(if name.starts_with('/') {
                    Host::Unix(name.into())
                } else {
                    Host::Tcp(name)
                })
            }
            _ => None,
        };
        let mut port = url.port().unwrap_or(5432);
        let mut user = decode(url.username(), "user")?;
        let mut password = url.password().map(|part| decode(part, "password")).transpose()?;
        let mut database = decode(url.path().trim_start_matches('/'), "database")?;
        let (mut sslmode, mut sslrootcert) = (None, None);
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "host" => {
                    host = Some(if value.starts_with('/') {
                        Host::Unix(value.as_ref().into())
                    } else {
                        Host::Tcp(value.into_owned())
                    });
                }
                "port" => port = value.parse().map_err(|_| DatabaseUrlError::Value("port"))?,
                "user" => user = value.into_owned(),
                "password" => password = Some(value.into_owned()),
                "dbname" => database = value.into_owned(),
                "sslmode" => {
                    sslmode = Some(match value.as_ref() {
                        "disable" => SslMode::Disable,
                        "require" => SslMode::Require,
                        "verify-ca" => SslMode::VerifyCa,
                        "verify-full" => SslMode::VerifyFull,
                        _ => return Err(DatabaseUrlError::SslMode),
                    });
                }
                "sslrootcert" => sslrootcert = Some(PathBuf::from(value.as_ref())),
                // The name and the time-outs of connections are ours to set, and harmless to ask for.
                "application_name" | "connect_timeout" => {}
                other => return Err(DatabaseUrlError::UnknownParameter(other.to_owned())),
            }
        }
        let host = host.unwrap_or_else(|| Host::Tcp("localhost".to_owned()));
        if user.is_empty() {
            return Err(DatabaseUrlError::NoUser);
        }
        if database.is_empty() {
            return Err(DatabaseUrlError::NoDatabase);
        }
        let sslmode = match (&host, sslmode) {
            (Host::Unix(_), None | Some(SslMode::Disable)) => SslMode::Disable,
            (Host::Unix(_), Some(_)) => return Err(DatabaseUrlError::TlsOnUnixSocket),
            (Host::Tcp(_), Some(mode)) => mode,
            // Passwords and messages cross a network: TLS unless somebody says no. This machine needs none.
            (Host::Tcp(name), None) if is_loopback(name) => SslMode::Disable,
            (Host::Tcp(_), None) => SslMode::Require,
        };
        Ok(Self {
            host,
            port,
            user,
            password: password.map(SecretString::from),
            database,
            sslmode,
            sslrootcert,
        })
    }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn percent_decode(text: &str) -> Option<String> {
    // form_urlencoded decodes percent sequences; a literal plus must survive it.
    let escaped = text.replace('+', "%2B");
    let bytes: Vec<u8> = {
        let mut bytes = Vec::with_capacity(escaped.len());
        let mut rest = escaped.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            if byte == b'%' {
                let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = tail.get(2..)?;
            } else {
                bytes.push(byte);
                rest = tail;
            }
        }
        bytes
    };
    String::from_utf8(bytes).ok()
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
        assert_eq!(error("postgres://me:pa?ss@host/crm"), DatabaseUrlError::Unescaped);
        assert_eq!(error("postgres://me:pa/ss@host/crm"), DatabaseUrlError::Unescaped);
        assert_eq!(error("postgres://me:%FF@host/crm"), DatabaseUrlError::Value("password"));
    }

    #[test]
    fn never_prints_the_password() {
        let url: DatabaseUrl = "postgres://me:hunter2@db.example.com/crm".parse().unwrap();
        assert!(!format!("{url} {url:?}").contains("hunter2"));
    }
}
