//! What a number's task knows in memory of its due messages: those that this process has stored, by conversation. Pure.
//!
//! So a message that is stored here is claimed by its id, at once; nothing is read back. The Site DB decides all the same:
//! a claim takes a message only if it is the first of its conversation. What this queue does not know (other processes'
//! messages, those that wait, and what does not fit in memory) is found by a scan, which asks the Site DB for all that is due.
//!
//! One message of a conversation is under way at a time. When it ends, the next one is ready, or, where only the Site DB
//! knows the next one, a scan is due.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

/// Most messages that are kept; about 50 bytes each. Further ones are found by scans.
const MAX_MESSAGES: usize = 100_000;

/// A message that may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) conversation_id: Uuid,
    pub(super) id: Uuid,
}

/// The messages of a number that are known here.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    conversations: HashMap<Uuid, Conversation>,
    /// Conversations whose first message may be claimed, in the order in which they became ready. May name some that are
    /// not ready any more.
    ready: VecDeque<Uuid>,
    messages: usize,
    scan_due: bool,
}

#[derive(Debug, Default)]
struct Conversation {
    waiting: VecDeque<Uuid>,
    /// A message of it is being claimed or sent.
    busy: bool,
    /// The Site DB has messages of it that are not in `waiting`.
    more: bool,
}

impl SendQueue {
    /// A message was stored.
    pub(super) fn push(&mut self, candidate: Candidate) {
        if self.messages >= MAX_MESSAGES {
            self.scan_due = true;
            return;
        }
        self.messages += 1;
        let conversation = self.conversations.entry(candidate.conversation_id).or_default();
        conversation.waiting.push_back(candidate.id);
        if !conversation.busy && conversation.waiting.len() == 1 {
            self.ready.push_back(candidate.conversation_id);
        }
    }

    /// Takes up to `limit` messages, each the first of its conversation, to be claimed.
    pub(super) fn take(&mut self, limit: usize) -> Vec<Candidate> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(conversation_id) = self.ready.pop_front()
        {
            let Some(conversation) = self.conversations.get_mut(&conversation_id) else {
                continue;
            };
            if conversation.busy {
                continue;
            }
            if let Some(id) = conversation.waiting.pop_front() {
                conversation.busy = true;
                self.messages -= 1;
                taken.push(Candidate { conversation_id, id });
            }
        }
        taken
    }

    /// Whether a message may be ready, or a scan is due.
    pub(super) fn has_work(&self) -> bool {
        self.scan_due || !self.ready.is_empty()
    }

    /// Whether no message is being claimed or sent.
    pub(super) fn is_idle(&self) -> bool {
        !self.conversations.values().any(|conversation| conversation.busy)
    }

    /// A scan has claimed a message. `more`: another one waits in its conversation.
    pub(super) fn claimed(&mut self, candidate: Candidate, more: bool) {
        let conversation = self.conversations.entry(candidate.conversation_id).or_default();
        conversation.busy = true;
        conversation.more |= more;
        let before = conversation.waiting.len();
        conversation.waiting.retain(|id| *id != candidate.id);
        self.messages -= before - conversation.waiting.len();
    }

    /// A message that was taken was not claimed: an earlier one of its conversation is under way or waits, or it was
    /// cancelled. Only the Site DB knows which is the first now.
    pub(super) fn not_claimed(&mut self, candidate: Candidate) {
        if let Some(conversation) = self.conversations.get_mut(&candidate.conversation_id) {
            conversation.busy = false;
            conversation.more = true;
            self.messages -= conversation.waiting.len();
            conversation.waiting.clear();
        }
    }

    /// No message of the conversation is under way any more.
    pub(super) fn ended(&mut self, conversation_id: Uuid) {
        let Some(conversation) = self.conversations.get_mut(&conversation_id) else {
            return;
        };
        conversation.busy = false;
        if std::mem::take(&mut conversation.more) {
            self.scan_due = true;
        }
        if conversation.waiting.is_empty() {
            self.conversations.remove(&conversation_id);
        } else {
            self.ready.push_back(conversation_id);
        }
    }

    /// The Site DB may have due messages that are not known here.
    pub(super) fn ask_for_scan(&mut self) {
        self.scan_due = true;
    }

    /// Whether a scan is due; a second call says no.
    pub(super) fn take_scan(&mut self) -> bool {
        std::mem::take(&mut self.scan_due)
    }

    /// Forgets all that waits, because nothing can be sent now; scans find it again.
    pub(super) fn forget(&mut self) {
        self.ready.clear();
        self.messages = 0;
        self.scan_due = true;
        self.conversations.retain(|_, conversation| {
            conversation.more |= !conversation.waiting.is_empty();
            conversation.waiting.clear();
            conversation.busy
        });
    }

    /// A scan has claimed everything that was due: conversations of which only the Site DB knew are forgotten.
    pub(super) fn scanned_all(&mut self) {
        self.conversations
            .retain(|_, conversation| conversation.busy || !conversation.waiting.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(conversation: u128, message: u128) -> Candidate {
        Candidate {
            conversation_id: Uuid::from_u128(conversation),
            id: Uuid::from_u128(message),
        }
    }

    fn queue(candidates: &[Candidate]) -> SendQueue {
        let mut queue = SendQueue::default();
        for candidate in candidates {
            queue.push(*candidate);
        }
        queue
    }

    #[test]
    fn one_message_of_a_conversation_is_under_way_at_a_time() {
        let (a1, a2, b1) = (candidate(1, 1), candidate(1, 2), candidate(2, 3));
        let mut queue = queue(&[a1, a2, b1]);
        assert_eq!(queue.take(10), [a1, b1]);
        assert!(!queue.has_work());
        queue.ended(a1.conversation_id);
        assert_eq!(queue.take(10), [a2]);
        queue.ended(a2.conversation_id);
        queue.ended(b1.conversation_id);
        assert!(queue.conversations.is_empty() && queue.take(10).is_empty() && !queue.take_scan());
    }

    #[test]
    fn what_could_not_be_claimed_is_found_by_a_scan_once_the_conversation_is_free() {
        let (a1, a2) = (candidate(1, 1), candidate(1, 2));
        let mut queue = queue(&[a1]);
        queue.take(1);
        queue.not_claimed(a1);
        // A scan has found the one before it, and another message comes meanwhile.
        queue.claimed(candidate(1, 9), false);
        queue.push(a2);
        assert!(queue.take(1).is_empty());
        queue.ended(a1.conversation_id);
        assert!(queue.take_scan());
        assert!(!queue.take_scan());
        assert_eq!(queue.take(1), [a2]);
    }

    #[test]
    fn a_scan_that_claims_a_known_message_takes_it_from_the_queue() {
        let (a1, a2) = (candidate(1, 1), candidate(1, 2));
        let mut queue = queue(&[a1, a2]);
        queue.claimed(a1, true);
        assert!(queue.take(10).is_empty());
        queue.ended(a1.conversation_id);
        assert_eq!(queue.take(10), [a2]);
        assert_eq!(queue.messages, 0);
    }

    #[test]
    fn what_does_not_fit_in_memory_is_found_by_a_scan() {
        let mut queue = SendQueue {
            messages: MAX_MESSAGES,
            ..SendQueue::default()
        };
        queue.push(candidate(1, 1));
        assert!(queue.ready.is_empty() && queue.has_work() && queue.take_scan());
    }

    #[test]
    fn what_was_forgotten_is_found_by_a_scan() {
        let mut queue = queue(&[candidate(1, 1), candidate(1, 2), candidate(2, 3)]);
        queue.take(1);
        queue.forget();
        assert!(queue.take(10).is_empty() && queue.take_scan());
        queue.ended(Uuid::from_u128(1));
        assert!(queue.take_scan() && queue.conversations.is_empty());
    }
}
