//! A server with the numbers of two firms, and a client of each; behind it a Meta that keeps what it was asked.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twinlog::config::{ApiToken, Config};
use twinlog::migrations;

use super::meta_stub::MetaStub;
use super::*;

/// A second number, of another firm.
pub(super) const OTHER: &str = "106540352242955";
pub(super) const WABA: &str = "102290129340398";
pub(super) const OTHER_WABA: &str = "102290129340399";
/// Meta's tokens of the two numbers.
pub(super) const META_ONE: &str = "EAAone|secret";
pub(super) const META_TWO: &str = "EAAtwo|secret";
/// The token of a client that may use the second number only.
pub(super) const OTHER_CLIENT: &str = "other-token";

pub(super) struct Firms {
    pub(super) db: harness::Databases,
    pub(super) meta: MetaStub,
    pub(super) server: Server,
}

/// A server with two numbers of two firms, a client of each.
pub(super) async fn firms(objects: Vec<(&'static str, &'static str, Value)>) -> Firms {
    firms_with(objects, |_| {}).await
}

pub(super) async fn firms_with(
    objects: Vec<(&'static str, &'static str, Value)>,
    change: impl FnOnce(&mut Config),
) -> Firms {
    let db = harness::databases().await;
    migrations::apply_site(&db.site.database_url()).await.unwrap();
    let meta = MetaStub::start(objects).await;
    let mut config = configuration(&db.site.url, &meta.url(), META_ONE);
    let mut second = config.whatsapp.accounts[0].clone();
    second.phone_number_id = OTHER.to_owned();
    second.waba_id = Some(OTHER_WABA.to_owned());
    second.access_token = META_TWO.into();
    config.whatsapp.accounts.push(second);
    config.tokens[0].numbers = Some(vec![NUMBER.to_owned()]);
    config.tokens.push(ApiToken {
        name: "other".to_owned(),
        sha256: Sha256::digest(OTHER_CLIENT).into(),
        numbers: Some(vec![OTHER.to_owned()]),
        automation: false,
    });
    change(&mut config);
    let server = Server::start(config).await;
    server.ready().await;
    Firms { db, meta, server }
}

impl Firms {
    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        token: &str,
        content_type: &str,
        body: impl Into<String>,
    ) -> Answer {
        let request = self
            .server
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.server.url))
            .bearer_auth(token)
            .header("content-type", content_type)
            .body(body.into());
        answer(request.send().await.unwrap()).await
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, token, "application/json", "").await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask("POST", path, TOKEN, "application/json", body.to_string())
            .await
    }

    /// Sends a request's head as it stands; the status of the answer.
    pub(super) async fn raw(&self, line: &str, headers: &str) -> u16 {
        let mut stream = TcpStream::connect(self.server.url.trim_start_matches("http://"))
            .await
            .unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{headers}connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }
}
