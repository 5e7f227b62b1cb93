//! The sections of the configuration: for each its values, their limits, and how they are read.

mod auth;
mod databases;
mod events;
mod jwt;
mod listeners;
mod log;
mod retention;
mod socket_io;
mod subscribers;
mod sync;
mod whatsapp;

pub use auth::ApiToken;
pub use databases::{Agent, Site};
pub use events::Events;
pub use jwt::{Jwt, JwtKeySource, JwtNumbers, JwtUsers};
pub use listeners::{Admin, CorsOrigins, Http};
pub use log::{Log, LogFormat};
pub use retention::Retention;
pub use socket_io::SocketIo;
pub use subscribers::Subscriber;
pub use sync::{OnLostSlot, OnNewColumn, OnUnreplicableTable, Sync};
pub use whatsapp::{Account, Whatsapp};

use super::reader::ValueReader;

/// Everything that can be set, valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[site]`
    pub site: Site,
    /// `[agent]`
    pub agent: Agent,
    /// `[sync]`
    pub sync: Sync,
    /// `[http]`
    pub http: Http,
    /// `[admin]`
    pub admin: Admin,
    /// `[whatsapp]`
    pub whatsapp: Whatsapp,
    /// `[[auth.tokens]]`
    pub tokens: Vec<ApiToken>,
    /// `[auth] jwt_…`; `None`: no JSON Web Token is accepted.
    pub jwt: Option<Jwt>,
    /// `[events]`
    pub events: Events,
    /// `[socket_io]`
    pub socket_io: SocketIo,
    /// `[[subscribers]]`
    pub subscribers: Vec<Subscriber>,
    /// `[retention]`
    pub retention: Retention,
    /// `[log]`
    pub log: Log,
}

/// What a command needs: nothing else has to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// `[site] url`
    pub site: bool,
    /// `[agent] url`
    pub agent: bool,
    /// `[whatsapp]` accounts and secrets, and `[[auth.tokens]]`
    pub whatsapp: bool,
}

/// Reads every section, so that every problem is noted; `None` if there is one.
pub(super) fn read(reader: &mut ValueReader<'_>, needs: Needs) -> Option<Config> {
    let site = databases::site(reader, needs.site);
    let agent = databases::agent(reader, needs.agent);
    if let (Some(site), Some(agent), true) = (&site, &agent, needs.site && needs.agent) {
        databases::check_different(reader, site, agent);
    }
    let sync = sync::sync(reader);
    let http = listeners::http(reader);
    let admin = listeners::admin(reader);
    if let (Some(http), Some(admin)) = (&http, &admin) {
        listeners::check_different(reader, http, admin);
    }
    let whatsapp = whatsapp::whatsapp(reader, needs.whatsapp);
    let tokens = auth::tokens(reader, needs.whatsapp);
    let jwt = jwt::jwt(reader);
    let events = events::events(reader);
    let socket_io = socket_io::socket_io(reader);
    let subscribers = subscribers::subscribers(reader);
    let retention = retention::retention(reader);
    if let (Some(whatsapp), Some(tokens), true) = (&whatsapp, &tokens, needs.whatsapp) {
        auth::check_numbers(reader, tokens, &whatsapp.accounts);
        if let Some(subscribers) = &subscribers {
            let accounts = whatsapp.accounts.iter();
            let configured: Vec<&str> = accounts.map(|account| account.phone_number_id.as_str()).collect();
            subscribers::check_numbers(reader, subscribers, &configured);
        }
    }
    let log = log::log(reader);
    Some(Config {
        site: site?,
        agent: agent?,
        sync: sync?,
        http: http?,
        admin: admin?,
        whatsapp: whatsapp?,
        tokens: tokens?,
        jwt: jwt?,
        events: events?,
        socket_io: socket_io?,
        subscribers: subscribers?,
        retention: retention?,
        log: log?,
    })
}
