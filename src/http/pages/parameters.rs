//! The parameters of the query. One that is not known is refused: a misspelt filter would show everything.

use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::place;
use crate::http::access::Viewer;
use crate::http::answer;
use crate::http::state::is_id;
use crate::site_db::pages::Place;

/// Rows of a page, if nobody says how many, and at most.
const ROWS: (u16, u16) = (50, 200);

/// What a page is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) limit: u16,
    pub(super) before: Option<Place>,
    pub(super) lead_id: Option<Uuid>,
    pub(super) unread: bool,
    /// The numbers that are asked for; `None`: all.
    numbers: Option<Vec<String>>,
}

/// A parameter can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongParameter {
    name: String,
    what: &'static str,
}

impl IntoResponse for WrongParameter {
    fn into_response(self) -> Response {
        answer::plain_error(
            StatusCode::BAD_REQUEST,
            "invalid_parameter",
            self.what,
            Some(&self.name),
        )
    }
}

impl Parameters {
    /// Reads those that this route knows.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, WrongParameter> {
        let mut read = Self {
            limit: ROWS.0,
            ..Self::default()
        };
        for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let refuse = |what| WrongParameter {
                name: name.clone().into_owned(),
                what,
            };
            if !known.contains(&name.as_ref()) {
                return Err(refuse("there is no such parameter here"));
            }
            match name.as_ref() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=ROWS.1).contains(limit));
                    read.limit = limit.ok_or_else(|| refuse("must be a number from 1 to 200"))?;
                }
                "before" => {
                    let before = place::read(&value);
                    read.before = Some(before.ok_or_else(|| refuse("must be the `next` of a page"))?);
                }
                "lead_id" => read.lead_id = Some(value.parse().map_err(|_| refuse("must be a uuid"))?),
                "unread" => read.unread = value.parse().map_err(|_| refuse("must be true or false"))?,
                _ => {
                    for value in value.split(',').map(str::trim) {
                        if !is_id(value) {
                            return Err(refuse("must be a phone_number_id, or several with commas"));
                        }
                        read.numbers.get_or_insert_default().push(value.to_owned());
                    }
                }
            }
        }
        Ok(read)
    }

    /// The numbers that are asked for and that the viewer may see; `None`: all.
    pub(super) fn numbers(&self, viewer: &Viewer) -> Option<Vec<String>> {
        match (&self.numbers, &viewer.numbers) {
            (None, seen) => seen.clone(),
            (asked, None) => asked.clone(),
            (Some(asked), Some(seen)) => Some(asked.iter().filter(|number| seen.contains(number)).cloned().collect()),
        }
    }
}
