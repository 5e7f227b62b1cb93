//! Where a page ends, as its client sees it: an opaque text.

use time::OffsetDateTime;
use uuid::Uuid;

use crate::site_db::pages::Place;

pub(super) fn write(place: Place) -> String {
    let micros = place.at.unix_timestamp_nanos() / 1000;
    format!("{micros}.{}", place.id.simple())
}

pub(super) fn read(text: &str) -> Option<Place> {
    let (micros, id) = text.split_once('.')?;
    let micros: i64 = micros.parse().ok()?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()?;
    Some(Place {
        // Postgres has no time before 4713 BC.
        at: Some(at).filter(|at| at.year() > 0)?,
        id: Uuid::try_parse(id).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_as_it_was_and_anything_else_is_none() {
        let place = Place {
            at: OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap(),
            id: Uuid::from_u128(7),
        };
        assert_eq!(read(&write(place)), Some(place));
        for text in [
            "",
            ".",
            "1",
            "1.x",
            "x.00000000000000000000000000000007",
            "-99999999999999999.00000000000000000000000000000007",
            "9223372036854775807.00000000000000000000000000000007",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
