//! Our enums and ids as `text` columns: statements bind and rows return the types themselves, so that two texts cannot be
//! mixed up.
//!
//! Reading a text that the type does not know is an error, [`SiteError::Shape`](super::SiteError::Shape). So only columns
//! that a `CHECK` guards, or that only the server writes, are read as such a type. Ids of messages and numbers are
//! taken as they stand: other programs write rows too, and one odd id must not keep an outcome from being stored.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

use super::accounts::AccountStatus;
use super::messages::MessageStatus;
use super::notifications::NotificationKind;
use super::webhook_events::WebhookState;
use crate::provider::event::{Direction, ReportedStatus};
use crate::provider::{ApiVersion, PhoneNumberId, UserId, WaId, Wamid};

/// A column holds a text that this version has no value for.
#[derive(Debug, thiserror::Error)]
#[error("a column holds a text that is not a {0}")]
struct NotOfType(&'static str);

/// Binds and reads each type as the text that its `as_str` gives and that the function after the arrow reads.
macro_rules! text_columns {
    ($($type:ident <- $read:expr),* $(,)?) => {$(
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <str as Type<Postgres>>::type_info()
            }

            fn compatible(info: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(info)
            }
        }

        impl PgHasArrayType for $type {
            fn array_type_info() -> PgTypeInfo {
                <&str as PgHasArrayType>::array_type_info()
            }
        }

        impl Encode<'_, Postgres> for $type {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <&str as Encode<'_, Postgres>>::encode_by_ref(&self.as_str(), buffer)
            }
        }

        impl Decode<'_, Postgres> for $type {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                let text = <&str as Decode<'_, Postgres>>::decode(value)?;
                let read: fn(&str) -> Option<Self> = $read;
                read(text).ok_or_else(|| NotOfType(stringify!($type)).into())
            }
        }
    )*};
}

text_columns! {
    MessageStatus <- |text| text.parse().ok(),
    Direction <- |text| [Self::Inbound, Self::Outbound].into_iter().find(|one| one.as_str() == text),
    AccountStatus <- |text| text.parse().ok(),
    WebhookState <- |text| text.parse().ok(),
    NotificationKind <- |text| text.parse().ok(),
    ReportedStatus <- |text| Some(Self::parse(text)),
    ApiVersion <- Self::parse,
    PhoneNumberId <- |text| Some(Self::stored(text)),
    Wamid <- |text| Some(Self::stored(text)),
    WaId <- Self::parse,
    UserId <- Self::parse,
}
