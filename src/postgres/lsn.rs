//! [`Lsn`] as a parameter and a column of type `pg_lsn`, through the driver's own type.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, PgLsn, ToSql, Type, to_sql_checked};

use crate::lsn::Lsn;

impl ToSql for Lsn {
    fn to_sql(&self, type_: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        PgLsn::from(self.0).to_sql(type_, out)
    }

    fn accepts(type_: &Type) -> bool {
        <PgLsn as ToSql>::accepts(type_)
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Lsn {
    fn from_sql(type_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        PgLsn::from_sql(type_, raw).map(|position| Self(position.into()))
    }

    fn accepts(type_: &Type) -> bool {
        <PgLsn as FromSql>::accepts(type_)
    }
}
