//! Media on their way through: uploads to the Graph API and downloads from Meta's media hosts, streamed in both directions,
//! so that the largest one needs no more memory than the smallest.
//!
//! A transfer has no time-out of its own, because 100 MB over a slow line take long: it must keep a slowest rate, and must
//! never stand still for long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use secrecy::ExposeSecret;
use tokio::time::Instant;
use url::Url;

use super::client::{Account, MAX_PASSED, NoAnswer, PassedAnswer};

/// What a body is read from.
pub type ByteStream<E> = Pin<Box<dyn Stream<Item = Result<Bytes, E>> + Send>>;

/// The slowest rate that a transfer may have, in bytes a second: below that of the slowest mobile network.
const SLOWEST: u64 = 8 * 1024;
/// Time that a transfer has beside what the slowest rate allows.
const GRACE: Duration = Duration::from_secs(30);
/// Longest time without a byte.
const LONGEST_PAUSE: Duration = Duration::from_secs(45);
/// How long the Graph API may take to answer after the last byte: it checks and converts what it got. Below the time after
/// which the listener closes a silent connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(80);
/// How long a media host may take until its answer begins.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Most redirects that a media host may answer with.
const MAX_REDIRECTS: usize = 3;
/// How often a transfer's rate is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An upload, as a client sends it.
pub struct Upload<E> {
    /// Version and path, without a leading slash.
    pub path: String,
    /// The media type of the body.
    pub content_type: String,
    /// Its length, if the client named it.
    pub length: Option<u64>,
    /// The form, which the caller has checked.
    pub body: ByteStream<E>,
}

/// A medium's bytes, or the media host's refusal.
pub struct Download {
    /// HTTP status.
    pub status: u16,
    /// The headers of the answer, without what is only for the connection.
    pub headers: HeaderMap,
    /// The bytes.
    pub body: ByteStream<Interrupted>,
}

/// A medium could not be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DownloadError {
    /// The link leads elsewhere than to Meta.
    #[error("the medium's link does not lead to a host of whatsapp.media_hosts")]
    Host,
    /// The media host gave no answer.
    #[error("the media host did not answer ({0})")]
    NoAnswer(&'static str),
}

/// A body that ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transfer was interrupted: {0}")]
pub struct Interrupted(&'static str);

/// What has passed so far.
#[derive(Debug, Default)]
struct Passed {
    bytes: AtomicU64,
    ended: std::sync::atomic::AtomicBool,
}

impl Account {
    /// Uploads a medium: streams its form to the Graph API.
    ///
    /// # Errors
    /// The Graph API did not answer, or the upload was too slow, or ended early.
    pub async fn upload<E>(&self, upload: Upload<E>) -> Result<PassedAnswer, NoAnswer>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let passed = Arc::new(Passed::default());
        let counted = counted(upload.body, Arc::clone(&passed));
        let url = format!("{}/{}", self.client().base(), upload.path);
        let mut request = self
            .client()
            .http()
            .post(url)
            .bearer_auth(self.access_token().expose_secret())
            .header(CONTENT_TYPE, upload.content_type)
            // The watch below limits the time.
            .timeout(Duration::from_secs(86_400))
            .body(reqwest::Body::wrap_stream(counted));
        if let Some(length) = upload.length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let answered = async {
            let response = request.send().await.map_err(|error| NoAnswer::of(&error))?;
            self.client().read(response, MAX_PASSED).await
        };
        tokio::select! {
            biased;
            answered = answered => answered,
            why = too_slow(&passed) => Err(NoAnswer(why)),
        }
    }

    /// Begins to download a medium from a link of Meta's, with the number's token.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub async fn download(&self, link: &Url, asked: &HeaderMap) -> Result<Download, DownloadError> {
        let hosts = self.client().media();
        let mut link = link.clone();
        for _ in 0..=MAX_REDIRECTS {
            if !hosts.allows(&link) {
                return Err(DownloadError::Host);
            }
            let request = hosts
                .http
                .get(link.clone())
                .headers(asked.clone())
                .bearer_auth(self.access_token().expose_secret());
            let response = tokio::time::timeout(DOWNLOAD_TIMEOUT, request.send())
                .await
                .map_err(|_| DownloadError::NoAnswer("it took too long"))?
                .map_err(|error| DownloadError::NoAnswer(NoAnswer::of(&error).0))?;
            if response.status().is_redirection() && response.status().as_u16() != 304 {
                let target = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                link = target
                    .and_then(|to| link.join(to).ok())
                    .ok_or(DownloadError::NoAnswer("it redirects to nowhere"))?;
                continue;
            }
            return Ok(Download {
                status: response.status().as_u16(),
                headers: self.passed_headers(response.headers()),
                body: paced(Box::pin(response.bytes_stream())),
            });
        }
        Err(DownloadError::NoAnswer("it redirects too often"))
    }

    /// The headers of a media host's answer that are for the client.
    fn passed_headers(&self, headers: &HeaderMap) -> HeaderMap {
        const PASSED: [HeaderName; 9] = [
            reqwest::header::CONTENT_TYPE,
            reqwest::header::CONTENT_LENGTH,
            reqwest::header::CONTENT_RANGE,
            reqwest::header::CONTENT_DISPOSITION,
            reqwest::header::CONTENT_ENCODING,
            reqwest::header::ACCEPT_RANGES,
            reqwest::header::ETAG,
            reqwest::header::LAST_MODIFIED,
            reqwest::header::CACHE_CONTROL,
        ];
        PASSED
            .into_iter()
            .filter_map(|name| {
                let value = headers.get(&name)?;
                let text = value.to_str().ok()?;
                match self.client().secrets().cut_text(text) {
                    Some(_) => None,
                    None => Some((name, value.clone())),
                }
            })
            .collect()
    }
}

/// The same body, counted.
fn counted<E>(body: ByteStream<E>, passed: Arc<Passed>) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static
where
    E: Send + 'static,
{
    stream::unfold(Some((body, passed)), |state| async move {
        let (mut body, passed) = state?;
        match body.next().await {
            Some(Ok(chunk)) => {
                let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                passed.bytes.fetch_add(length, Ordering::Relaxed);
                Some((Ok(chunk), Some((body, passed))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                passed.ended.store(true, Ordering::Relaxed);
                None
            }
        }
    })
}

/// Ends when an upload is too slow, or its answer takes too long; with the reason.
async fn too_slow(passed: &Passed) -> &'static str {
    let started = Instant::now();
    let (mut last, mut moved) = (0, started);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (now, bytes) = (Instant::now(), passed.bytes.load(Ordering::Relaxed));
        if bytes != last {
            (last, moved) = (bytes, now);
        }
        if passed.ended.load(Ordering::Relaxed) {
            if now - moved > ANSWER_TIMEOUT {
                return "the Graph API did not answer in time";
            }
        } else if now - moved > LONGEST_PAUSE {
            return "the upload stood still";
        } else if now - started > allowed(bytes) {
            return "the upload was too slow";
        }
    }
}

/// The time that this number of bytes may take.
fn allowed(bytes: u64) -> Duration {
    GRACE + Duration::from_secs(bytes / SLOWEST)
}

/// A download's body, which ends with an error if the media host is too slow. Time in which the client does not read does
/// not count: the listener has its own limit for that.
fn paced(body: ByteStream<reqwest::Error>) -> ByteStream<Interrupted> {
    let state = Some((body, Duration::ZERO, 0_u64));
    Box::pin(stream::unfold(state, |state| async move {
        let (mut body, mut waited, mut bytes) = state?;
        let asked = Instant::now();
        let next = tokio::time::timeout(LONGEST_PAUSE, body.next()).await;
        waited += asked.elapsed();
        let ended = |why| Some((Err(Interrupted(why)), None));
        match next {
            Ok(Some(Ok(chunk))) => {
                bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                if waited > allowed(bytes) {
                    return ended("the media host is too slow");
                }
                Some((Ok(chunk), Some((body, waited, bytes))))
            }
            Ok(Some(Err(_))) => ended("the connection to the media host broke"),
            Ok(None) => None,
            Err(_) => ended("the media host stands still"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_be_slow_but_must_not_stand_still() {
        let started = Instant::now();
        let seconds = || started.elapsed().as_secs();
        // GIVEN 100 MB at 100 KB/s, and an answer after 70 s
        let passed = Passed::default();
        let upload = async {
            for _ in 0..1000 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                passed.bytes.fetch_add(100_000, Ordering::Relaxed);
            }
            passed.ended.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(70)).await;
        };
        tokio::select! {
            why = too_slow(&passed) => panic!("{why} after {} s", seconds()),
            () = upload => {}
        }
        // Then the answer takes too long.
        assert_eq!(too_slow(&passed).await, "the Graph API did not answer in time");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_drips_or_stops_ends() {
        let passed = Passed::default();
        passed.bytes.store(50_000_000, Ordering::Relaxed);
        let started = Instant::now();
        assert_eq!(too_slow(&passed).await, "the upload stood still");
        assert!(started.elapsed() <= LONGEST_PAUSE + 2 * LOOK_EVERY);
        let passed = Passed::default();
        let dripping = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                passed.bytes.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            why = too_slow(&passed) => assert_eq!(why, "the upload was too slow"),
            () = dripping => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_media_host_that_drips_or_stops_ends_a_download() {
        let silent: ByteStream<reqwest::Error> = Box::pin(stream::pending());
        let ended = paced(silent).next().await;
        assert_eq!(
            ended.map(|chunk| chunk.map_err(|error| error.0)),
            Some(Err("the media host stands still"))
        );
        let dripping: ByteStream<reqwest::Error> = Box::pin(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        }));
        let chunks: Vec<_> = paced(dripping).collect().await;
        let last = chunks.last().cloned().map(|chunk| chunk.map_err(|error| error.0));
        assert_eq!(last, Some(Err("the media host is too slow")));
    }
}
