//! A client of Socket.IO over a WebSocket, as small as the tests need it.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::SOON;

/// A connection.
pub(super) struct WebSocket {
    stream: TcpStream,
}

impl WebSocket {
    /// Opens a connection; or the status of a refusal.
    pub(super) async fn open(url: &str, query: &str) -> Result<Self, String> {
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /socket.io/?{query} HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().to_owned();
        if status == "101" {
            Ok(Self { stream })
        } else {
            Err(status)
        }
    }

    /// Opens one, and connects with this `auth`; what the server says to that.
    pub(super) async fn connected(url: &str, auth: &Value) -> (Self, String) {
        let mut socket = Self::open(url, "EIO=4&transport=websocket").await.unwrap();
        assert!(socket.receive().await.unwrap().starts_with("0{"));
        socket.send(&format!("40{auth}")).await;
        let said = socket.receive().await.unwrap();
        (socket, said)
    }

    pub(super) async fn emit(&mut self, event: &str, data: &Value) {
        self.send(&format!("42{}", json!([event, data]))).await;
    }

    /// The next event and its data; `None`: the connection is closed.
    pub(super) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let text = self.receive().await?;
            if let Some(event) = text.strip_prefix("42") {
                let (name, data) = serde_json::from_str(event).unwrap();
                return Some((name, data));
            }
        }
    }

    /// What comes up to the first event that is wanted.
    pub(super) async fn until(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        let listening = async {
            loop {
                let (event, data) = self.next().await.unwrap_or_else(|| panic!("closed after {all:?}"));
                let found = wanted(&event, &data);
                all.push((event, data));
                if found {
                    return;
                }
            }
        };
        let listened = tokio::time::timeout(SOON, listening).await;
        assert!(listened.is_ok(), "it was not heard among {all:?}");
        all
    }

    pub(super) async fn send(&mut self, text: &str) {
        // One masked frame with a text; the mask is zero.
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next text; pings are answered. `None`: the connection is closed.
    pub(super) async fn receive(&mut self) -> Option<String> {
        loop {
            let kind = self.stream.read_u8().await.ok()? & 0x0f;
            let length = match self.stream.read_u8().await.ok()? {
                126 => u64::from(self.stream.read_u16().await.ok()?),
                127 => self.stream.read_u64().await.ok()?,
                short => u64::from(short),
            };
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut bytes).await.ok()?;
            match (kind, String::from_utf8(bytes)) {
                (1, Ok(text)) if text == "2" => self.send("3").await,
                (1, Ok(text)) => return Some(text),
                (8, _) => return None,
                _ => {}
            }
        }
    }
}
