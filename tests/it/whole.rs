//! The whole system as it runs in production: the real binary, both databases, Meta, clients and users, in the middle of
//! everything that can go wrong at once. Whatever happened, at the end nothing is lost, doubled or different.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use twinlog::dev::graph_simulator::{Fault, Inbound, Simulator};
use twinlog::dev::postgres::{Settings, Shutdown};

use crate::harness::private_databases;
use crate::harness::{ConfigFile, Databases, Process, SOON, differing_tables, eventually, eventually_equal};
use crate::server::{NUMBER, TOKEN, prompt, sections};
use crate::sync::accounting;

/// All business tables.
const TABLES: &[&str] = &[
    "public.whatsapp_accounts",
    "public.leads",
    "public.conversations",
    "public.whatsapp_messages",
    "public.message_status_events",
    "public.notifications",
    "public.auto_replies",
    "public.webhook_events",
];

/// Clients of each API.
const CLIENTS: usize = 3;
/// A client's own patience with one request; then it asks again under the same key.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often a client is told that nobody knows before it believes it.
const TOLD_UNKNOWN: u32 = 3;
/// After the storm everything must settle within this: a lost client's row is swept after send_by and some seconds.
const SETTLED: Duration = Duration::from_secs(45);

/// Short waits everywhere, and a log that tells the story if it ends badly.
const QUICK: &str = "
    [sync]
    retry_initial_ms = 50
    retry_max_ms = 500
    reconnect_max_ms = 500
    [http]
    send_wait_ms = 1500
";

/// The processes: one that is both halves, or one for each.
struct Twinlog {
    configs: Vec<(ConfigFile, &'static str)>,
    running: Vec<Process>,
}

impl Twinlog {
    fn new(db: &Databases, meta: &Simulator, commands: &[&'static str]) -> Self {
        let more = format!("{QUICK}{}", sections(&meta.url(), "simulator-token"));
        let configs = commands.iter().map(|&command| (ConfigFile::new(db, &more), command));
        Self {
            configs: configs.collect(),
            running: Vec::new(),
        }
    }

    /// Where clients and Meta find the server: the first process has it.
    fn http(&self, path: &str) -> String {
        self.configs[0].0.http(path)
    }

    async fn start(&mut self) {
        for at in 0..self.configs.len() {
            self.start_one(at).await;
        }
    }

    async fn start_one(&mut self, at: usize) {
        let (config, command) = &self.configs[at];
        let mut process = Process::start(config, &[command], "");
        process.wait_for_output("listening", SOON).await;
        if at < self.running.len() {
            self.running[at] = process;
        } else {
            self.running.push(process);
        }
    }

    async fn ready(&self) {
        let http = client();
        for (config, command) in &self.configs {
            eventually(&format!("{command} is ready"), SOON, || async {
                let answer = http
                    .get(config.admin("/readyz"))
                    .send()
                    .await
                    .map_err(|error| error.to_string())?;
                if answer.status() == 200 {
                    Ok(())
                } else {
                    Err(answer.text().await.unwrap_or_default())
                }
            })
            .await;
        }
    }

    /// `kill -9`, and at once the next one.
    async fn kill9(&mut self, db: &Databases, at: usize) {
        self.running[at].kill9();
        if at == 0 {
            time_passes(db).await;
        }
        self.start_one(at).await;
    }

    /// As systemd stops them: they end by themselves, well, and in time.
    async fn stop(&mut self) {
        let began = Instant::now();
        for process in &self.running {
            process.terminate();
        }
        for process in &mut self.running {
            let status = process.wait(Duration::from_secs(20)).await;
            let took = began.elapsed();
            assert!(
                status.success() && took < Duration::from_secs(10),
                "{status} after {took:?}: {}",
                process.output()
            );
        }
    }
}

/// What a dead server's leases would need some 20 s for. Only after a death: a living one's attempts are its own.
async fn time_passes(db: &Databases) {
    db.site
        .batch_execute(
            "UPDATE twinlog.number_leases SET lease_until = now();
             UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'",
        )
        .await
        .unwrap();
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

/// What a client knows of a message that it wanted sent.
#[derive(Debug)]
struct Wanted {
    key: String,
    /// The row's id, if an answer named it.
    id: Option<String>,
    /// Meta's, if an answer said that it was sent.
    wamid: Option<String>,
}

/// Clients and users, until they are told to stop.
struct Traffic {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Vec<Wanted>>,
    users: JoinSet<HashSet<String>>,
}

impl Traffic {
    fn start(twinlog: &Twinlog, meta: &Arc<Simulator>) -> Self {
        let mut traffic = Self {
            stop: CancellationToken::new(),
            answered: Arc::default(),
            clients: JoinSet::new(),
            users: JoinSet::new(),
        };
        for number in 0..CLIENTS {
            for route in [Route::Graph, Route::Plain] {
                let person = Person {
                    route,
                    number,
                    base: twinlog.http(""),
                    http: client(),
                };
                let (stop, answered) = (traffic.stop.clone(), Arc::clone(&traffic.answered));
                traffic.clients.spawn(person.write(stop, answered));
            }
        }
        traffic.users.spawn(users(Arc::clone(meta), traffic.stop.clone()));
        traffic.users.spawn(repeats(Arc::clone(meta), traffic.stop.clone()));
        let (meta, stop) = (Arc::clone(meta), traffic.stop.clone());
        tokio::spawn(async move { moods(&meta, &stop).await });
        traffic
    }

    /// Waits until clients have had so many answers more.
    async fn more(&self, answers: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + answers;
        eventually("clients get answers", SOON, || async {
            let now = self.answered.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(goal - now) }
        })
        .await;
    }

    /// Everybody ends what they are at: what the clients wanted, and what the users wrote.
    async fn end(mut self) -> (Vec<Wanted>, HashSet<String>) {
        self.stop.cancel();
        let (mut wanted, mut written) = (Vec::new(), HashSet::new());
        let ending = async {
            while let Some(ended) = self.clients.join_next().await {
                wanted.extend(ended.unwrap());
            }
            while let Some(ended) = self.users.join_next().await {
                written.extend(ended.unwrap());
            }
        };
        tokio::time::timeout(SETTLED, ending).await.unwrap();
        (wanted, written)
    }
}

#[derive(Debug, Clone, Copy)]
enum Route {
    Graph,
    Plain,
}

/// A client that sends one message after the other and asks again, under the same key, until it knows.
struct Person {
    route: Route,
    number: usize,
    base: String,
    http: reqwest::Client,
}

impl Person {
    async fn write(self, stop: CancellationToken, answered: Arc<AtomicU64>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for count in 0_usize.. {
            if stop.is_cancelled() {
                break;
            }
            let key = format!("{:?}-{}-{count}", self.route, self.number);
            let to = format!("+1650555{}{:03}", self.number, count % 7);
            let message = match self.route {
                Route::Graph => self.graph(&key, &to).await,
                Route::Plain => self.plain(&key, &to).await,
            };
            answered.fetch_add(1, Ordering::Relaxed);
            wanted.push(message);
        }
        wanted
    }

    async fn ask(&self, path: &str, key: &str, body: &Value) -> Option<(u16, Option<String>, Value)> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(TOKEN);
        let answer = request
            .header("idempotency-key", key)
            .body(body.to_string())
            .send()
            .await
            .ok()?;
        let id = answer.headers().get("x-twinlog-message-id");
        let id = id.and_then(|id| id.to_str().ok()).map(ToOwned::to_owned);
        Some((answer.status().as_u16(), id, answer.json().await.ok()?))
    }

    async fn graph(&self, key: &str, to: &str) -> Wanted {
        let body = json!({"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": key}});
        let path = format!("/v26.0/{NUMBER}/messages");
        let mut told_unknown = 0;
        loop {
            match self.ask(&path, key, &body).await {
                Some((200, id, body)) => {
                    let wamid = body["messages"][0]["id"].as_str().unwrap().to_owned();
                    return wanted(key, id, Some(wamid));
                }
                Some((504, id, _)) => {
                    told_unknown += 1;
                    if told_unknown == TOLD_UNKNOWN {
                        return wanted(key, id, None);
                    }
                }
                // Refused by Meta for good, in Meta's words.
                Some((400, id @ Some(_), _)) => return wanted(key, id, None),
                Some((503, ..)) | None => {}
                other => panic!("{key} got {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn plain(&self, key: &str, to: &str) -> Wanted {
        let body = json!({"to": to, "text": key, "wait": 300});
        loop {
            match self.ask("/v1/messages", key, &body).await {
                Some((200 | 202, id, body)) => {
                    assert_eq!(body["id"].as_str(), id.as_deref());
                    return wanted(key, id, None);
                }
                Some((503, ..)) | None => {}
                other => panic!("{key} got {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn wanted(key: &str, id: Option<String>, wamid: Option<String>) -> Wanted {
    Wanted {
        key: key.to_owned(),
        id,
        wamid,
    }
}

/// Users write, some of them first and some as an answer.
async fn users(meta: Arc<Simulator>, stop: CancellationToken) -> HashSet<String> {
    let mut written = HashSet::new();
    for count in 0_usize.. {
        if stop.is_cancelled() {
            break;
        }
        let from = format!("1650555{}{:03}", count % CLIENTS, count % 11);
        let kind = ["text", "image", "location", "button"][count % 4];
        let message = match kind {
            "text" => Inbound::text(NUMBER, &from, &format!("question {count}")),
            _ => Inbound::sample(NUMBER, &from, kind),
        };
        written.insert(meta.inbound(message).await);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    written
}

/// The same event again and again, though it had its 200: Meta does that.
async fn repeats(meta: Arc<Simulator>, stop: CancellationToken) -> HashSet<String> {
    let mut written = HashSet::new();
    for count in 0_usize.. {
        if stop.is_cancelled() {
            break;
        }
        let wamid = format!("wamid.repeated-{count}");
        let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [{
            "field": "messages",
            "value": {
                "messaging_product": "whatsapp",
                "metadata": {"display_phone_number": "15550783881", "phone_number_id": NUMBER},
                "contacts": [{"profile": {"name": "Twice"}, "wa_id": "16505559999"}],
                "messages": [{"id": wamid, "from": "16505559999", "timestamp": "1760000000", "type": "text",
                              "text": {"body": "did you get this?"}}],
            },
        }]}]});
        let body = body.to_string();
        let mut taken = 0;
        while taken < 3 {
            if meta.post_webhook(body.as_bytes()).await == Some(200) {
                taken += 1;
            } else {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        written.insert(wamid);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    written
}

/// Meta's moods, one after the other; statuses always come twice.
async fn moods(meta: &Simulator, stop: &CancellationToken) {
    let moods = [
        Fault::AcceptThenReset,
        Fault::StatusBeforeAnswer,
        Fault::Error {
            code: 131_000,
            subcode: None,
        },
        Fault::AcceptThenBadGateway,
        Fault::ReversedStatuses,
        Fault::TooManyRequests { retry_after_seconds: 0 },
        Fault::ResetUnaccepted,
        Fault::SlowAnswer { delay_ms: 400 },
        Fault::Error {
            code: 131_026,
            subcode: None,
        },
        Fault::FailLater { code: 131_047 },
        Fault::AcceptThenHang,
        Fault::HeldThenReleased { after_ms: 200 },
        Fault::ServerError,
    ];
    meta.set_fault(NUMBER, Fault::DuplicateStatuses).unwrap();
    for mood in moods.iter().cycle() {
        if stop.is_cancelled() {
            return;
        }
        meta.set_fault_times(NUMBER, *mood, 1).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn count(db: &Databases, query: &str) -> i64 {
    let count = db.site.text(&format!("SELECT count(*) FROM {query}")).await;
    count.unwrap().parse().unwrap()
}

/// Nothing is under way any more, anywhere.
async fn settled(db: &Databases, meta: &Simulator) {
    eventually_equal("Meta has its 200 for everything", SETTLED, 0, || async {
        meta.pending()
    })
    .await;
    eventually_equal("every event is processed", SETTLED, 0, || {
        count(db, "webhook_events WHERE state <> 'processed'")
    })
    .await;
    eventually_equal("no message is under way", SETTLED, 0, || {
        count(db, "whatsapp_messages WHERE status IN ('pending', 'sending')")
    })
    .await;
    eventually_equal("both databases are equal", SETTLED, Vec::<String>::new(), || {
        differing_tables(&db.site, &db.agent, TABLES)
    })
    .await;
}

/// What Meta knows, what the clients were told and what users wrote is what the Site DB holds.
async fn everything_is_there_once(db: &Databases, meta: &Simulator, wanted: &[Wanted], written: &HashSet<String>) {
    let ledger = meta.ledger();
    assert_eq!(ledger.duplicates(), Vec::<&str>::new(), "sent twice");
    let rows = db
        .site
        .query(
            "SELECT id::text, wamid, status, client_id FROM whatsapp_messages WHERE direction = 'outbound'",
            &[],
        )
        .await
        .unwrap();
    let rows: HashMap<String, (Option<String>, String, String)> = rows
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3))))
        .collect();

    // What was sent is recorded, under Meta's id, and its statuses arrived.
    let mut sent = HashSet::new();
    for message in &ledger.messages {
        let id = message
            .opaque
            .as_deref()
            .and_then(|opaque| opaque.strip_prefix("tl:"))
            .unwrap();
        let (wamid, status, _) = rows.get(id).unwrap_or_else(|| panic!("{message:?} has no row"));
        assert_eq!(wamid.as_deref(), Some(message.wamid.as_str()), "{id}");
        assert!(
            ["sent", "delivered", "failed"].contains(&status.as_str()),
            "{id} is {status}"
        );
        sent.insert(id);
    }
    // What was not sent does not look as if it were, and nothing is unknown of which there was a sign.
    for (id, (wamid, status, _)) in &rows {
        if !sent.contains(id.as_str()) {
            assert_eq!(*wamid, None, "{id}");
            assert!(
                ["unknown", "failed", "cancelled"].contains(&status.as_str()),
                "{id} is {status}"
            );
        }
    }
    // What the clients were told is so.
    let by_key: HashMap<&str, (&str, Option<&str>)> = rows
        .iter()
        .map(|(id, (wamid, _, key))| (key.as_str(), (id.as_str(), wamid.as_deref())))
        .collect();
    assert_eq!(by_key.len(), rows.len());
    for message in wanted {
        let (id, wamid) = by_key
            .get(message.key.as_str())
            .unwrap_or_else(|| panic!("{message:?} has no row"));
        assert!(
            message.id.as_deref().is_none_or(|told| told == *id),
            "{message:?} is {id}"
        );
        assert!(
            message.wamid.is_none() || message.wamid.as_deref() == *wamid,
            "{message:?}: {wamid:?}"
        );
    }
    assert_eq!(rows.len(), wanted.len());

    // What users wrote is there once, with all its effects once.
    let inbound = db
        .site
        .query("SELECT wamid FROM whatsapp_messages WHERE direction = 'inbound'", &[])
        .await
        .unwrap();
    let arrived: HashSet<String> = inbound.iter().map(|row| row.get(0)).collect();
    assert_eq!((&arrived, inbound.len()), (written, written.len()));
    let total = i64::try_from(written.len()).unwrap();
    assert_eq!(count(db, "notifications WHERE kind = 'inbound_message'").await, total);
    let unread = db
        .site
        .text("SELECT coalesce(sum(unread_count), 0) FROM conversations")
        .await;
    assert_eq!(unread, Some(total.to_string()));

    // Everything is linked.
    let unlinked = "whatsapp_messages m LEFT JOIN conversations c ON c.id = m.conversation_id
                    WHERE c.lead_id IS DISTINCT FROM m.lead_id OR c.account_id IS DISTINCT FROM m.account_id";
    assert_eq!(count(db, unlinked).await, 0);
    assert_eq!(count(db, "message_status_events WHERE message_id IS NULL").await, 0);

    let (received, accounted) = accounting(db).await;
    assert_eq!(received, accounted);
    assert_eq!(
        db.agent
            .text("SELECT count(*) FROM twinlog.failed_rows")
            .await
            .as_deref(),
        Some("0")
    );
}

/// Sessions of the replication slot end, as by a failover of a proxy.
async fn terminate_walsender(db: &Databases) {
    db.site
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active",
            &[&db.site.name],
        )
        .await
        .unwrap();
}

/// The storm, for these processes (the first one is the server).
async fn survives(commands: &[&'static str]) {
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    db.migrate().await;
    let meta = Arc::new(Simulator::start(prompt()).await.unwrap());
    let mut twinlog = Twinlog::new(&db, &meta, commands);
    meta.set_callback(Some(twinlog.http("/webhook").parse().unwrap()));
    twinlog.start().await;
    twinlog.ready().await;
    let traffic = Traffic::start(&twinlog, &meta);
    traffic.more(40).await;

    for round in 0..4 {
        for at in 0..commands.len() {
            twinlog.kill9(&db, at).await;
            traffic.more(10).await;
        }
        // Now and then a young one dies before it is ready.
        if round % 2 == 0 {
            twinlog.ready().await;
        }
    }
    terminate_walsender(&db).await;
    traffic.more(20).await;
    db.agent.cluster.restart(Shutdown::Kill).await.unwrap();
    traffic.more(20).await;
    db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
    db.site.reconnect().await;
    db.agent.reconnect().await;
    traffic.more(20).await;
    terminate_walsender(&db).await;
    twinlog.kill9(&db, 0).await;
    traffic.more(20).await;

    // An orderly restart in the middle of it all: nothing is left behind that anybody would have to wait for.
    twinlog.stop().await;
    twinlog.start().await;
    traffic.more(40).await;

    let (wanted, written) = traffic.end().await;
    twinlog.ready().await;
    settled(&db, &meta).await;
    everything_is_there_once(&db, &meta, &wanted, &written).await;
    twinlog.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_for_everything_loses_doubles_and_confuses_nothing() {
    Box::pin(survives(&["run"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_daemon_lose_double_and_confuse_nothing() {
    Box::pin(survives(&["serve", "sync"])).await;
}
