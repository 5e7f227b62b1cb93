//! Signed webhooks, each committed before its 200.

use anyhow::{Result, ensure};
use secrecy::SecretString;

use super::meta::{self, SECRET};
use super::{Figures, World};

pub(crate) async fn measure(world: &World<'_>) -> Result<Figures> {
    let server = world.serve().await?;
    let (secret, people) = (SecretString::from(SECRET), world.options.people);
    let (load, spent) = world
        .load(&server, move |number| {
            meta::signed(&meta::text(number, people), &secret)
        })
        .await?;
    ensure!(load.refused == 0, "{} webhooks were refused", load.refused);
    let stored = world.number("SELECT count(*)::float8 FROM webhook_events").await?;
    ensure!(
        stored >= load.answered(),
        "{} were answered, {stored} stored",
        load.answered()
    );
    Figures::of_load(&load, &spent, &server)
}
