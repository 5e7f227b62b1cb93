//! The media that a number keeps.

use std::collections::VecDeque;

use axum::body::Bytes;

/// Media that a number keeps; a further one replaces the oldest. (Meta deletes them by age, after 30 days.)
const MAX: usize = 16;
/// Most bytes of all media of a number.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// What was uploaded to a number, the newest first.
#[derive(Debug, Default)]
pub(super) struct MediaStore(VecDeque<Medium>);

#[derive(Debug, Clone)]
pub(super) struct Medium {
    pub(super) id: String,
    pub(super) mime_type: String,
    pub(super) bytes: Bytes,
}

impl MediaStore {
    pub(super) fn keep(&mut self, medium: Medium) {
        self.0.truncate(MAX - 1);
        self.0.push_front(medium);
        while self.0.len() > 1 && self.0.iter().map(|medium| medium.bytes.len()).sum::<usize>() > MAX_BYTES {
            self.0.pop_back();
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<&Medium> {
        self.0.iter().find(|medium| medium.id == id)
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.0.retain(|medium| medium.id != id);
    }
}
