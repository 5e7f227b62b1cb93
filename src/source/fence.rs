//! Fences: marks that we write into the Site DB's log, so that a chunk's read has a place in the stream.
//!
//! A fence is a *transactional* logical message. It arrives in commit order like any transaction. Its commit is flushed
//! before the call returns (otherwise an idle server sends it only after the WAL writer's next round). It needs no
//! table, and no right except to call `pg_logical_emit_message`.
//!
//! Source: <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION>.

use uuid::Uuid;

/// The prefix of our messages; all others are ignored.
pub const PREFIX: &str = "twinlog";

/// A chunk's identity in the log. Random, so that a fence of an earlier run is never taken for one of this run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId(pub Uuid);

/// The mark before or after a chunk's read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// The chunk's read begins after this.
    Low(ChunkId),
    /// The chunk's read ended before this.
    High(ChunkId),
}

impl Fence {
    /// The message's content.
    #[must_use]
    pub fn content(self) -> String {
        match self {
            Self::Low(ChunkId(id)) => format!("low {id}"),
            Self::High(ChunkId(id)) => format!("high {id}"),
        }
    }

    /// Parses a logical message; `None` if it is not a fence, or one of another version.
    #[must_use]
    pub fn parse(prefix: &str, content: &[u8]) -> Option<Self> {
        if prefix != PREFIX {
            return None;
        }
        let content = std::str::from_utf8(content).ok()?;
        let (kind, id) = content.split_once(' ')?;
        let id = ChunkId(id.parse().ok()?);
        match kind {
            "low" => Some(Self::Low(id)),
            "high" => Some(Self::High(id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let id = ChunkId(Uuid::new_v4());
        for fence in [Fence::Low(id), Fence::High(id)] {
            assert_eq!(Fence::parse(PREFIX, fence.content().as_bytes()), Some(fence));
            assert_eq!(Fence::parse("other", fence.content().as_bytes()), None);
        }
        for content in [
            &b""[..],
            b"low",
            b"low x",
            b"mid 7a4b6c9e-0000-0000-0000-000000000000",
            b"\xff",
        ] {
            assert_eq!(Fence::parse(PREFIX, content), None);
        }
    }
}
