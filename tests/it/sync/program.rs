//! Random programs: transactions for the Site DB that change rows in every possible way.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The tables that programs write.
pub(super) const TABLES: &[&str] = &[
    "docs",
    "pairs",
    "codes",
    "swaps",
    "\"Odd Schema\".\"tä.ble\"",
    "made",
    "parents",
    "children",
    "nodes",
    "places",
    "bag",
    "marks",
    "ring",
];

/// Made on both sides. `docs.big` is stored out of line, so that most updates leave it out of the stream; `codes` has a
/// second unique index, `swaps` one that is checked at the end of a statement; the
/// odd one sends whole old rows and has names that need quotes, `made` is identified by another index than its key and has
/// columns that the database makes; then three that refer to each other and to themselves, of which some are checked at the
/// commit; `places` is identified by an index under which its primary key changes unnoticed, and now and then by something
/// else; `bag` has no key at all, `marks` a unique index alone, and both have lost columns; `ring` refers to itself, and is
/// checked at the commit alone.
pub(super) const SCHEMA: &str = "
    CREATE TABLE docs (id bigint PRIMARY KEY, n int NOT NULL, small text, big text);
    ALTER TABLE docs ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE pairs (a int, b text, v int, note text, PRIMARY KEY (a, b));
    CREATE TABLE codes (id int PRIMARY KEY, code text UNIQUE, big text);
    ALTER TABLE codes ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE swaps (id int PRIMARY KEY, place int NOT NULL UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
    CREATE SCHEMA \"Odd Schema\";
    CREATE TABLE \"Odd Schema\".\"tä.ble\" (\"select\" text PRIMARY KEY, \"Größe \"\"x\"\"\" numeric, big text, tags text[]);
    ALTER TABLE \"Odd Schema\".\"tä.ble\" REPLICA IDENTITY FULL;
    ALTER TABLE \"Odd Schema\".\"tä.ble\" ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code int NOT NULL UNIQUE, UNIQUE (id, code), twice int GENERATED ALWAYS AS (code * 2) STORED, big text);
    ALTER TABLE made REPLICA IDENTITY USING INDEX made_id_code_key;
    CREATE TABLE parents (id int PRIMARY KEY, name text);
    CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED, n int);
    CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes ON DELETE SET NULL DEFERRABLE);
    CREATE TABLE places (id int PRIMARY KEY, place text NOT NULL UNIQUE, n int, big text);
    ALTER TABLE places ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE places REPLICA IDENTITY USING INDEX places_place_key;
    CREATE TABLE bag (gone date, n int, label text, x float8, away text, doc json, big text, twice int GENERATED ALWAYS AS (n * 2) STORED);
    ALTER TABLE bag DROP gone, DROP away, ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE TABLE marks (gone int, v float8, at int NOT NULL, label text NOT NULL, big text);
    ALTER TABLE marks DROP gone, ALTER big SET STORAGE EXTERNAL;
    CREATE UNIQUE INDEX marks_key ON marks (label, at);
    ALTER TABLE marks REPLICA IDENTITY USING INDEX marks_key;
    CREATE TABLE ring (id text PRIMARY KEY, next text REFERENCES ring ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
        place bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)";

/// Rows that exist before the daemon starts.
pub(super) const SEED_ROWS: &str = "
    INSERT INTO docs SELECT i, 0, 's' || i, repeat(md5(i::text), 90) FROM generate_series(1, 400, 3) i;
    INSERT INTO pairs SELECT i % 10, chr(97 + i % 7), i, NULL FROM generate_series(1, 200) i ON CONFLICT DO NOTHING;
    INSERT INTO codes SELECT i, 'c' || i, repeat(md5(i::text), 80) FROM generate_series(1, 30) i;
    INSERT INTO swaps SELECT i, i FROM generate_series(1, 20) i;
    INSERT INTO parents SELECT i, 'p' || i FROM generate_series(1, 15) i;
    INSERT INTO children SELECT i, 1 + i % 15, 0 FROM generate_series(1, 40) i;
    INSERT INTO nodes SELECT i, CASE WHEN i % 4 <> 0 THEN 21 - i END FROM generate_series(1, 20) i;
    INSERT INTO places SELECT i, 'p' || i, 0, repeat(md5(i::text), 80) FROM generate_series(1, 30) i;
    INSERT INTO bag SELECT i % 5, nullif('l' || i % 3, 'l1'), i % 2, '{\"a\": 1}', NULL FROM generate_series(1, 100) i;
    INSERT INTO marks SELECT i, i, 'm' || i % 4, repeat(md5(i::text), 80) FROM generate_series(1, 20) i;
    INSERT INTO ring SELECT 'r' || i, 'r' || (i + 1) % 15, i FROM generate_series(0, 14) i";

/// Small, so that programs change their own rows again.
const DOCS: i64 = 60;

/// Writes transactions.
pub(super) struct Program {
    random: StdRng,
    /// Ids for bulk inserts that no other statement uses.
    next_bulk: i64,
}

impl Program {
    /// The program of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            next_bulk: 1_000_000 * i64::try_from(1 + seed % 1000).unwrap_or(1),
        }
    }

    fn below(&mut self, end: i64) -> i64 {
        self.random.random_range(0..end)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    /// One complete transaction. It may fail on the Site DB; then it is rolled back, which is a valid case.
    pub(super) fn transaction(&mut self) -> String {
        let statements = 1 + self.below(6);
        let mut sql = String::from("BEGIN;\n");
        for _ in 0..statements {
            if self.chance(12) {
                let statement = self.statement();
                let end = if self.chance(70) { "ROLLBACK TO s" } else { "RELEASE s" };
                sql.push_str(&format!("SAVEPOINT s;\n{statement};\n{end};\n"));
            } else {
                sql.push_str(&format!("{};\n", self.statement()));
            }
        }
        sql.push_str(if self.chance(6) { "ROLLBACK" } else { "COMMIT" });
        sql
    }

    /// Rows for COPY into `docs`: as many, and their text.
    pub(super) fn bulk(&mut self) -> String {
        let rows = 20 + self.below(300);
        (0..rows)
            .map(|row| {
                self.next_bulk += 1;
                let big = if row % 9 == 0 {
                    "long ".repeat(800)
                } else {
                    "\\N".to_owned()
                };
                format!("{}\t{row}\tbulk\\\\ \\t{row}\t{big}\n", self.next_bulk)
            })
            .collect()
    }

    fn statement(&mut self) -> String {
        match self.below(193) {
            165..185 => self.ring(),
            185..193 => self.marks(),
            135..150 => self.bag(),
            150..165 => self.places(),
            120..135 => self.family(),
            100..110 => self.odd(),
            110..120 => self.made(),
            0..60 => self.docs(),
            60..75 => self.pairs(),
            75..88 => self.codes(),
            88..98 => self.swaps(),
            _ => match self.below(4) {
                0 => "TRUNCATE pairs".to_owned(),
                1 => "TRUNCATE codes, swaps".to_owned(),
                2 => "TRUNCATE docs".to_owned(),
                _ => "TRUNCATE parents CASCADE".to_owned(),
            },
        }
    }

    fn big(&mut self) -> String {
        match self.below(4) {
            0 => "NULL".to_owned(),
            1 => "'short'".to_owned(),
            _ => format!("repeat(md5('{}'), 100)", self.below(1000)),
        }
    }

    fn docs(&mut self) -> String {
        let (id, to, n) = (self.below(DOCS), self.below(DOCS), self.below(40));
        let span = self.below(8);
        let free = "NOT EXISTS (SELECT FROM docs o WHERE o.id =";
        match self.below(12) {
            0 => format!(
                "INSERT INTO docs VALUES ({id}, {n}, 'new', {}) ON CONFLICT DO NOTHING",
                self.big()
            ),
            1 => format!(
                "INSERT INTO docs VALUES ({id}, {n}, 'up', {}) ON CONFLICT (id) DO UPDATE SET n = docs.n + 1, small = excluded.small",
                self.big()
            ),
            2 => format!(
                "INSERT INTO docs SELECT i, {n}, 'many', repeat(md5(i::text), 70) FROM generate_series({id}, {id} + {span}) i \
                 ON CONFLICT DO NOTHING"
            ),
            3 | 4 => format!("UPDATE docs SET n = n + {n} WHERE id BETWEEN {id} AND {id} + {span}"),
            5 => format!("UPDATE docs SET small = 'u{n}' WHERE n % 7 = {}", n % 7),
            6 => format!("UPDATE docs SET big = {} WHERE id = {id}", self.big()),
            7 => format!("UPDATE docs SET id = {to} WHERE id = {id} AND {free} {to})"),
            8 => format!(
                "UPDATE docs SET id = {to}, n = {n}, big = {} WHERE id = {id} AND {free} {to})",
                self.big()
            ),
            9 => {
                format!("UPDATE docs SET id = -id - 1 WHERE id BETWEEN {id} AND {id} + {span} AND {free} -docs.id - 1)")
            }
            10 => format!("DELETE FROM docs WHERE id BETWEEN {id} AND {id} + {}", span / 3),
            _ => format!(
                "DELETE FROM docs WHERE id = {id}; INSERT INTO docs VALUES ({id}, {n}, 'again', {}); \
                 UPDATE docs SET n = n + 1 WHERE id = {id}",
                self.big()
            ),
        }
    }

    fn pairs(&mut self) -> String {
        let (a, v) = (self.below(12), self.below(100));
        let (b, c) = (self.below(8), self.below(8));
        let (b, c) = (["a", "B", "c d", "é", "", "Z", "_", "ß"], [b, c]);
        let [b, c] = c.map(|at| b[usize::try_from(at).unwrap_or(0)]);
        match self.below(5) {
            0 | 1 => format!(
                "INSERT INTO pairs VALUES ({a}, '{b}', {v}) ON CONFLICT (a, b) DO UPDATE SET v = excluded.v, note = 'n{v}'"
            ),
            2 => format!("UPDATE pairs SET v = v + 1 WHERE a = {a}"),
            3 => format!(
                "UPDATE pairs SET b = '{c}' WHERE a = {a} AND b = '{b}' AND NOT EXISTS (SELECT FROM pairs o WHERE o.a = {a} AND o.b = '{c}')"
            ),
            _ => format!("DELETE FROM pairs WHERE a = {a} AND b = '{b}'"),
        }
    }

    /// Moves values of a unique column between rows within one transaction.
    fn codes(&mut self) -> String {
        let (x, y, fresh) = (self.below(30), self.below(30), self.below(100_000));
        match self.below(6) {
            0 => format!(
                "INSERT INTO codes VALUES ({x}, 'f{fresh}', repeat('y', {})) ON CONFLICT DO NOTHING",
                self.below(2) * 4000
            ),
            1 if x != y => format!(
                "CREATE TEMP TABLE IF NOT EXISTS held (id int, code text); TRUNCATE held; \
                 INSERT INTO held SELECT id, code FROM codes WHERE id IN ({x}, {y}); \
                 UPDATE codes SET code = 'tmp' || id || '-{fresh}' WHERE id IN ({x}, {y}); \
                 UPDATE codes c SET code = h.code FROM held h WHERE c.id IN ({x}, {y}) AND h.id = {x} + {y} - c.id"
            ),
            2 => format!(
                "WITH gone AS (DELETE FROM codes WHERE id = {x} RETURNING code) SELECT 1; \
                 INSERT INTO codes VALUES ({y}, 'g{fresh}', NULL) ON CONFLICT (id) DO UPDATE SET code = excluded.code"
            ),
            3 => format!(
                "CREATE TEMP TABLE IF NOT EXISTS held (id int, code text); TRUNCATE held; \
                 INSERT INTO held SELECT id, code FROM codes WHERE id = {x}; DELETE FROM codes WHERE id = {x}; \
                 UPDATE codes SET code = h.code FROM held h WHERE codes.id = {y}"
            ),
            4 => format!("UPDATE codes SET id = {y} WHERE id = {x} AND NOT EXISTS (SELECT FROM codes WHERE id = {y})"),
            _ => format!("UPDATE codes SET code = NULL WHERE id = {x}"),
        }
    }

    fn odd(&mut self) -> String {
        let table = "\"Odd Schema\".\"tä.ble\"";
        let (x, y, n) = (self.below(15), self.below(15), self.below(1000));
        match self.below(5) {
            0 | 1 => format!(
                "INSERT INTO {table} VALUES ('k ''{x}', {n}.50, {}, ARRAY['a,b', NULL, '{{\"x\"}}', 'é{n}']) \
                 ON CONFLICT DO NOTHING",
                self.big()
            ),
            2 => format!("UPDATE {table} SET \"Größe \"\"x\"\"\" = 'NaN', tags = NULL WHERE \"select\" = 'k ''{x}'"),
            3 => format!(
                "UPDATE {table} SET \"select\" = 'k ''{y}' WHERE \"select\" = 'k ''{x}' \
                 AND NOT EXISTS (SELECT FROM {table} WHERE \"select\" = 'k ''{y}')"
            ),
            _ => format!("DELETE FROM {table} WHERE \"select\" = 'k ''{x}'"),
        }
    }

    /// Rows that refer to each other.
    fn family(&mut self) -> String {
        let (x, y, child) = (self.below(15), self.below(15), self.below(40));
        match self.below(9) {
            7 => format!(
                "SET CONSTRAINTS nodes_up_fkey DEFERRED; INSERT INTO children VALUES ({child}, {x}, 2) ON CONFLICT (id) DO UPDATE SET parent = {x}; \
                 INSERT INTO nodes VALUES ({x}, {y}) ON CONFLICT DO NOTHING; INSERT INTO nodes VALUES ({y}, {x}) ON CONFLICT DO NOTHING; \
                 INSERT INTO parents VALUES ({x}, 'late') ON CONFLICT DO NOTHING"
            ),
            0 => format!("DELETE FROM parents WHERE id = {x}"),
            1 => format!(
                "INSERT INTO parents VALUES ({x}, 'again') ON CONFLICT DO NOTHING; \
                 INSERT INTO children VALUES ({child}, {x}, 1) ON CONFLICT (id) DO UPDATE SET parent = {x}"
            ),
            2 => format!(
                "UPDATE parents SET id = {y} WHERE id = {x} AND NOT EXISTS (SELECT FROM parents WHERE id = {y})"
            ),
            3 => format!(
                "UPDATE children SET n = n + 1, parent = (SELECT min(id) FROM parents WHERE id > {x}) WHERE id = {child}"
            ),
            4 => format!("DELETE FROM children WHERE parent = {x}; DELETE FROM parents WHERE id = {x}"),
            5 => format!(
                "INSERT INTO nodes VALUES ({x}, NULL) ON CONFLICT DO NOTHING; \
                 INSERT INTO nodes VALUES ({y}, {x}) ON CONFLICT DO NOTHING; UPDATE nodes SET up = {y} WHERE id = {x}"
            ),
            6 => format!("DELETE FROM nodes WHERE id IN ({x}, {y})"),
            _ => format!("UPDATE nodes SET up = NULL WHERE id = {x}; DELETE FROM nodes WHERE up = {x}"),
        }
    }

    fn places(&mut self) -> String {
        let (x, y, n) = (self.below(30), self.below(30), self.below(100));
        match self.below(7) {
            6 if n < 25 => {
                let identity = ["DEFAULT", "FULL", "USING INDEX places_place_key"][usize::try_from(y % 3).unwrap_or(0)];
                format!("ALTER TABLE places REPLICA IDENTITY {identity}")
            }
            0 => format!(
                "INSERT INTO places VALUES ({x}, 'p{y}', {n}, {}) ON CONFLICT DO NOTHING",
                self.big()
            ),
            1 => format!("UPDATE places SET n = n + 1 WHERE id % 5 = {}", x % 5),
            2 => {
                format!("UPDATE places SET id = {y} WHERE id = {x} AND NOT EXISTS (SELECT FROM places WHERE id = {y})")
            }
            3 => format!(
                "UPDATE places SET place = 'p{y}' WHERE id = {x} AND NOT EXISTS (SELECT FROM places WHERE place = 'p{y}')"
            ),
            4 => format!("UPDATE places SET n = {n}, big = {} WHERE id = {x}", self.big()),
            _ => format!("DELETE FROM places WHERE id = {x}"),
        }
    }

    /// Rows of which several are equal.
    fn bag(&mut self) -> String {
        let (n, m, rows) = (self.below(6), self.below(6), 1 + self.below(4));
        let some = format!("ctid IN (SELECT ctid FROM bag WHERE n = {n} ORDER BY ctid LIMIT {rows})");
        match self.below(9) {
            0 => format!("INSERT INTO bag SELECT {n}, NULL, {m}, '[]', NULL FROM generate_series(1, {rows})"),
            1 => format!(
                "INSERT INTO bag VALUES ({n}, 'l{m}', 'NaN', '{{\"a\":  {m}}}', {})",
                self.big()
            ),
            2 => format!("INSERT INTO bag SELECT {n}, 'many', '-0', NULL, NULL FROM generate_series(1, 30 * {rows})"),
            3 => format!("UPDATE bag SET n = {m} WHERE {some}"),
            4 => format!("UPDATE bag SET label = nullif('l{m}', 'l2'), x = NULL WHERE {some}"),
            5 => format!("UPDATE bag SET big = {} WHERE {some}", self.big()),
            6 => format!("UPDATE bag SET x = '-0' WHERE n = {n} AND x = 0"),
            7 => format!("DELETE FROM bag WHERE {some}"),
            _ if m == 0 => "TRUNCATE bag".to_owned(),
            _ => format!("DELETE FROM bag WHERE n = {n} AND label IS NOT NULL"),
        }
    }

    /// Rows that only a unique index tells apart.
    fn marks(&mut self) -> String {
        let (at, to, label) = (self.below(20), self.below(20), self.below(4));
        match self.below(6) {
            0 => format!(
                "INSERT INTO marks VALUES ('NaN', {at}, 'm{label}', {}) ON CONFLICT DO NOTHING",
                self.big()
            ),
            1 => format!("UPDATE marks SET v = nullif(v, 'NaN') * -1 WHERE at = {at}"),
            2 => {
                format!("UPDATE marks SET at = {to} WHERE at = {at} AND NOT EXISTS (SELECT FROM marks WHERE at = {to})")
            }
            3 => format!(
                "UPDATE marks SET label = label || '!', big = {} WHERE at = {at}",
                self.big()
            ),
            4 => format!(
                "UPDATE marks SET label = 'm' || at % 4 WHERE at = {at} AND NOT EXISTS (SELECT FROM marks m WHERE m.at = {at} AND m.label LIKE 'm_')"
            ),
            _ => format!("DELETE FROM marks WHERE at = {at}"),
        }
    }

    /// Rows that refer to each other in circles and change places, so that they fit together at the commit alone.
    fn ring(&mut self) -> String {
        let (x, y, place) = (self.below(15), self.below(15), self.below(40));
        match self.below(9) {
            0 => format!(
                "INSERT INTO ring VALUES ('r{x}', 'r{y}', (SELECT max(place) + 1 FROM ring)) ON CONFLICT (id) DO NOTHING; \
                 INSERT INTO ring VALUES ('r{y}', 'r{x}', (SELECT max(place) + 1 FROM ring)) ON CONFLICT (id) DO NOTHING"
            ),
            1 => format!(
                "UPDATE ring SET id = 'r{y}' WHERE id = 'r{x}' AND NOT EXISTS (SELECT FROM ring WHERE id = 'r{y}')"
            ),
            2 => "UPDATE ring SET place = place + 1".to_owned(),
            3 => format!(
                "UPDATE ring SET place = place + 1 WHERE place >= {place}; \
                 UPDATE ring SET place = {place} WHERE id = 'r{x}'"
            ),
            4 => format!("DELETE FROM ring WHERE id = 'r{x}'; UPDATE ring SET next = NULL WHERE next = 'r{x}'"),
            5 => format!("UPDATE ring SET next = (SELECT max(id) FROM ring WHERE id <= 'r{y}') WHERE id = 'r{x}'"),
            6 => format!(
                "DELETE FROM ring WHERE id = 'r{x}'; INSERT INTO ring VALUES ('r{x}', NULL, {place} + 1000) ON CONFLICT (id) DO NOTHING"
            ),
            7 => format!(
                "UPDATE ring r SET place = o.place FROM ring o WHERE r.id IN ('r{x}', 'r{y}') AND o.id IN ('r{x}', 'r{y}') AND r.id <> o.id"
            ),
            _ => format!("UPDATE ring SET place = NULL, next = id WHERE id = 'r{x}'"),
        }
    }

    fn made(&mut self) -> String {
        let (x, y) = (self.below(25), self.below(25));
        match self.below(4) {
            0 | 1 => format!(
                "INSERT INTO made (code, big) VALUES ({x}, {}) ON CONFLICT DO NOTHING",
                self.big()
            ),
            2 => format!(
                "UPDATE made SET code = {y} WHERE code = {x} AND NOT EXISTS (SELECT FROM made WHERE code = {y})"
            ),
            _ => format!("DELETE FROM made WHERE code = {x}"),
        }
    }

    fn swaps(&mut self) -> String {
        let (x, y) = (self.below(20), self.below(20));
        match self.below(4) {
            0 => "UPDATE swaps SET place = place + 1".to_owned(),
            1 => format!("DELETE FROM swaps WHERE id = {x}"),
            2 => format!(
                "INSERT INTO swaps SELECT {x}, coalesce(max(place), 0) + 1 FROM swaps ON CONFLICT (id) DO NOTHING"
            ),
            _ => format!(
                "UPDATE swaps s SET place = o.place FROM swaps o WHERE s.id IN ({x}, {y}) AND o.id IN ({x}, {y}) AND s.id <> o.id"
            ),
        }
    }
}
