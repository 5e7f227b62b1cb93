//! Several calls on one connection without waiting for each answer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// A call of the driver: it is sent when it is first polled (the driver encodes and queues before it waits).
pub(super) type Call<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Sends all calls in order, then collects the answers, which come in the same order. Polling each once in order is
/// what fixes the order on the wire; a general join makes no promise about that.
pub(super) async fn in_order<T: Send>(mut calls: Vec<Call<'_, T>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = calls.iter().map(|_| None).collect();
    let mut sent = false;
    let mut next = 0;
    poll_fn(|context| {
        if !sent {
            sent = true;
            for (call, answer) in calls.iter_mut().zip(&mut answers) {
                if let Poll::Ready(value) = call.as_mut().poll(context) {
                    *answer = Some(value);
                }
            }
        }
        while let (Some(call), Some(answer)) = (calls.get_mut(next), answers.get_mut(next)) {
            if answer.is_none() {
                match call.as_mut().poll(context) {
                    Poll::Ready(value) => *answer = Some(value),
                    Poll::Pending => return Poll::Pending,
                }
            }
            next += 1;
        }
        Poll::Ready(())
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn calls_start_and_answer_in_order() {
        let started = Mutex::new(Vec::new());
        let calls: Vec<Call<'_, u32>> = (0..100)
            .map(|number| {
                let started = &started;
                Box::pin(async move {
                    started.lock().unwrap().push(number);
                    if number % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    number
                }) as Call<'_, u32>
            })
            .collect();
        let expected: Vec<u32> = (0..100).collect();
        assert_eq!(in_order(calls).await, expected);
        assert_eq!(*started.lock().unwrap(), expected);
    }
}
