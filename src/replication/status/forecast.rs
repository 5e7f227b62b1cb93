//! When the slot will be full: its headroom, divided by the rate at which the WAL that it keeps grows.
//!
//! What a slot keeps goes up and down by itself, as the server moves the slot's start on only now and then. So the rate is the
//! slope of a line through the samples of some minutes, and a slope that is within that noise says nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time over which the growth is measured.
const WINDOW: Duration = Duration::from_secs(300);
/// Less time says nothing: a server moves the slot on every 15 s at least, if there is something to move it over.
const SHORTEST: Duration = Duration::from_secs(60);
/// Time between two samples that are kept.
const EVERY: Duration = Duration::from_secs(5);
/// Growth over the time of the samples that means something: two WAL segments. Ups and downs of 60 MB every 15 s tilt the line by
/// 15 MB over a minute, and by 3 MB over five.
const NOISE: f64 = (32 << 20) as f64;
/// What is further away than this is no forecast.
const FURTHEST: Duration = Duration::from_secs(30 * 86_400);

/// The growth of what the slot keeps.
#[derive(Debug, Default)]
pub(in crate::replication) struct Forecast {
    /// Bytes that the slot kept, and when.
    samples: VecDeque<(Instant, i64)>,
}

impl Forecast {
    /// Adds a sample: the slot keeps so many bytes.
    pub(in crate::replication) fn sample(&mut self, at: Instant, retained: i64) {
        if self
            .samples
            .back()
            .is_some_and(|(last, _)| at.duration_since(*last) < EVERY)
        {
            return;
        }
        while self
            .samples
            .front()
            .is_some_and(|(first, _)| at.duration_since(*first) > WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back((at, retained));
    }

    /// The time until so many more bytes are kept, at the present rate; `None` where what is kept does not grow, or too little is
    /// known.
    pub(in crate::replication) fn full_in(&self, headroom: i64) -> Option<Duration> {
        let seconds = headroom.max(0) as f64 / self.rate()?;
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|left| *left <= FURTHEST)
    }

    /// Bytes a second, by least squares; `None` where that is not growth.
    fn rate(&self) -> Option<f64> {
        let (&(first, _), &(last, _)) = (self.samples.front()?, self.samples.back()?);
        let span = last.duration_since(first);
        if span < SHORTEST {
            return None;
        }
        let count = self.samples.len() as f64;
        let points = || {
            let seconds = |at: &Instant| at.duration_since(first).as_secs_f64();
            self.samples.iter().map(move |(at, bytes)| (seconds(at), *bytes as f64))
        };
        let mean_x = points().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points().map(|(_, y)| y).sum::<f64>() / count;
        let covariance = points().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>();
        let variance = points().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
        let rate = covariance / variance;
        (rate.is_finite() && rate * span.as_secs_f64() > NOISE).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: i64 = 1 << 20;

    /// A forecast after samples every five seconds, of what `retained` says for each second.
    fn after(seconds: u64, retained: impl Fn(u64) -> i64) -> Forecast {
        let (start, mut forecast) = (Instant::now(), Forecast::default());
        for second in 0..=seconds {
            forecast.sample(start + Duration::from_secs(second), retained(second));
        }
        forecast
    }

    fn in_seconds(left: Option<Duration>) -> Option<u64> {
        left.map(|left| left.as_secs())
    }

    #[test]
    fn steady_growth_gives_the_time_that_is_left() {
        let forecast = after(120, |second| 100 * MB + i64::try_from(second).unwrap() * MB);
        assert_eq!(in_seconds(forecast.full_in(11_400 * MB)), Some(11_400));
        assert_eq!(in_seconds(forecast.full_in(0)), Some(0));
        assert_eq!(in_seconds(forecast.full_in(-5)), Some(0));
    }

    #[test]
    fn what_does_not_grow_gives_no_forecast() {
        assert_eq!(after(300, |_| 500 * MB).full_in(MB), None);
        assert_eq!(
            after(300, |second| (400 - i64::try_from(second).unwrap()) * MB).full_in(MB),
            None
        );
        // Up and down, as the server moves the slot on.
        assert_eq!(
            after(300, |second| i64::try_from(second % 15).unwrap() * 4 * MB).full_in(100 * MB),
            None
        );
        assert_eq!(Forecast::default().full_in(MB), None);
        assert_eq!(
            after(50, |second| i64::try_from(second).unwrap() * MB).full_in(MB),
            None
        );
        // Years are no forecast.
        assert_eq!(
            after(300, |second| i64::try_from(second).unwrap() * MB).full_in(i64::MAX),
            None
        );
    }

    #[test]
    fn growth_that_has_ended_is_forgotten_within_minutes() {
        let forecast = after(900, |second| i64::try_from(second.min(300)).unwrap() * MB);
        assert_eq!(forecast.full_in(MB), None);
    }
}
