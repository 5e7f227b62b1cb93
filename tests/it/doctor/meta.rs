//! Faults of numbers at Meta, of the app's webhooks, and of addresses.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Diagnosis, Expected};
use crate::harness::{ConfigFile, Process, databases};

/// A number's id, what differs from a number in order, and the code.
struct Seed(&'static str, Change, &'static str);

/// What differs.
enum Change {
    /// Fields of the number.
    Number(&'static str),
    /// The answer to questions about the number, an error of Meta's.
    Refused(i64),
    /// Fields of what Meta says about the token.
    Token(&'static str),
    /// The app that the token is of.
    App(&'static str),
    /// Nobody gets the account's webhooks.
    NobodySubscribed,
    /// A line in the configuration.
    Configured(&'static str),
}

use Change::{App, Configured, NobodySubscribed, Number, Refused, Token};

const SEEDS: &[Seed] = &[
    Seed("101", Token("{\"is_valid\": false}"), "token_invalid"),
    Seed("102", Token("{\"expires_at\": SOON}"), "token_expires"),
    Seed("103", Token("{\"scopes\": [\"whatsapp_business_management\"]}"), "token_permission"),
    Seed("104", Token("{\"type\": \"USER\"}"), "token_of_user"),
    Seed("105", Refused(190), "token_invalid"),
    Seed("106", Refused(100), "number_unknown"),
    Seed("107", Refused(10), "token_permission"),
    Seed("108", Number("{\"status\": \"BANNED\"}"), "number_not_connected"),
    Seed("109", Number("{\"platform_type\": \"NOT_APPLICABLE\"}"), "number_not_registered"),
    Seed("110", Number("{\"name_status\": \"DECLINED\"}"), "number_name"),
    Seed("111", Number("{\"quality_rating\": \"RED\"}"), "quality"),
    Seed("112", Number("{\"health_status\": {\"entities\": [{\"entity_type\": \"WABA\", \"can_send_message\": \"BLOCKED\",
        \"errors\": [{\"error_code\": 141006, \"error_description\": \"no payment method\", \"possible_solution\": \"add one\"}]}]}}"),
        "sending_blocked"),
    Seed("113", Number("{\"health_status\": {\"entities\": [{\"entity_type\": \"APP\", \"can_send_message\": \"LIMITED\"}]}}"), "sending_limited"),
    Seed("114", Number("{\"throughput\": {\"level\": \"HIGH\"}}"), "rate_below_limit"),
    Seed("115", Configured("messages_per_second = 500"), "rate_above_limit"),
    Seed("116", Number("{\"webhook_configuration\": {\"application\": \"https://elsewhere.example.com/webhook\"}}"), "callback_elsewhere"),
    Seed("117", NobodySubscribed, "not_subscribed"),
    Seed("118", Configured("waba_id ="), "waba_unset"),
    Seed("119", App("901"), "app_secret_wrong"),
    Seed("120", App("902"), "field_missing"),
    Seed("121", App("903"), "callback_unset"),
];

/// A Meta that has these numbers, and a web server that is none of ours.
#[derive(Clone)]
struct Stub(Arc<String>);

impl Stub {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self(Arc::new(format!("http://{}", listener.local_addr().unwrap())));
        let app = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        stub
    }

    /// Where the webhooks of a number in order go.
    fn callback(&self) -> String {
        format!("{}/differs/webhook", self.0)
    }
}

async fn answer(State(stub): State<Stub>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        // A server with another verify token and another app secret.
        ["differs", "webhook"] if request.method() == "GET" => (StatusCode::FORBIDDEN, "no").into_response(),
        ["differs", "webhook"] => (StatusCode::UNAUTHORIZED, "no").into_response(),
        [_, "debug_token"] => meta(200, json!({"data": token(&query)})),
        [_, app @ ("900" | "901" | "902" | "903"), "subscriptions"] => subscriptions(&stub, app),
        [_, waba, "subscribed_apps"] => {
            let apps = if *waba == "9117" {
                vec![]
            } else {
                vec!["900", "901", "902", "903"]
            };
            let apps: Vec<_> = apps
                .iter()
                .map(|id| json!({"whatsapp_business_api_data": {"id": id}}))
                .collect();
            meta(200, json!({"data": apps}))
        }
        [_, number] => match seed(number) {
            Some(Refused(code)) => meta(
                400,
                json!({"error": {"code": code, "message": format!("(#{code}) no")}}),
            ),
            change => {
                let mut value = json!({"id": number, "status": "CONNECTED", "platform_type": "CLOUD_API", "quality_rating": "GREEN",
                    "name_status": "APPROVED", "throughput": {"level": "STANDARD"}, "is_on_biz_app": false,
                    "webhook_configuration": {"application": stub.callback()}, "health_status": {"entities": []}});
                if let Some(Number(fields)) = change {
                    over(&mut value, fields);
                }
                meta(200, value)
            }
        },
        _ => (StatusCode::NOT_FOUND, "nothing").into_response(),
    }
}

fn meta(status: u16, body: Value) -> Response {
    let json = [("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), json, body.to_string()).into_response()
}

fn seed(number: &str) -> Option<&'static Change> {
    SEEDS
        .iter()
        .find(|Seed(id, ..)| *id == number)
        .map(|Seed(_, change, _)| change)
}

/// The token of a number is `token-` and its id.
fn token(query: &str) -> Value {
    let number = query.split_once("token-").map_or("", |(_, rest)| rest);
    let mut value = json!({"app_id": "900", "type": "SYSTEM_USER", "is_valid": true, "expires_at": 0,
        "scopes": ["whatsapp_business_management", "whatsapp_business_messaging"]});
    match seed(number) {
        Some(Token(fields)) => {
            let soon = time::OffsetDateTime::now_utc().unix_timestamp() + 86_400;
            over(&mut value, &fields.replace("SOON", &soon.to_string()));
        }
        Some(App(app)) => value["app_id"] = json!(app),
        _ => {}
    }
    value
}

fn subscriptions(stub: &Stub, app: &str) -> Response {
    let fields = [
        "account_alerts",
        "account_update",
        "message_template_status_update",
        "phone_number_quality_update",
    ];
    let messages = (app != "902").then_some("messages");
    let fields: Vec<_> = fields
        .into_iter()
        .chain(messages)
        .map(|name| json!({"name": name}))
        .collect();
    match app {
        "901" => meta(
            400,
            json!({"error": {"code": 190, "message": "Invalid OAuth access token signature."}}),
        ),
        "903" => meta(200, json!({"data": []})),
        _ => meta(
            200,
            json!({"data": [{"object": "whatsapp_business_account", "active": true,
            "callback_url": stub.callback(), "fields": fields}]}),
        ),
    }
}

fn over(value: &mut Value, fields: &str) {
    let fields: serde_json::Map<String, Value> = serde_json::from_str(fields).unwrap();
    value.as_object_mut().unwrap().extend(fields);
}

fn accounts() -> String {
    let block = |id: &str| {
        let waba = if matches!(seed(id), Some(Configured("waba_id ="))) {
            String::new()
        } else {
            format!("waba_id = '9{id}'")
        };
        let more = match seed(id) {
            Some(Configured(line)) if !line.starts_with("waba") => *line,
            _ => "",
        };
        format!("[[whatsapp.accounts]]\nphone_number_id = '{id}'\naccess_token = 'token-{id}'\n{waba}\n{more}\n")
    };
    let seeded = SEEDS.iter().map(|Seed(id, ..)| block(id));
    seeded.chain([block("100")]).collect()
}

/// A server's configuration, with seeds of its addresses.
fn server(stub: &Stub, public_url: &str, more: &str) -> String {
    format!(
        "http.public_url = '{public_url}'
         http.cors_origins = ['http://front.invalid']
         whatsapp.graph_url = '{stub}'
         whatsapp.app_secrets = ['secret']
         auth.jwt_keys = '{stub}/no-keys'
         auth.jwt_numbers = 'all'
         {more}
         [[auth.tokens]]
         name = 'crm'
         sha256 = '{hash}'
         {accounts}",
        stub = stub.0,
        hash = "0".repeat(64),
        accounts = accounts(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_at_meta_and_of_an_address_is_found_by_its_code() {
    let databases = databases().await;
    databases.migrate().await;
    databases
        .on_site("ALTER TABLE public.leads RENAME COLUMN phone TO telephone")
        .await;
    let stub = Stub::start().await;
    let taken = stub.0.strip_prefix("http://").unwrap();
    let more = format!("whatsapp.verify_token = 'verify'\n http.listen = '{taken}'\n admin.listen = '0.0.0.0:1'");
    let config = ConfigFile::new(&databases, &server(&stub, &format!("{}/differs", stub.0), &more));
    let diagnosis = Diagnosis::of(Process::start(&config, &["doctor", "--json"], "")).await;
    let mut expected: Vec<Expected<'_>> = SEEDS
        .iter()
        .map(|Seed(id, change, code)| (*code, if let App(app) = change { *app } else { *id }))
        .collect();
    expected.extend([
        ("verify_token_differs", "webhook"),
        ("signature_lost", "webhook"),
        ("listen_taken", "http.listen"),
        ("admin_public", "admin.listen"),
        ("front_end_plain", "http.cors_origins"),
        ("front_end_unreachable", "front.invalid"),
        ("jwt_keys", "no-keys"),
        ("site_schema", "Site DB"),
    ]);
    diagnosis.finds(&expected);
    diagnosis.says_nothing_bad_about("number 100");
    diagnosis.says_nothing_bad_about("app 900");
    for secret in ["token-1", "'secret'", "verify'"] {
        assert!(!diagnosis.output.contains(secret), "{secret}: {}", diagnosis.output);
    }

    // Another proxy, a Graph API that can't be reached, keys that are missing.
    let more = "whatsapp.graph_url = 'http://127.0.0.1:1'";
    let config = ConfigFile::new(
        &databases,
        &server(&stub, &stub.0, "").replace(&format!("whatsapp.graph_url = '{}'", stub.0), more),
    );
    let arguments = ["doctor", "--json", "--public-url", "http://127.0.0.1:1"];
    let unreachable = Diagnosis::of(Process::start(&config, &arguments, "")).await;
    unreachable.finds(&[
        ("graph_unreachable", "number 100"),
        ("public_url_unreachable", "127.0.0.1:1"),
        ("verify_token_unset", "whatsapp.verify_token"),
        ("server_not_running", "http.listen"),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_no_webhook_and_missing_keys_are_told() {
    let databases = databases().await;
    let stub = Stub::start().await;
    let number = "[[whatsapp.accounts]]\nphone_number_id = '100'\naccess_token = 'token-100'";
    let more = format!(
        "whatsapp.graph_url = '{0}'\n whatsapp.verify_token = 'verify'\n http.public_url = '{0}/a/b/c/d'\n http.cors_origins = ['*']\n {number}",
        stub.0
    );
    let config = ConfigFile::new(&databases, &more);
    let diagnosis = Diagnosis::of(Process::start(&config, &["doctor", "--json"], "")).await;
    diagnosis.finds(&[
        ("configuration", "whatsapp.app_secrets"),
        ("configuration", "auth.tokens"),
        ("webhook_route", "/a/b/c/d/webhook"),
        ("front_end_any", "http.cors_origins"),
        ("not_migrated", "Site DB"),
    ]);
}
