//! `twinlog simulate`: the simulator of the Graph API alone, to develop or try a client without a business number.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;
use secrecy::SecretString;
use url::Url;

use super::logging;
use super::outcome::Outcome;
use crate::config::LogFormat;
use crate::dev::graph_simulator::{Account, CONTROL_ROUTES, Limits, Settings, Simulator};
use crate::shutdown;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The address on which the simulated Graph API listens; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// The URL that receives the webhooks, such as http://127.0.0.1:8080/webhook; without it none are sent until one is set
    #[arg(long, value_name = "URL", value_parser = callback)]
    callback: Option<Url>,
    /// The app secret that signs the webhooks
    #[arg(long, value_name = "SECRET", default_value = "simulator-secret")]
    app_secret: String,
    /// The verify token of the webhook's handshake
    #[arg(long, value_name = "TOKEN", default_value = "simulator-verify-token")]
    verify_token: String,
    /// A business number and the token that its calls need; repeat it for several
    #[arg(
        long = "account",
        value_name = "PHONE_NUMBER_ID=TOKEN",
        default_value = "106540352242922=simulator-token",
        value_parser = account
    )]
    accounts: Vec<Account>,
    /// Limits the rate as Meta does: 80 messages a second for each number; to the same person 45 at once, then one in 6 s
    #[arg(long)]
    rate_limits: bool,
}

/// Parses the callback's URL: HTTP or HTTPS, as Meta calls nothing else.
fn callback(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err("write it as http://HOST:PORT/webhook".to_owned())
    }
}

/// Parses `PHONE_NUMBER_ID=TOKEN`. A token may contain further equals signs.
fn account(text: &str) -> Result<Account, String> {
    let (phone_number_id, access_token) = text
        .split_once('=')
        .filter(|(id, token)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) && !token.is_empty())
        .ok_or("write it as PHONE_NUMBER_ID=TOKEN, the id in digits")?;
    // The number that people see ends with the same digits as its id.
    let tail = &phone_number_id[phone_number_id.len().saturating_sub(4)..];
    Ok(Account {
        phone_number_id: phone_number_id.to_owned(),
        waba_id: "102290129340398".to_owned(),
        display_phone_number: format!("1555078{tail:0>4}"),
        access_token: access_token.to_owned(),
    })
}

/// Runs until a signal comes.
pub(super) async fn run(arguments: &Arguments, log_format: Option<LogFormat>) -> anyhow::Result<Outcome> {
    logging::start(log_format.unwrap_or(LogFormat::Text), "info")?;
    let stop = shutdown::on_signal().context("listen for signals")?;
    let simulator = Simulator::start(Settings {
        listen: arguments.listen,
        app_secret: SecretString::from(arguments.app_secret.clone()),
        verify_token: arguments.verify_token.clone(),
        accounts: arguments.accounts.clone(),
        callback_url: arguments.callback.clone(),
        limits: arguments.rate_limits.then(Limits::default),
        ..Settings::default()
    })
    .await?;
    introduce(&mut anstream::stdout().lock(), arguments, &simulator.url())?;
    stop.cancelled().await;
    simulator.shutdown().await;
    Ok(Outcome::Success)
}

/// Prints the lines of a configuration to paste, and the control routes.
fn introduce(out: &mut impl Write, arguments: &Arguments, url: &str) -> std::io::Result<()> {
    // For the texts that a command line can hold, Rust's debug format is a TOML string.
    writeln!(out, "The Graph API simulator is at {url}; for twinlog.toml:\n")?;
    writeln!(out, "[whatsapp]\ngraph_url = {url:?}")?;
    writeln!(out, "app_secrets = [{:?}]", arguments.app_secret)?;
    writeln!(out, "verify_token = {:?}", arguments.verify_token)?;
    for account in &arguments.accounts {
        writeln!(out, "[[whatsapp.accounts]]")?;
        writeln!(out, "phone_number_id = {:?}", account.phone_number_id)?;
        writeln!(out, "waba_id = {:?}", account.waba_id)?;
        writeln!(out, "access_token = {:?}", account.access_token)?;
    }
    match &arguments.callback {
        Some(callback) => writeln!(out, "\nWebhooks go to {callback}. Its switches:\n")?,
        None => writeln!(out, "\nWebhooks go nowhere yet. Its switches:\n")?,
    }
    for (method, path, what) in CONTROL_ROUTES {
        writeln!(out, "{method:<6} {:<34} {what}", format!("{url}{path}"))?;
    }
    writeln!(out, "\nCtrl-C ends it.")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_digits_an_equals_sign_and_a_token_that_may_hold_more_of_them() {
        let made = account("106=EAA=x==").unwrap();
        assert_eq!(
            (made.phone_number_id.as_str(), made.access_token.as_str()),
            ("106", "EAA=x==")
        );
        assert_eq!(made.display_phone_number, "15550780106");
        for wrong in ["", "106", "=token", "106=", "+49=token", "one=token"] {
            assert!(account(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_callback_is_an_http_url() {
        assert!(callback("http://127.0.0.1:8080/webhook").is_ok());
        for wrong in ["127.0.0.1:8080", "ftp://host/x", "webhook"] {
            assert!(callback(wrong).is_err(), "{wrong}");
        }
    }
}
