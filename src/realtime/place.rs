//! Where a listener is in the events: opaque to it, the same for all processes, and good for going on after any interruption.

use std::fmt;
use std::str::FromStr;

use time::OffsetDateTime;

use crate::site_db::events::Position;

/// Everything up to here was told: the events before one, and the first `rows` rows of that one. Events have several rows, and
/// each is told by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The event.
    pub position: Position,
    /// How many of its rows; [`Self::ALL`]: all.
    rows: u32,
}

impl Place {
    const ALL: u32 = u32::MAX;

    /// After the whole event.
    #[must_use]
    pub const fn after(position: Position) -> Self {
        Self {
            position,
            rows: Self::ALL,
        }
    }

    /// After the row with this number of an event, beginning with 0, of so many.
    pub(super) fn after_row(position: Position, row: usize, of: usize) -> Self {
        let rows = if row + 1 == of {
            Self::ALL
        } else {
            u32::try_from(row + 1).unwrap_or(Self::ALL)
        };
        Self { position, rows }
    }

    /// From where to read the events so that none that comes after this place is left out. The first one may have been told in part.
    pub(super) const fn read_from(&self) -> Position {
        if self.rows == Self::ALL {
            return self.position;
        }
        Position {
            index: self.position.index - 1,
            ..self.position
        }
    }
}

/// What is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no place in the events")]
pub struct NoPlace;

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position {
            round,
            index,
            placed_at,
        } = self.position;
        let micros = placed_at.unix_timestamp_nanos() / 1000;
        write!(formatter, "{round}-{index}-{}-{micros}", self.rows)
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let mut parts = text.split('-');
        let mut part = || parts.next()?.parse::<i64>().ok();
        let (round, index, rows, micros) = (part(), part(), part(), part());
        let (Some(round), Some(index), Some(rows), Some(micros), None) = (round, index, rows, micros, parts.next())
        else {
            return Err(NoPlace);
        };
        let placed_at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(|_| NoPlace)?;
        // Postgres has no time before 4713 BC.
        if placed_at.year() < 1 {
            return Err(NoPlace);
        }
        let rows = u32::try_from(rows).map_err(|_| NoPlace)?;
        if rows == 0 || (rows != Self::ALL && index < 1) {
            return Err(NoPlace);
        }
        let position = Position {
            round,
            index,
            placed_at,
        };
        Ok(Self { position, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_anything_else_is_none() {
        let placed_at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        let position = Position {
            round: 7,
            index: 3,
            placed_at,
        };
        let part = Place::after_row(position, 0, 2);
        let whole = Place::after_row(position, 1, 2);
        assert_eq!(whole, Place::after(position));
        assert!(part < whole);
        assert_eq!((part.read_from().index, whole.read_from().index), (2, 3));
        for place in [part, whole] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in [
            "",
            "7",
            "7-3-1",
            "7-3-0-1",
            "7-0-1-1",
            "7-3-1-1-1",
            "7-3-x-1",
            "7-3-5000000000-1",
            "-7-3-1-1",
        ] {
            assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
        }
    }
}
