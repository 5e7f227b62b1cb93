//! The hosts that media are downloaded from, and the HTTP client for them.
//!
//! A medium's link comes from an answer of the Graph API, and the call to it carries the number's access token. So only
//! hosts of a list are called, over https, and never an address of a private network: whoever could change a link must
//! neither get the token nor reach what only this machine can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use url::{Host, Url};

/// How long connecting may take; a network that works needs much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The hosts, and the client that calls them.
#[derive(Debug)]
pub(super) struct MediaHosts {
    pub(super) http: reqwest::Client,
    /// Names, or `*.` and a domain.
    names: Vec<String>,
    graph: Url,
}

impl MediaHosts {
    pub(super) fn new(graph: &Url, names: &[String]) -> Result<Self, reqwest::Error> {
        let own = is_private(graph).then(|| graph.host_str().unwrap_or_default().to_owned());
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tcp_nodelay(true)
            // Followed by hand, so that each step is checked.
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(PublicAddresses { own }))
            .user_agent(concat!("twinlog/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            http,
            names: names.to_vec(),
            graph: graph.clone(),
        })
    }

    /// Whether a link may be called, with the access token.
    pub(super) fn allows(&self, url: &Url) -> bool {
        if !url.username().is_empty() || url.password().is_some() {
            return false;
        }
        self.is_graphs_own(url) || self.is_listed(url)
    }

    /// On the host of `whatsapp.graph_url`, which gets the token anyway. A simulator on this machine or in its network has
    /// its media on a port of its own.
    fn is_graphs_own(&self, url: &Url) -> bool {
        let same_host = url.host() == self.graph.host() || (is_loopback(url) && is_loopback(&self.graph));
        let same_place = url.port_or_known_default() == self.graph.port_or_known_default() || is_private(&self.graph);
        same_host && same_place && (url.scheme() == "https" || url.scheme() == self.graph.scheme())
    }

    fn is_listed(&self, url: &Url) -> bool {
        let Some(Host::Domain(host)) = url.host() else {
            return false;
        };
        url.scheme() == "https"
            && url.port_or_known_default() == Some(443)
            && self.names.iter().any(|name| match name.strip_prefix("*.") {
                Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
                None => host == name,
            })
    }
}

/// Resolves names to public addresses only.
#[derive(Debug)]
struct PublicAddresses {
    /// A host whose private addresses are fine: that of `whatsapp.graph_url`.
    own: Option<String>,
}

/// A name of a media host leads into a private network.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct NoPublicAddress;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let any = name == "localhost" && self.own.is_some() || self.own.as_deref() == Some(name.as_str());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await?
                .filter(|address| any || is_public(address.ip()))
                .collect();
            if found.is_empty() {
                return Err(NoPublicAddress.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether an URL names a place that is not on the Internet: an address of a private network, or a name without a dot.
fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => !name.contains('.'),
        Some(Host::Ipv4(address)) => !is_public(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => !is_public(IpAddr::V6(address)),
        None => false,
    }
}

/// Whether an address is one of the Internet's.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    !(first == 0
        || first >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        // Carriers' own networks, benchmarks, protocol assignments.
        || (first == 100 && (64..128).contains(&second))
        || (first == 198 && (18..20).contains(&second))
        || (first == 192 && second == 0 && third == 0))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // NAT64: the last four bytes are the address that is meant.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // Global unicast, without documentation and the tunnels that carry an IPv4 address.
    segments[0] & 0xe000 == 0x2000
        && segments[0] != 0x2002
        && !(segments[0] == 0x2001 && matches!(segments[1], 0 | 0xdb8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(graph: &str) -> MediaHosts {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let names = ["*.fbsbx.com", "media.example.com"].map(ToOwned::to_owned);
        MediaHosts::new(&graph.parse().unwrap(), &names).unwrap()
    }

    #[test]
    fn only_listed_hosts_get_the_token() {
        let hosts = hosts("https://graph.facebook.com");
        for (url, allowed) in [
            ("https://lookaside.fbsbx.com/whatsapp_business/attachments/?mid=1", true),
            ("https://media.example.com/x", true),
            ("https://graph.facebook.com/x", true),
            ("http://lookaside.fbsbx.com/x", false),
            ("https://lookaside.fbsbx.com:8443/x", false),
            ("https://fbsbx.com/x", false),
            ("https://evilfbsbx.com/x", false),
            ("https://lookaside.fbsbx.com.evil.com/x", false),
            ("https://user@lookaside.fbsbx.com/x", false),
            ("https://x.media.example.com/x", false),
            ("https://127.0.0.1/x", false),
            ("https://[::1]/x", false),
            ("https://localhost/x", false),
            ("https://graph.facebook.com:444/x", false),
            ("ftp://lookaside.fbsbx.com/x", false),
        ] {
            assert_eq!(hosts.allows(&url.parse().unwrap()), allowed, "{url}");
        }
    }

    #[test]
    fn a_simulator_has_its_media_on_another_port_of_its_host() {
        let hosts = hosts("http://127.0.0.1:4000");
        for (url, allowed) in [
            ("http://127.0.0.1:4001/x", true),
            ("http://localhost:4001/x", true),
            ("http://10.0.0.1:4001/x", false),
            ("http://lookaside.fbsbx.com/x", false),
        ] {
            assert_eq!(hosts.allows(&url.parse().unwrap()), allowed, "{url}");
        }
    }

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for (address, public) in [
            ("157.240.0.1", true),
            ("2a03:2880::1", true),
            ("64:ff9b::9df0:1", true),
            ("64:ff9b::a00:1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("::ffff:10.0.0.1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("2002:a00:1::", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_into_a_private_network_is_not_called() {
        let resolved = |own: Option<&str>| {
            let resolver = PublicAddresses {
                own: own.map(ToOwned::to_owned),
            };
            resolver.resolve("localhost".parse().unwrap())
        };
        assert!(resolved(None).await.is_err());
        assert!(resolved(Some("127.0.0.1")).await.is_ok());
    }
}
