//! Whatever is wrong with one table holds that table, or parks its rows; the others flow, are copied and resynced, and the
//! statement that is advised works when it is pasted. Many causes at the same time, each on a table of its own: at the
//! start, while the stream flows, while tables are read again, and after both connections are lost.

mod causes;

use std::collections::BTreeMap;

use causes::{CAUSES, Cause, On, Publication, Repair, Then};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{Daemon, SOON, Twins, databases, eventually};

/// What all causes need.
const BEFORE: &str = "
    CREATE TABLE one (id int PRIMARY KEY, v text);
    CREATE TABLE two (id int PRIMARY KEY, v text);
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$not now$$; END';
    CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none";

/// Names that need quoting in every way.
struct Names {
    schema: String,
    name: String,
    table: String,
    aside_name: String,
    aside: String,
    pkey: String,
    number: usize,
}

impl Names {
    fn of(number: usize) -> Self {
        let schema = format!("\"My Schema.{number}\"");
        let (name, aside_name) = (format!("\"T '{number}'.a\""), "\"As ide\"".to_owned());
        Self {
            table: format!("{schema}.{name}"),
            aside: format!("{schema}.{aside_name}"),
            pkey: format!("\"T '{number}'.a_pkey\""),
            schema,
            name,
            aside_name,
            number,
        }
    }

    fn fill(&self, sql: &str, role: &str) -> String {
        sql.replace("{t}", &self.table)
            .replace("{schema}", &self.schema)
            .replace("{name}", &self.name)
            .replace("{aside}", &self.aside)
            .replace("{aside_name}", &self.aside_name)
            .replace("{pkey}", &self.pkey)
            .replace("{number}", &self.number.to_string())
            .replace("{role}", role)
    }
}

/// A daemon's databases, with a table for each cause.
struct World {
    twins: Twins,
    /// The daemon's role on both sides, quoted.
    role: String,
    tables: Vec<(&'static Cause, Names)>,
    /// Sessions of the Agent DB that hold something, by the number of the table, each with its process id.
    sessions: BTreeMap<usize, (Client, String)>,
    /// Number of changes so far.
    round: usize,
}

impl World {
    /// `publication`: who adds tables to it.
    async fn new(publication: Publication) -> Self {
        let twins = Twins::on(databases().await.with_latin1_agent().await, BEFORE)
            .await
            .with("sync.tables = ['My Schema.*', 'public.*']\nsync.copy_chunk_rows = 40");
        let role = format!("\"Odd-{}\"", twins.site.name);
        let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'odd' REPLICATION");
        twins.on_both(&create).await;
        let (site, agent) = (as_role(&twins.site.url, &role), as_role(&twins.agent.url, &role));
        let mut world = Self {
            twins,
            role,
            tables: Vec::new(),
            sessions: BTreeMap::new(),
            round: 0,
        };
        world.create_tables(publication).await;
        world.twins.set_site_url(&site);
        world.twins.set_agent_url(&agent);
        world.change().await;
        world
    }

    async fn create_tables(&mut self, publication: Publication) {
        let (twins, role) = (&self.twins, &self.role);
        let with = match publication {
            Publication::Listed => "one, two",
            Publication::OfAll | Publication::Any => "",
        };
        let created = match with {
            "" => "FOR ALL TABLES".to_owned(),
            tables => format!("FOR TABLE {tables}"),
        };
        twins
            .on_site(&format!("CREATE PUBLICATION \"{}\" {created}", twins.site.name))
            .await;
        if publication == Publication::Listed {
            // The daemon adds tables that are its own.
            twins
                .on_site(&format!(
                    "GRANT CREATE ON DATABASE \"{name}\" TO {role}; ALTER PUBLICATION \"{name}\" OWNER TO {role}",
                    name = twins.site.name
                ))
                .await;
        }
        twins
            .on_agent(&format!("GRANT CREATE ON DATABASE \"{}\" TO {role}", twins.agent.name))
            .await;
        for (number, cause) in CAUSES.iter().enumerate() {
            if cause.with != Publication::Any && cause.with != publication {
                continue;
            }
            let names = Names::of(number);
            let create = names.fill(
                "CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {role}; CREATE DOMAIN {schema}.needed AS int NOT NULL;
                 CREATE TABLE {t} (id bigint PRIMARY KEY, body text, n int); GRANT ALL ON {t} TO {role}",
                role,
            );
            twins.on_both(&create).await;
            twins.on_agent(&names.fill(cause.before, role)).await;
            if publication == Publication::Listed {
                let add = format!("ALTER PUBLICATION \"{}\" ADD TABLE {}", twins.site.name, names.table);
                twins.on_site(&add).await;
            }
            self.tables.push((cause, names));
        }
        twins.on_both(&format!("GRANT ALL ON one, two TO {role}")).await;
    }

    /// Changes every table on the Site DB, in one transaction.
    async fn change(&mut self) {
        let from = 100 * self.round;
        let mut sql = format!("BEGIN; INSERT INTO one VALUES ({from}, 'a'); ");
        for (_, names) in &self.tables {
            sql += &names.fill(
                &format!(
                    "INSERT INTO {{t}} SELECT i, 'x', i FROM generate_series({from} + 1, {from} + 100) i;
                     UPDATE {{t}} SET body = body || 'y' WHERE id % 9 = 0; DELETE FROM {{t}} WHERE id % 50 = 49; "
                ),
                &self.role,
            );
        }
        sql += &format!("INSERT INTO two VALUES ({from}, 'b'); COMMIT");
        self.twins.on_site(&sql).await;
        self.round += 1;
    }

    async fn run(&self, on: On, sql: &str) {
        let sql = sql.replace("{publication}", &format!("\"{}\"", self.twins.site.name));
        match on {
            On::Site => self.twins.on_site(&sql).await,
            On::Agent | On::AgentSession => self.twins.on_agent(&sql).await,
        }
    }

    async fn break_all(&mut self) {
        for (cause, names) in &self.tables {
            let broken = names.fill(cause.broken, &self.role);
            if cause.on != On::AgentSession {
                self.run(cause.on, &broken).await;
                continue;
            }
            let session = self.twins.agent.connect().await;
            session.batch_execute(&broken).await.unwrap();
            let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
            self.sessions.insert(names.number, (session, pid.to_string()));
        }
    }

    /// The query in the reason finds the session, which ends.
    async fn end_session(&self, names: &Names) {
        // It may just be tried again.
        let held = eventually("it is held", SOON, || async {
            let (state, detail) = self.seen(names).await;
            if state == "held" { Ok(detail) } else { Err(state) }
        });
        let (_, query) = advised(&held.await);
        let found = self.twins.agent.simple_query(&query).await.unwrap();
        let pids: Vec<&str> = found
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get("pid"),
                _ => None,
            })
            .collect();
        let (_, pid) = &self.sessions[&names.number];
        assert!(pids.contains(&&**pid), "{pid} is not among {pids:?}: {query}");
        self.twins
            .on_agent(&format!("SELECT pg_terminate_backend({pid})"))
            .await;
    }

    /// The state and reason of a cause's table, as the daemon's own tables have them.
    async fn seen(&self, names: &Names) -> (String, String) {
        let row = self
            .twins
            .agent
            .query_opt(
                "SELECT state, coalesce(detail, '') AS detail, hold_cause FROM twinlog.tables
                 WHERE quote_ident(schema_name) || '.' || quote_ident(table_name) = $1",
                &[&names.table],
            )
            .await
            .unwrap();
        row.map(|row| {
            let state: String = row.get("state");
            let cause: Option<String> = row.get("hold_cause");
            assert_eq!(cause.is_some(), state == "held", "{}: {cause:?}", names.table);
            (state, row.get("detail"))
        })
        .unwrap_or_default()
    }

    /// Each table is held for its cause, or has parked rows.
    async fn each_is_held(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        for (cause, names) in &self.tables {
            let (state, detail) = self.seen(names).await;
            let right = match cause.then {
                Then::Held(words) => state == "held" && detail.contains(words),
                Then::Parked => {
                    let parked = "SELECT count(*) FROM twinlog.failed_rows WHERE quote_ident(table_name) = $1";
                    let row = self.twins.agent.query_one(parked, &[&names.name]).await.unwrap();
                    row.get::<_, i64>(0) > 0
                }
            };
            if !right {
                wrong.push(format!("{}: {state}: {detail}", cause.name));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The others flow, are copied and resynced.
    async fn others_live(&mut self, phase: &str) {
        self.change().await;
        self.twins.until_equal(&["one", "two"]).await;
        self.twins
            .on_both(&format!(
                "CREATE TABLE new_{phase} (id int PRIMARY KEY); ALTER TABLE new_{phase} OWNER TO {}",
                self.role
            ))
            .await;
        self.twins
            .on_site(&format!("INSERT INTO new_{phase} SELECT generate_series(1, 100)"))
            .await;
        self.twins.until_table(&format!("new_{phase}"), "streaming", 0).await;
        self.twins.until_equal(&[&format!("new_{phase}")]).await;
        self.twins.on_agent("DELETE FROM one WHERE id % 200 = 0").await;
        self.twins.succeeds(&["resync", "one", "two", "--wait"]).await;
        self.twins.until_equal(&["one", "two"]).await;
    }

    /// Why a table is held. A restart may just have said less than the next look does.
    async fn reason(&self, cause: &Cause, names: &Names) -> String {
        let Then::Held(words) = cause.then else {
            return self.seen(names).await.1;
        };
        eventually("the reason is there", SOON, || async {
            let (state, detail) = self.seen(names).await;
            let is_said = state == "held" && detail.contains(words);
            if is_said {
                Ok(detail)
            } else {
                Err(format!("{}: {state}: {detail}", cause.name))
            }
        })
        .await
    }

    /// Repairs each table, by the statement that its reason names.
    async fn repair_all(&self) {
        for (cause, names) in &self.tables {
            match cause.repair {
                Repair::SessionEnded => self.end_session(names).await,
                Repair::By(sql) => self.run(cause.on, &names.fill(sql, &self.role)).await,
                Repair::Pasted => {
                    let (on, sql) = advised(&self.reason(cause, names).await);
                    eprintln!("{}: {sql}", cause.name);
                    self.run(on, &sql).await;
                }
            }
        }
    }

    /// All are released, healed and equal.
    async fn all_are_equal(&self) {
        eventually("all are released", 4 * SOON, || async {
            let mut wrong = Vec::new();
            for (cause, names) in &self.tables {
                let (state, detail) = self.seen(names).await;
                if state != "streaming" {
                    wrong.push(format!("{}: {state}: {detail}", cause.name));
                }
            }
            if wrong.is_empty() { Ok(()) } else { Err(wrong) }
        })
        .await;
        self.twins.until_parked_within(2 * SOON, 0).await;
        eventually("all are equal", 2 * SOON, || async {
            let mut wrong = Vec::new();
            for (cause, names) in &self.tables {
                // The Agent DB's table may have more columns.
                let columns = format!(
                    "SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute
                     WHERE attrelid = $${}$$::regclass AND attnum > 0 AND NOT attisdropped",
                    names.table
                );
                let columns = self.twins.site.value(&columns).await;
                let digest = format!(
                    "SELECT count(*) || ' ' || md5(string_agg((ROW({columns}))::text, ' ' ORDER BY id)) FROM {}",
                    names.table
                );
                let (site, agent) = tokio::join!(self.twins.site.text(&digest), self.twins.agent.text(&digest));
                if site != agent {
                    wrong.push(format!("{}: {site:?}, {agent:?}", cause.name));
                }
            }
            if wrong.is_empty() { Ok(()) } else { Err(wrong) }
        })
        .await;
        self.twins.assert_balanced().await;
    }

    /// What is common to all phases, after the tables were broken.
    async fn is_isolated(&mut self, phase: &str) {
        self.change().await;
        eventually("each is held", 4 * SOON, || self.each_is_held()).await;
        let status = self.twins.fails(&["status", "--json"]).await;
        for cause in ["table_missing", "rights", "key", "row_security", "column_unwritable"] {
            assert!(
                status.contains(&format!(r#""hold_cause":"{cause}""#)),
                "{cause}: {status}"
            );
        }
        self.others_live(phase).await;
        self.repair_all().await;
        self.all_are_equal().await;
    }
}

/// The URL of a role whose name needs quoting.
fn as_role(url: &str, role: &str) -> String {
    let (_, host) = url.split_once('@').unwrap();
    format!("postgresql://{}:odd@{host}", role.replace('"', ""))
}

/// The statement in a reason, and where it is to be run.
fn advised(reason: &str) -> (On, String) {
    // An Agent DB in LATIN1 has no such dash.
    let reason = &reason.replace(" — ", " - ");
    let (on, rest) = match () {
        _ if reason.contains("of the Agent DB that h") => {
            return (On::Agent, reason[reason.find(": SELECT ").unwrap() + 2..].to_owned());
        }
        _ if reason.contains(" - in the Agent DB") => (On::Agent, reason.split_once(" - in the Agent DB").unwrap().1),
        _ if reason.contains(" - on the Site DB") => (On::Site, reason.split_once(" - on the Site DB").unwrap().1),
        _ => panic!("no statement in {reason}"),
    };
    let statements = rest.split_once(": ").unwrap().1;
    let end = statements.rfind(';').unwrap();
    (on, statements[..=end].to_owned())
}

impl World {
    async fn healthy(&self) -> Daemon {
        let daemon = self.twins.start().await;
        self.all_are_equal().await;
        daemon
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_tables_at_the_start_is_theirs_alone() {
    let mut world = World::new(Publication::OfAll).await;
    world.break_all().await;
    let _daemon = world.twins.start().await;
    world.is_isolated("start").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_tables_while_the_stream_flows_is_theirs_alone() {
    let mut world = World::new(Publication::Listed).await;
    let _daemon = world.healthy().await;
    world.break_all().await;
    world.change().await;
    world.is_isolated("stream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_tables_while_they_are_copied_is_theirs_alone() {
    let mut world = World::new(Publication::OfAll).await;
    // In the middle of first copies, each chunk of which takes a while.
    let mut daemon = world.twins.launch_with("copy.before_high_fence=sleep(50)");
    daemon.until_flowing().await;
    let copying = "SELECT count(*) > 0 FROM twinlog.tables WHERE state = 'copying' AND last_key IS NOT NULL";
    world
        .twins
        .until_agent("some tables are half copied", copying, "true")
        .await;
    world.break_all().await;
    world.change().await;
    world.is_isolated("copy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_tables_after_the_connections_are_lost_is_theirs_alone() {
    let mut world = World::new(Publication::Listed).await;
    let daemon = world.healthy().await;
    world.break_all().await;
    for on in [On::Site, On::Agent] {
        let lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'twinlog %'";
        world.run(on, lost).await;
    }
    world.change().await;
    world.is_isolated("reconnect").await;
    daemon.until_state("streaming").await;
}
