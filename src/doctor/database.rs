//! What is found about either database by itself: how it is reached, the server, our role.

use std::net::IpAddr;

use super::finding::{Code, Finding};
use crate::config::{DatabaseUrl, Host, SslMode};
use crate::postgres::Side;
use crate::postgres::server_facts::ServerFacts;

/// The oldest supported server.
const OLDEST_VERSION: i32 = 140_000;

/// Clocks that differ by less disturb nothing: delays are told in seconds.
const CLOCK_MS: i64 = 2_000;

/// Connections that daemon and server need beyond those that they have: about ten each at a start.
const CONNECTIONS: i64 = 10;

/// How the URL reaches the database.
pub(super) fn of_url(side: Side, url: &DatabaseUrl) -> Vec<Finding> {
    let Host::Tcp(host) = &url.host else {
        return Vec::new();
    };
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let key = key(side);
    let finding = match url.sslmode {
        _ if is_here => return Vec::new(),
        SslMode::Disable => Finding::new(
            Code::TlsOff,
            side,
            format!("{key} has sslmode=disable for another machine"),
        ),
        SslMode::Require => Finding::new(
            Code::TlsUnverified,
            side,
            format!("{key} has sslmode=require, or none: TLS with any certificate"),
        ),
        SslMode::VerifyCa | SslMode::VerifyFull => return Vec::new(),
    };
    vec![finding.fix(format!(
        "in {key}: ?sslmode=verify-full (with &sslrootcert=FILE if no public authority has signed the server's certificate)"
    ))]
}

/// The key of the configuration that has its URL.
pub(super) const fn key(side: Side) -> &'static str {
    match side {
        Side::Site => "site.url",
        Side::Agent => "agent.url",
    }
}

/// That a host has IPv6 addresses alone. `is_reached`: whether the database answers all the same.
pub(super) fn of_addresses(side: Side, addresses: &[IpAddr], is_reached: bool) -> Option<Finding> {
    if is_reached || addresses.is_empty() || addresses.iter().any(IpAddr::is_ipv4) {
        return None;
    }
    let what = format!("the host of {} has only IPv6 addresses, and does not answer", key(side));
    Some(Finding::new(Code::Ipv6Only, side, what).fix(
        "give this machine IPv6; or, with Supabase, add the project's IPv4 add-on (the daemon's site.url must be direct); agent.url may \
         also be the pooler's session mode (port 5432)",
    ))
}

/// The server and our role there.
pub(super) fn of_server(side: Side, facts: &ServerFacts, read_only_remedy: Option<String>) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.version_number < OLDEST_VERSION {
        let what = format!("the {side} runs Postgres {}", facts.version);
        found.push(Finding::new(Code::Version, side, what).fix("upgrade it to 14 or later"));
    }
    if facts.is_standby {
        let what = format!("the server of {} is a standby", key(side));
        found.push(Finding::new(Code::Standby, side, what).fix(format!("point {} at the primary", key(side))));
    } else if facts.is_read_only {
        let what = "default_transaction_read_only is on";
        found.push(Finding::new(Code::ReadOnly, side, what).fix_if(read_only_remedy));
    }
    // The clock is known within half of the time that the question took.
    let unknown_ms = i64::try_from(facts.round_trip.as_millis()).unwrap_or(i64::MAX);
    if facts.clock_ahead_ms.saturating_abs() > CLOCK_MS.saturating_add(unknown_ms) {
        let seconds = facts.clock_ahead_ms.saturating_abs() as f64 / 1000.0;
        let direction = if facts.clock_ahead_ms > 0 { "ahead of" } else { "behind" };
        let what = format!("its clock is {seconds:.1} s {direction} this machine's");
        found.push(Finding::new(Code::Clock, side, what).fix("run NTP (chrony, systemd-timesyncd) on both machines"));
    }
    if !facts.is_durable {
        found.push(
            Finding::new(Code::NotDurable, side, "fsync is off")
                .fix("ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();"),
        );
    }
    for setting in &facts.time_outs {
        let what = format!(
            "{} = {} is set for the role or the database",
            setting.name, setting.value
        );
        found.push(Finding::new(Code::RoleTimeOut, side, what).fix(setting.reset.clone()));
    }
    if facts.connections_left < CONNECTIONS {
        let what = format!(
            "the role may open {} more connection(s) now; a start needs about {CONNECTIONS}",
            facts.connections_left.max(0)
        );
        found.push(Finding::new(Code::Connections, side, what).fix(
            "end idle connections of other programs, or raise max_connections (CONNECTION LIMIT of the role or the database)",
        ));
    }
    found
}

/// Whether one can store what the other has.
pub(super) fn of_encodings(site: &ServerFacts, agent: &ServerFacts) -> Option<Finding> {
    if site.encoding == agent.encoding || agent.encoding == "UTF8" && site.encoding != "SQL_ASCII" {
        return None;
    }
    let what = format!(
        "the Site DB's encoding is {}, the Agent DB's {}",
        site.encoding, agent.encoding
    );
    Some(
        Finding::new(Code::Encoding, Side::Agent, what)
            .fix("create the Agent DB with ENCODING 'UTF8' TEMPLATE template0"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            version_number: 150_000,
            version: "15.0".to_owned(),
            database: "crm".to_owned(),
            role: "twinlog".to_owned(),
            is_standby: false,
            is_read_only: false,
            clock_ahead_ms: 0,
            round_trip: Duration::from_millis(30),
            encoding: "UTF8".to_owned(),
            time_outs: Vec::new(),
            connections_left: 50,
            is_durable: true,
        }
    }

    fn codes(found: impl IntoIterator<Item = Finding>) -> Vec<Code> {
        found.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_server_in_order_gives_no_finding() {
        assert_eq!(codes(of_server(Side::Site, &facts(), None)), []);
        assert_eq!(codes(of_encodings(&facts(), &facts())), []);
    }

    #[test]
    fn each_fault_of_a_server_is_found() {
        let found = |change: fn(&mut ServerFacts)| {
            let mut facts = facts();
            change(&mut facts);
            codes(of_server(Side::Agent, &facts, None))
        };
        assert_eq!(found(|facts| facts.version_number = 130_009), [Code::Version]);
        assert_eq!(found(|facts| facts.is_standby = true), [Code::Standby]);
        assert_eq!(found(|facts| facts.is_read_only = true), [Code::ReadOnly]);
        assert_eq!(found(|facts| facts.clock_ahead_ms = -90_000), [Code::Clock]);
        assert_eq!(found(|facts| facts.is_durable = false), [Code::NotDurable]);
        assert_eq!(found(|facts| facts.connections_left = 3), [Code::Connections]);
        // A slow network makes the clock look wrong by half of its delay at most.
        let slow = |facts: &mut ServerFacts| {
            facts.clock_ahead_ms = 2_500;
            facts.round_trip = Duration::from_secs(1);
        };
        assert_eq!(found(slow), []);
    }

    #[test]
    fn tls_is_asked_for_between_machines_only() {
        let codes = |url: &str| codes(of_url(Side::Site, &url.parse().unwrap()));
        assert_eq!(codes("postgres://me@db.example.com/crm"), [Code::TlsUnverified]);
        assert_eq!(
            codes("postgres://me@db.example.com/crm?sslmode=disable"),
            [Code::TlsOff]
        );
        for url in [
            "postgres://me@db.example.com/crm?sslmode=verify-full",
            "postgres://me@127.0.0.1/crm",
            "postgres://me@[::1]/crm?sslmode=disable",
            "postgres://me@/crm?host=/tmp",
        ] {
            assert_eq!(codes(url), [], "{url}");
        }
    }

    #[test]
    fn a_host_with_ipv6_alone_is_told_where_it_does_not_answer() {
        let found = |addresses: &[&str], is_reached| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            of_addresses(Side::Site, &addresses, is_reached).is_some()
        };
        assert!(found(&["2001:db8::1"], false));
        assert!(!found(&["2001:db8::1"], true) && !found(&["2001:db8::1", "192.0.2.1"], false) && !found(&[], false));
    }
}
