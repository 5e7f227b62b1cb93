//! Asks both databases.

use std::net::IpAddr;

use tokio::time::timeout;

use super::examination::{Examination, LIMIT, Unanswered};
use super::finding::{Code, Finding};
use super::{agent, bookkeeping, database, realtime, replication};
use crate::config::{Config, DatabaseUrl, Host};
use crate::migrations::{self, Set};
use crate::postgres::connect::{CutLater, connect_bounded};
use crate::postgres::diagnosis::{SWAPPED_HINT, are_swapped, read_only_remedy};
use crate::postgres::server_facts::{ServerFacts, server_facts};
use crate::postgres::{Client, SessionError, Side, refuse_pooler};
use crate::replication::PipelineSettings;
use crate::site_db::{self, Pool, SiteError};
use crate::source::Selection;
use crate::source::setup::{PublicationFacts, publication_facts, realtime_tables, replication_facts};

/// A database that answers.
struct Reached {
    client: Client,
    facts: ServerFacts,
    _cut: CutLater,
}

/// Examines the databases that the configuration names.
pub(super) async fn examine(config: &Config, settings: &PipelineSettings) -> Examination {
    let (is_daemon, is_server) = (config.agent.is_set(), !config.whatsapp.accounts.is_empty());
    let site = async {
        let mut own = Examination::default();
        let mut facts = None;
        let mut publication = None;
        if config.site.is_set() {
            if let Some(reached) = Box::pin(reach(Side::Site, &config.site.url, &mut own)).await {
                if is_daemon {
                    publication = Box::pin(of_daemon(&reached, settings, &mut own)).await;
                }
                let tables = realtime_tables(&reached.client, &realtime::TABLES);
                if let Some(tables) = own.ask("what browsers may read (Supabase)", tables).await {
                    own.add(realtime::of_tables(&tables));
                }
                facts = Some(reached.facts);
            }
            if is_server && facts.is_some() {
                Box::pin(of_server(config, &mut own)).await;
            }
        }
        (own, facts, publication)
    };
    let agent = async {
        let mut own = Examination::default();
        let mut facts = None;
        if is_daemon && let Some(reached) = Box::pin(reach(Side::Agent, &config.agent.url, &mut own)).await {
            facts = Some(reached.facts);
        }
        (own, facts)
    };
    let ((mut all, site, publication), (of_agent, agent)) = tokio::join!(Box::pin(site), Box::pin(agent));
    all.merge(of_agent);
    if let Some(agent) = &agent {
        let publication = publication.as_ref().map(|(facts, selection)| (facts, selection));
        Box::pin(agent::examine(settings, is_server, publication, &mut all)).await;
        if let Some(site) = &site {
            all.add(database::of_encodings(site, agent));
            if timeout(LIMIT, Box::pin(are_swapped(&config.site.url, &config.agent.url))).await == Ok(Some(true)) {
                let what = "site.url and agent.url look swapped";
                all.add([Finding::new(Code::UrlsSwapped, "site.url", what).fix(SWAPPED_HINT)]);
            }
        }
    }
    all
}

/// Opens a session, and asks the server about itself.
async fn reach(side: Side, url: &DatabaseUrl, own: &mut Examination) -> Option<Reached> {
    own.add(database::of_url(side, url));
    let addresses = match &url.host {
        Host::Tcp(host) => timeout(LIMIT, resolve(host, url.port)).await.unwrap_or_default(),
        Host::Unix(_) => Vec::new(),
    };
    let opened = timeout(LIMIT, Box::pin(open(side, url))).await;
    let (client, cut) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            own.add([of_session_error(side, error)]);
            own.add(database::of_addresses(side, &addresses, false));
            return None;
        }
        Err(_) => {
            let what = format!("no answer from {url} within {} s", LIMIT.as_secs());
            own.add([Finding::new(Code::Unreachable, side, what)
                .fix("check the address, the firewall, and that the server runs")]);
            own.add(database::of_addresses(side, &addresses, false));
            return None;
        }
    };
    let facts = own
        .ask(&format!("the server of the {side}"), server_facts(side, &client))
        .await?;
    let remedy = if facts.is_read_only && !facts.is_standby {
        timeout(LIMIT, Box::pin(read_only_remedy(side, url)))
            .await
            .unwrap_or_default()
    } else {
        None
    };
    own.add(database::of_server(side, &facts, remedy));
    Some(Reached {
        client,
        facts,
        _cut: cut,
    })
}

async fn open(side: Side, url: &DatabaseUrl) -> Result<(Client, CutLater), SessionError> {
    refuse_pooler(side, url).await?;
    connect_bounded(side, url, "twinlog doctor").await
}

async fn resolve(host: &str, port: u16) -> Vec<IpAddr> {
    let found = tokio::net::lookup_host((host, port)).await;
    found.map_or_else(
        |_| Vec::new(),
        |addresses| addresses.map(|address| address.ip()).collect(),
    )
}

fn of_session_error(side: Side, error: SessionError) -> Finding {
    let code = match error {
        SessionError::Pooled { .. } => Code::Pooler,
        _ => Code::Unreachable,
    };
    let Unanswered { what, fix, .. } = error.into();
    Finding::new(code, side, what).fix_if(fix)
}

/// What the daemon needs of the Site DB. Returns what is published.
async fn of_daemon(
    site: &Reached,
    settings: &PipelineSettings,
    own: &mut Examination,
) -> Option<(PublicationFacts, Selection)> {
    let limits = replication_facts(&site.client, &settings.slot);
    if let Some(facts) = own.ask("limits, rights and slots of the Site DB", limits).await {
        own.add(replication::of_limits(&facts, settings));
    }
    let selection = own
        .ask("sync.tables", std::future::ready(Selection::new(&settings.tables)))
        .await?;
    let published = publication_facts(
        &site.client,
        &settings.publication,
        site.facts.version_number,
        &selection,
    );
    let facts = own.ask("the publication and its tables", published).await?;
    own.add(replication::of_publication(&facts, settings));
    own.add(replication::of_table_faults(
        &facts,
        &selection,
        settings.on_unreplicable_table,
    ));
    Some((facts, selection))
}

/// What the server needs of the Site DB.
async fn of_server(config: &Config, own: &mut Examination) {
    let standing = migrations::standing(&config.site.url, Set::Site);
    let Some(standing) = own.ask("the server's tables", standing).await else {
        return;
    };
    own.add(bookkeeping::of_migrations(Set::Site, &standing, false));
    if !standing.is_begun {
        return;
    }
    let pool = Pool::connect(&config.site);
    let checked = timeout(LIMIT, Box::pin(site_db::check(&pool))).await;
    match checked {
        Ok(Ok(())) => own.done("the server's columns and rights"),
        Ok(Err(SiteError::Missing { what, remedy })) => {
            own.add([Finding::new(Code::SiteSchema, Side::Site, what).fix(remedy)]);
        }
        Ok(Err(error)) => {
            let Unanswered {
                what,
                fix,
                is_of_rights,
            } = error.into();
            // Here the right itself is what was asked for.
            let code = if is_of_rights {
                Code::SiteSchema
            } else {
                Code::CheckFailed
            };
            own.add([Finding::new(code, Side::Site, what).fix_if(fix)]);
        }
        Err(_) => own.late("the server's columns and rights"),
    }
    let _ = timeout(LIMIT, pool.close()).await;
}
