//! One commit for many callers: each hands in an item and waits for its own result; what has queued up while the last
//! commits ran is committed together.
//!
//! ```text
//! commit(item) ─→ queue ─→ a writer takes all that waits ─→ one transaction ─→ each caller its own result
//!                            ↑ up to `writers` at a time          │ refused because of an item: halves,
//!                            └── nothing waits: the writer ends   │ until only that item fails
//! ```
//!
//! - **Nobody waits for company.** There is no timer. An item that finds a writer free is committed at once, alone; items
//!   that come while all writers are busy are the next batch. So the batches grow with the load and with the time of a
//!   commit (a round trip to the database), and a lone item pays one commit.
//! - **An item fails alone.** If the database refuses a batch because of an item, the batch is committed in halves, down to
//!   the item that is refused. Any other error (a lost connection, no connection free) is not an item's fault, and every
//!   caller of the batch gets it. It may have been committed all the same: an error means "not known to be committed".
//! - **Bounded** by items and by bytes that wait ([`Bounds`]); beyond that a caller is told [`GroupError::Full`] at once.
//! - **A caller that goes away does no harm.** Its item is dropped if no writer has taken it, and is committed otherwise.
//!
//! Writers are tasks that end when nothing waits, so there is nothing to start or to stop. Items of one batch are in the
//! order in which they came; two batches at a time have no order.
//!
//! Not here: any database. The [`Committer`] has the statement, and its time limit: a `commit` that never ends blocks one
//! writer for ever.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::oneshot;

/// How a batch of items is committed.
pub trait Committer: Send + Sync + 'static {
    /// What a caller hands in.
    type Item: Send + Sync + 'static;
    /// What a caller gets when its item is committed.
    type Done: Send + 'static;
    /// Why a batch is not committed.
    type Error: Send + Sync + 'static;

    /// Bytes that an item keeps in memory, about.
    fn bytes(item: &Self::Item) -> usize;

    /// Whether the batch was refused because of one of its items, so that the others may still be committed.
    fn is_an_items_fault(error: &Self::Error) -> bool;

    /// Commits all of them in one transaction, or none. Returns one result for each, in the same order.
    fn commit(&self, items: &[Self::Item]) -> impl Future<Output = Result<Vec<Self::Done>, Self::Error>> + Send;
}

/// How much may wait, and how much is committed at a time.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Commits at a time; each needs a connection.
    pub writers: usize,
    /// Most items in a batch.
    pub batch_items: usize,
    /// Most bytes in a batch; a single item may be larger.
    pub batch_bytes: usize,
    /// Most items that wait.
    pub queue_items: usize,
    /// Most bytes that wait.
    pub queue_bytes: usize,
}

/// Why an item is not known to be committed.
#[derive(Debug)]
pub enum GroupError<E> {
    /// Too much waits; the item was not taken.
    Full,
    /// Its batch failed, or this item was refused. Shared by the callers of a batch.
    Failed(Arc<E>),
    /// The writer ended without a result: a panic, or the process is stopping.
    Abandoned,
}

/// Commits items of many callers together. Cheap to clone; clones share the queue.
pub struct GroupCommit<C: Committer>(Arc<Shared<C>>);

struct Shared<C: Committer> {
    committer: C,
    bounds: Bounds,
    queue: Mutex<Queue<Waiting<C>>>,
}

type Outcome<C> = Result<<C as Committer>::Done, GroupError<<C as Committer>::Error>>;

/// An item, and the caller that waits for it.
struct Waiting<C: Committer> {
    item: C::Item,
    bytes: usize,
    caller: oneshot::Sender<Outcome<C>>,
}

/// What waits, and how many writers there are.
struct Queue<W> {
    waiting: VecDeque<W>,
    bytes: usize,
    writers: usize,
}

impl<C: Committer> GroupCommit<C> {
    /// Without any task: writers start with the first item.
    pub fn new(committer: C, bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            committer,
            bounds,
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                bytes: 0,
                writers: 0,
            }),
        }))
    }

    /// Commits an item together with others that wait, and returns its own result.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn commit(&self, item: C::Item) -> Result<C::Done, GroupError<C::Error>> {
        let (caller, result) = oneshot::channel();
        let bytes = C::bytes(&item);
        {
            let mut queue = self.0.queue();
            let bounds = &self.0.bounds;
            if queue.waiting.len() >= bounds.queue_items || queue.bytes.saturating_add(bytes) > bounds.queue_bytes {
                return Err(GroupError::Full);
            }
            queue.bytes += bytes;
            queue.waiting.push_back(Waiting { item, bytes, caller });
            if queue.writers < bounds.writers.max(1) {
                queue.writers += 1;
                tokio::spawn(write(Writer(Arc::clone(&self.0))));
            }
        }
        result.await.unwrap_or(Err(GroupError::Abandoned))
    }
}

impl<C: Committer> Clone for GroupCommit<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Committer> fmt::Debug for GroupCommit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit")
            .field("bounds", &self.0.bounds)
            .finish_non_exhaustive()
    }
}

impl<C: Committer> Shared<C> {
    fn queue(&self) -> MutexGuard<'_, Queue<Waiting<C>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, without items whose callers are gone. `None`: nothing waits, and this writer is no longer counted.
    fn take(&self) -> Option<Vec<Waiting<C>>> {
        let mut queue = self.queue();
        let (mut batch, mut bytes) = (Vec::new(), 0_usize);
        while let Some(next) = queue.waiting.front() {
            let fits =
                batch.len() < self.bounds.batch_items && bytes.saturating_add(next.bytes) <= self.bounds.batch_bytes;
            if !fits && !batch.is_empty() {
                break;
            }
            let Some(next) = queue.waiting.pop_front() else { break };
            queue.bytes = queue.bytes.saturating_sub(next.bytes);
            if !next.caller.is_closed() {
                bytes += next.bytes;
                batch.push(next);
            }
        }
        if batch.is_empty() {
            queue.writers = queue.writers.saturating_sub(1);
            return None;
        }
        Some(batch)
    }
}

/// A writer that is counted in the queue.
struct Writer<C: Committer>(Arc<Shared<C>>);

/// Commits batches until nothing waits.
async fn write<C: Committer>(writer: Writer<C>) {
    while let Some(batch) = writer.0.take() {
        let (mut items, mut callers) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for Waiting { item, caller, .. } in batch {
            items.push(item);
            callers.push(Some(caller));
        }
        let committing = commit_batch(&writer.0.committer, &items, &mut callers);
        // A panic costs this batch, whose callers are told by the end of their channels, and not the writer.
        let _ = AssertUnwindSafe(committing).catch_unwind().await;
    }
}

/// Commits a batch, in halves where an item is refused, and tells each caller.
async fn commit_batch<C: Committer>(
    committer: &C,
    items: &[C::Item],
    callers: &mut [Option<oneshot::Sender<Outcome<C>>>],
) {
    let tell = |caller: Option<&mut Option<oneshot::Sender<Outcome<C>>>>, outcome| {
        if let Some(caller) = caller.and_then(Option::take) {
            // Who went away needs no result.
            let _ = caller.send(outcome);
        }
    };
    let mut todo: Vec<Range<usize>> = std::iter::once(0..items.len()).collect();
    while let Some(range) = todo.pop() {
        let Some(part) = items.get(range.clone()) else { continue };
        match committer.commit(part).await {
            Ok(done) => {
                for (at, done) in range.zip(done) {
                    tell(callers.get_mut(at), Ok(done));
                }
            }
            Err(error) if C::is_an_items_fault(&error) => match halves(&range) {
                Some((first, second)) => {
                    todo.push(second);
                    todo.push(first);
                }
                None => tell(callers.get_mut(range.start), Err(GroupError::Failed(Arc::new(error)))),
            },
            Err(error) => {
                let error = Arc::new(error);
                for range in std::iter::once(range).chain(todo.drain(..)) {
                    for at in range {
                        tell(callers.get_mut(at), Err(GroupError::Failed(Arc::clone(&error))));
                    }
                }
            }
        }
    }
}

/// Both halves of a range; `None` if it has one item.
fn halves(range: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = range.start + range.len() / 2;
    (range.len() > 1).then_some((range.start..middle, middle..range.end))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    /// Keeps the batches that it commits; each waits for a permit.
    struct Book {
        permits: Arc<Semaphore>,
        committed: Arc<Mutex<Vec<Vec<u32>>>>,
    }

    /// What the book refuses, and what breaks its connection or the program.
    const REFUSED: u32 = 13;
    const BREAKS: u32 = 66;
    const PANICS: u32 = 99;

    #[derive(Debug, PartialEq)]
    enum Wrong {
        Item,
        Connection,
    }

    impl Committer for Book {
        type Item = u32;
        type Done = u32;
        type Error = Wrong;

        fn bytes(item: &u32) -> usize {
            usize::try_from(*item).unwrap()
        }

        fn is_an_items_fault(error: &Wrong) -> bool {
            *error == Wrong::Item
        }

        async fn commit(&self, items: &[u32]) -> Result<Vec<u32>, Wrong> {
            self.permits.acquire().await.unwrap().forget();
            if items.contains(&PANICS) {
                panic!("as asked");
            }
            if items.contains(&BREAKS) {
                return Err(Wrong::Connection);
            }
            if items.contains(&REFUSED) {
                return Err(Wrong::Item);
            }
            self.committed.lock().unwrap().push(items.to_vec());
            Ok(items.iter().map(|item| item * 10).collect())
        }
    }

    struct Group {
        group: GroupCommit<Book>,
        permits: Arc<Semaphore>,
        committed: Arc<Mutex<Vec<Vec<u32>>>>,
        callers: JoinSet<(u32, Result<u32, String>)>,
    }

    impl Group {
        fn new(bounds: Bounds) -> Self {
            let (permits, committed) = (Arc::new(Semaphore::new(0)), Arc::default());
            let book = Book {
                permits: Arc::clone(&permits),
                committed: Arc::clone(&committed),
            };
            Self {
                group: GroupCommit::new(book, bounds),
                permits,
                committed,
                callers: JoinSet::new(),
            }
        }

        /// Hands in items, one after the other, and waits until each is queued or taken.
        async fn hand_in(&mut self, items: impl IntoIterator<Item = u32>) {
            for item in items {
                let group = self.group.clone();
                self.callers.spawn(async move {
                    let result = group.commit(item).await.map_err(|error| match error {
                        GroupError::Full => "full".to_owned(),
                        GroupError::Failed(error) => format!("{error:?}"),
                        GroupError::Abandoned => "abandoned".to_owned(),
                    });
                    (item, result)
                });
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            }
        }

        async fn results(&mut self, permits: usize) -> Vec<(u32, Result<u32, String>)> {
            self.permits.add_permits(permits);
            let mut results = std::mem::take(&mut self.callers).join_all().await;
            results.sort();
            results
        }

        fn committed(&self) -> Vec<Vec<u32>> {
            self.committed.lock().unwrap().clone()
        }
    }

    const BOUNDS: Bounds = Bounds {
        writers: 1,
        batch_items: 100,
        batch_bytes: 1000,
        queue_items: 100,
        queue_bytes: 1000,
    };

    #[tokio::test]
    async fn what_comes_while_a_commit_runs_is_the_next_batch() {
        let mut group = Group::new(BOUNDS);
        group.hand_in(1..=5).await;
        let results = group.results(2).await;
        assert_eq!(results, (1..=5).map(|item| (item, Ok(item * 10))).collect::<Vec<_>>());
        assert_eq!(group.committed(), [vec![1], vec![2, 3, 4, 5]]);
    }

    #[tokio::test]
    async fn several_batches_are_on_their_way_at_once() {
        let mut group = Group::new(Bounds { writers: 2, ..BOUNDS });
        group.hand_in(1..=4).await;
        group.results(3).await;
        let mut committed = group.committed();
        committed.sort();
        assert_eq!(committed, [vec![1], vec![2], vec![3, 4]]);
    }

    #[tokio::test]
    async fn an_item_that_is_refused_fails_alone() {
        let mut group = Group::new(BOUNDS);
        group.hand_in([1, 2, 3, REFUSED, 5, 6]).await;
        let results = group.results(100).await;
        for (item, result) in results {
            let expected = if item == REFUSED {
                Err("Item".to_owned())
            } else {
                Ok(item * 10)
            };
            assert_eq!(result, expected, "{item}");
        }
        assert_eq!(group.committed(), [vec![1], vec![2, 3], vec![5, 6]]);
    }

    #[tokio::test]
    async fn a_lost_connection_is_told_to_every_caller_of_the_batch_and_the_next_batch_is_committed() {
        let mut group = Group::new(BOUNDS);
        group.hand_in([1, 2, BREAKS]).await;
        let lost = Err("Connection".to_owned());
        assert_eq!(
            group.results(100).await,
            [(1, Ok(10)), (2, lost.clone()), (BREAKS, lost)]
        );
        group.hand_in([3]).await;
        assert_eq!(group.results(0).await, [(3, Ok(30))]);
    }

    #[tokio::test]
    async fn a_panic_costs_its_batch_alone() {
        let mut group = Group::new(BOUNDS);
        group.hand_in([1, 2, PANICS]).await;
        let lost = Err("abandoned".to_owned());
        assert_eq!(
            group.results(100).await,
            [(1, Ok(10)), (2, lost.clone()), (PANICS, lost)]
        );
        group.hand_in([3]).await;
        assert_eq!(group.results(0).await, [(3, Ok(30))]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let bounds = Bounds {
            queue_items: 2,
            queue_bytes: 50,
            ..BOUNDS
        };
        let mut group = Group::new(bounds);
        // The first is taken by the writer, so it does not wait.
        group.hand_in([1, 40, 11, 10, 2]).await;
        let full = || Err("full".to_owned());
        let results = group.results(100).await;
        assert_eq!(
            results,
            [(1, Ok(10)), (2, full()), (10, Ok(100)), (11, full()), (40, Ok(400))]
        );
    }

    #[tokio::test]
    async fn a_batch_ends_at_its_bounds_but_has_at_least_one_item() {
        let bounds = Bounds {
            batch_items: 3,
            batch_bytes: 10,
            ..BOUNDS
        };
        let mut group = Group::new(bounds);
        group.hand_in([1, 2, 3, 4, 40, 5, 6]).await;
        group.results(100).await;
        assert_eq!(group.committed(), [vec![1], vec![2, 3, 4], vec![40], vec![5], vec![6]]);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_does_no_harm() {
        let mut group = Group::new(BOUNDS);
        group.hand_in([1, 2]).await;
        let gone = tokio::time::timeout(Duration::from_millis(1), group.group.commit(3)).await;
        assert!(gone.is_err());
        group.hand_in([4]).await;
        assert_eq!(group.results(100).await, [(1, Ok(10)), (2, Ok(20)), (4, Ok(40))]);
        assert_eq!(group.committed(), [vec![1], vec![2, 4]]);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_while_its_item_is_committed_does_no_harm() {
        let mut group = Group::new(BOUNDS);
        let gone = tokio::time::timeout(Duration::from_millis(1), group.group.commit(1)).await;
        assert!(gone.is_err());
        group.hand_in([2]).await;
        assert_eq!(group.results(100).await, [(2, Ok(20))]);
        assert_eq!(group.committed(), [vec![1], vec![2]]);
    }
}
