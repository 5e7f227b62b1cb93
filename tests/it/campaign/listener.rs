//! A process that reads the events from the first one on, and goes on where it stopped whenever the Site DB is back.

use std::time::Duration;

use twinlog::config;
use twinlog::site_db::Pool;
use twinlog::site_db::events::{self, Event, Position, Read};

use crate::harness::{Background, Databases, Rounds, pace};

pub(super) struct Listener {
    reading: Background<Reader>,
}

struct Reader {
    pool: Pool,
    after: Position,
    events: Vec<Event>,
}

impl Listener {
    pub(super) async fn start(db: &Databases) -> Self {
        let pool = Pool::connect(&config::Site {
            url: db.site.database_url(),
            max_connections: 2,
        });
        let after = events::newest(&pool).await.unwrap();
        let reader = Reader {
            pool,
            after,
            events: Vec::new(),
        };
        Self {
            reading: Background::start(|rounds| reader.run(rounds)),
        }
    }

    /// Everything that it has heard.
    pub(super) async fn end(self) -> Vec<Event> {
        let mut reader = self.reading.end().await;
        events::place(&reader.pool).await.unwrap();
        while reader.round().await.unwrap() > 0 {}
        reader.events
    }
}

impl Reader {
    async fn run(mut self, rounds: Rounds) -> Self {
        while rounds.go_on() {
            // Restarts of the Site DB end its connections.
            if self.round().await.is_ok() {
                rounds.count();
            }
            pace(Duration::from_millis(30)).await;
        }
        self
    }

    async fn round(&mut self) -> Result<usize, String> {
        let read = events::read_after(&self.pool, self.after).await;
        let Read::Events(found) = read.map_err(|error| error.to_string())? else {
            panic!("events are gone that were not read");
        };
        let count = found.len();
        if let Some(last) = found.last() {
            self.after = last.position;
        }
        self.events.extend(found);
        Ok(count)
    }
}
