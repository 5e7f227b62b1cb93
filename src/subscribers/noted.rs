//! Whether webhooks are kept for all subscribers: before that none may be stored, or a new subscriber would miss the first ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many subscribers the Site DB does not know yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Noted(Arc<AtomicUsize>);

impl Noted {
    pub(super) fn of(subscribers: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(subscribers)))
    }

    /// One more is known.
    pub(super) fn one(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether all are.
    #[must_use]
    pub fn all(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}
