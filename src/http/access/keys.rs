//! The keys that JSON Web Tokens may be signed with: the secret of the configuration, and public keys from a file or an address.
//!
//! Public keys are read at their first use, after [`FRESH`], and when a token names one that is not known (issuers change them);
//! never more often than every [`PAUSE`], so that strangers' tokens cause no load. While they can't be read, the last ones count.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::JwtKeySource;
use crate::http::summed::{self, Line};

/// How long keys are used without looking for new ones.
const FRESH: Duration = Duration::from_secs(600);
/// The least time between two looks.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a look may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most who wait for a look: whoever names keys that nobody knows must not hold all connections.
const WAITING: usize = 32;
/// Most bytes of a key set; each key has less than a kilobyte.
const MAX_BYTES: usize = 256 * 1024;

/// The keys.
pub(super) struct Keys {
    secret: Option<DecodingKey>,
    source: Option<JwtKeySource>,
    known: Mutex<Known>,
    /// One look at a time.
    reading: tokio::sync::Mutex<()>,
    waiting: Semaphore,
}

/// What a look for keys found.
pub(super) enum Lookup {
    /// The keys that the token may be signed with; at least one.
    Found(Vec<DecodingKey>),
    /// None that it may be signed with.
    None,
    /// The keys could not be read yet, or too many wait for them.
    Unreadable,
}

#[derive(Default)]
struct Known {
    keys: Option<Arc<Vec<PublicKey>>>,
    read: Option<Instant>,
    tried: Option<Instant>,
}

struct PublicKey {
    /// Its name, which tokens give.
    id: Option<String>,
    key: DecodingKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Keys {
    pub(super) fn new(secret: Option<&SecretString>, source: Option<JwtKeySource>) -> Self {
        Self {
            secret: secret.map(|secret| DecodingKey::from_secret(secret.expose_secret().as_bytes())),
            source,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// The keys that a token with this header may be signed with.
    pub(super) async fn find(&self, header: &Header) -> Lookup {
        if matches!(header.alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
            let secret = self.secret.clone().filter(|_| header.alg == Algorithm::HS256);
            return secret.map_or(Lookup::None, |secret| Lookup::Found(vec![secret]));
        }
        let Some(source) = &self.source else {
            return Lookup::None;
        };
        let found = self.among_known(header);
        let (fresh, _) = self.age();
        if let (Some(found), true) = (&found, fresh)
            && !found.is_empty()
        {
            return Lookup::Found(found.clone());
        }
        let _one = match (self.reading.try_lock(), found) {
            (Ok(one), _) => one,
            // While another looks, these still count.
            (Err(_), Some(found)) if !found.is_empty() => return Lookup::Found(found),
            _ => {
                let Ok(_place) = self.waiting.try_acquire() else {
                    return Lookup::Unreadable;
                };
                self.reading.lock().await
            }
        };
        // Another may have looked meanwhile.
        let (fresh, may_look) = self.age();
        let again = self.among_known(header);
        let lacks = again.as_ref().is_none_or(Vec::is_empty);
        if may_look && (lacks || !fresh) {
            self.known().tried = Some(Instant::now());
            match read(source).await {
                Ok(keys) => {
                    let mut known = self.known();
                    known.keys = Some(Arc::new(keys));
                    known.read = Some(Instant::now());
                }
                Err(error) => summed::write(Line::JwtKeys, move |times| {
                    tracing::error!(
                        times,
                        hint = "look at auth.jwt_keys; tokens that are signed with the keys known before are still accepted",
                        "the keys of JSON Web Tokens can't be read: {error}"
                    );
                }),
            }
        }
        match self.among_known(header) {
            Some(found) if found.is_empty() => Lookup::None,
            Some(found) => Lookup::Found(found),
            None => Lookup::Unreadable,
        }
    }

    /// `None`: no keys were read yet.
    fn among_known(&self, header: &Header) -> Option<Vec<DecodingKey>> {
        let keys = Arc::clone(self.known().keys.as_ref()?);
        let named = |key: &&PublicKey| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        Some(keys.iter().filter(named).map(|key| key.key.clone()).collect())
    }

    /// Whether the keys are fresh, and whether it is time for another look.
    fn age(&self) -> (bool, bool) {
        let known = self.known();
        let fresh = known.read.is_some_and(|read| read.elapsed() < FRESH);
        (fresh, known.tried.is_none_or(|tried| tried.elapsed() >= PAUSE))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why no keys could be read.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{}", with_causes(.0))]
    Http(reqwest::Error),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("there are more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("this is no JSON Web Key Set")]
    NoKeySet,
    #[error("no key is an ES256, RS256 or EdDSA key")]
    Empty,
}

/// The error with its cause; addresses may have keys in them.
fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn read(source: &JwtKeySource) -> Result<Vec<PublicKey>, KeysError> {
    let bytes = match source {
        JwtKeySource::File(path) => {
            let mut bytes = Vec::new();
            let file = tokio::fs::File::open(path).await?;
            file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await?;
            if bytes.len() > MAX_BYTES {
                return Err(KeysError::TooLong);
            }
            bytes
        }
        JwtKeySource::Url(url) => fetch(url.clone()).await?,
    };
    parse(&bytes)
}

async fn fetch(url: url::Url) -> Result<Vec<u8>, KeysError> {
    // `main` installs it too, but a user of the library may not. The error only says that it is installed already.
    let http = |error: reqwest::Error| KeysError::Http(error.without_url());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        // To where https does not hold, perhaps.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(http)?;
    let mut response = client.get(url).send().await.map_err(http)?;
    if !response.status().is_success() {
        return Err(KeysError::Status(response.status().as_u16()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(http)? {
        if bytes.len() + piece.len() > MAX_BYTES {
            return Err(KeysError::TooLong);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Keys of kinds that we don't know are left out, and secrets: they don't belong into a set that everybody can read.
fn parse(bytes: &[u8]) -> Result<Vec<PublicKey>, KeysError> {
    let set: Value = serde_json::from_slice(bytes).map_err(|_| KeysError::NoKeySet)?;
    let keys = set["keys"].as_array().ok_or(KeysError::NoKeySet)?;
    let usable = keys.iter().filter_map(|key| {
        let key: Jwk = serde_json::from_value(key.clone()).ok()?;
        if matches!(key.algorithm, AlgorithmParameters::OctetKey(_)) {
            return None;
        }
        Some(PublicKey {
            key: DecodingKey::from_jwk(&key).ok()?,
            id: key.common.key_id,
        })
    });
    let usable: Vec<_> = usable.collect();
    if usable.is_empty() {
        return Err(KeysError::Empty);
    }
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn few_wait_for_an_issuer_that_does_not_answer_and_the_others_are_told_so_at_once() {
        // GIVEN an issuer that takes connections and says nothing
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", silent.local_addr().unwrap());
        let source = JwtKeySource::Url(url.parse().unwrap());
        let keys = Arc::new(Keys::new(None, Some(source)));
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("x".to_owned());
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..WAITING + 1 {
            let (keys, header) = (Arc::clone(&keys), header.clone());
            asking.spawn(async move { keys.find(&header).await });
        }
        while keys.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }

        // WHEN one more asks, THEN it does not wait
        assert!(matches!(keys.find(&header).await, Lookup::Unreadable));
        assert_eq!(asking.len(), WAITING + 1);
        assert!(asking.try_join_next().is_none());
    }
}
