//! No circles inside a folder: the files of a folder, and its subfolders, import each other in one direction only.
//!
//! What counts, for each folder under `src`:
//!
//! - A node is a file of the folder or one of its subfolders with everything in it. `mod.rs` is a file like the others.
//! - An edge is a path in the code, in a `use` or in an expression, that leads to another node: `super::x`,
//!   `crate::folder::x`, `self::x`, or `x::…` where `x` is a child of the file itself. What `mod.rs` imports or re-exports leads to
//!   the file that defines it, so `super::Item` is an edge to that file, and to `mod.rs` only if it is defined there.
//! - The `pub use` lines of a `mod.rs` are its table of contents and no edge.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{Source, sources};

type Path = Vec<String>;

/// The modules of the crate: which there are, and what each `mod.rs` re-exports.
struct Modules {
    /// Paths of all modules, without `crate`.
    known: BTreeSet<Path>,
    /// Module → name → what the name stands for.
    exports: BTreeMap<Path, BTreeMap<String, Path>>,
}

impl Modules {
    fn read(sources: &[Source]) -> Self {
        let known: BTreeSet<Path> = sources.iter().map(module_path).collect();
        let mut modules = Self {
            known,
            exports: BTreeMap::new(),
        };
        for source in sources {
            let here = module_path(source);
            let mut exports = BTreeMap::new();
            // Private ones too: children may name what their `mod.rs` imports.
            for (statement, _) in uses(&source.code) {
                for (path, name) in paths_in(statement, &modules, &here) {
                    exports.insert(name, path);
                }
            }
            modules.exports.insert(here, exports);
        }
        modules
    }

    /// The file in which the end of a path is defined.
    fn resolve(&self, path: &[String]) -> Path {
        let mut path = path.to_vec();
        // Re-exports of re-exports; a loop of them would not compile.
        for _ in 0..10 {
            let length = (0..=path.len())
                .rev()
                .find(|&length| self.known.contains(&path[..length]))
                .unwrap_or(0);
            let module = path[..length].to_vec();
            let target = path.get(length).and_then(|item| self.exports.get(&module)?.get(item));
            match target {
                Some(target) => {
                    let rest = path[length + 1..].to_vec();
                    path = target.clone();
                    path.extend(rest);
                }
                None => return module,
            }
        }
        path
    }
}

/// `wire/pump.rs` → `wire::pump`, `wire/mod.rs` → `wire`, `lib.rs` → the root.
fn module_path(source: &Source) -> Path {
    let mut path: Path = source
        .path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if path.last().is_some_and(|last| last == "mod") || path == ["lib"] {
        path.pop();
    }
    path
}

/// The `use` statements, from the path to the semicolon, and whether each is public in any way.
fn uses(code: &str) -> Vec<(&str, bool)> {
    code.match_indices("use ")
        .filter_map(|(at, word)| {
            let before = code[..at].trim_end_matches(' ');
            let public = before.ends_with("pub") || before.ends_with(')');
            let path = &code[at + word.len()..];
            (public || before.is_empty() || before.ends_with(['\n', '{']))
                .then_some((&path[..=path.find(';')?], public))
        })
        .collect()
}

/// Every path in `code` that begins at a module of ours, absolute, with the name that it has at the end.
fn paths_in(code: &str, modules: &Modules, here: &[String]) -> Vec<(Path, String)> {
    let mut found = Vec::new();
    let mut before = ' ';
    for (at, first) in code.char_indices() {
        let starts = is_word(first) && !is_word(before) && !matches!(before, ':' | '.' | '\'' | '"');
        before = first;
        if !starts {
            continue;
        }
        let word = word_at(&code[at..]);
        let child: Path = here.iter().cloned().chain([word.to_owned()]).collect();
        let known = matches!(word, "crate" | "super" | "self") || modules.known.contains(&child);
        if known && code[at + word.len()..].starts_with("::") {
            for path in expand(&code[at..]).0 {
                let name = path.last().unwrap().clone();
                let (path, name) = match name.split_once(" as ") {
                    Some((item, alias)) => ([&path[..path.len() - 1], &[item.to_owned()]].concat(), alias.to_owned()),
                    None => (path, name),
                };
                found.push((absolute(&path, here), name));
            }
        }
    }
    found
}

fn absolute(path: &[String], here: &[String]) -> Path {
    let mut result: Path = match path[0].as_str() {
        "crate" => Vec::new(),
        _ => here.to_vec(),
    };
    for part in path {
        match part.as_str() {
            "crate" | "self" => {}
            "super" => drop(result.pop()),
            other => result.push(other.to_owned()),
        }
    }
    result
}

/// The paths of a tree such as `super::{a, b::{C, D as E}}`, and how long its text is.
fn expand(text: &str) -> (Vec<Path>, usize) {
    let mut prefix: Path = Vec::new();
    let mut at = 0;
    loop {
        let word = word_at(&text[at..]);
        if word.is_empty() {
            break;
        }
        at += word.len();
        prefix.push(word.to_owned());
        if !text[at..].starts_with("::") {
            break;
        }
        at += 2;
        if text[at..].starts_with('{') {
            at += 1;
            let mut paths = Vec::new();
            loop {
                at += text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
                if text[at..].is_empty() || text[at..].starts_with('}') {
                    return (paths, at + 1);
                }
                let (inner, length) = expand(&text[at..]);
                if length == 0 {
                    return (paths, at);
                }
                at += length;
                paths.extend(inner.into_iter().map(|path| [&prefix[..], &path].concat()));
            }
        }
    }
    if let Some(alias) = text[at..].strip_prefix(" as ") {
        let alias = word_at(alias);
        at += " as ".len() + alias.len();
        if let Some(last) = prefix.last_mut() {
            *last = format!("{last} as {alias}");
        }
    }
    if prefix.is_empty() {
        return (Vec::new(), 0);
    }
    (vec![prefix], at)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_at(text: &str) -> &str {
    let text = text.strip_prefix("r#").unwrap_or(text);
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// Folder → node → the nodes that it imports.
type Graphs = BTreeMap<Path, BTreeMap<String, BTreeSet<String>>>;

fn graphs(sources: &[Source]) -> Graphs {
    let modules = Modules::read(sources);
    let mut graphs = Graphs::new();
    for source in sources {
        let here = module_path(source);
        let mut code = source.code.clone();
        if source.path.ends_with("mod.rs") {
            for (statement, _) in uses(&source.code).into_iter().filter(|(_, public)| *public) {
                code = code.replace(statement, ";");
            }
        }
        for (path, _) in paths_in(&code, &modules, &here) {
            let target = modules.resolve(&path);
            // Below the root, where the map holds the arrows: every folder that both are in.
            for depth in 1..=here.len().min(target.len()) {
                if here[..depth] != target[..depth] {
                    break;
                }
                let (from, to) = (node(&here, depth), node(&target, depth));
                if from != to {
                    let graph = graphs.entry(here[..depth].to_vec()).or_default();
                    graph.entry(from).or_default().insert(to);
                }
            }
        }
    }
    graphs
}

fn node(path: &[String], depth: usize) -> String {
    path.get(depth).cloned().unwrap_or_else(|| "mod".to_owned())
}

/// A circle of the graph, as `a → b → a`.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    // The shortest way back to each node, breadth first.
    graph.keys().find_map(|start| {
        let mut ways = vec![vec![start]];
        let mut seen = BTreeSet::new();
        while let Some(way) = (!ways.is_empty()).then(|| ways.remove(0)) {
            for next in graph.get(*way.last().unwrap()).into_iter().flatten() {
                if next == start {
                    let names: Vec<&str> = way.iter().chain([&start]).map(|name| name.as_str()).collect();
                    return Some(names.join(" → "));
                }
                if seen.insert(next) {
                    ways.push([&way[..], &[next]].concat());
                }
            }
        }
        None
    })
}

#[test]
fn the_files_of_a_folder_do_not_import_each_other_in_a_circle() {
    let wrong: Vec<String> = graphs(&sources())
        .iter()
        .filter_map(|(folder, graph)| Some(format!("src/{}: {}", folder.join("/"), circle(graph)?)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn circles_are_found_through_groups_and_re_exports() {
    let source = |path: &str, code: &str| Source {
        path: path.into(),
        module: String::new(),
        text: String::new(),
        code: code.to_owned(),
    };
    let found = |sources: &[Source]| -> Vec<String> { graphs(sources).values().filter_map(circle).collect() };
    let one_way = [
        source(
            "a/mod.rs",
            "mod x;\nmod y;\npub use x::X;\npub(crate) use y::{Y as Why};",
        ),
        source("a/x.rs", "struct X;"),
        source("a/y.rs", "use super::X;\nstruct Y(crate::a::X);"),
    ];
    assert_eq!(found(&one_way), Vec::<String>::new());
    let over_the_export = [
        source(
            "a/mod.rs",
            "mod x;\nmod y;\npub use x::X;\npub(crate) use y::{Y as Why};",
        ),
        source("a/x.rs", "use super::{z::Z, Why};"),
        source("a/y.rs", "fn y() { crate::a::X::new() }"),
    ];
    assert_eq!(found(&over_the_export), ["x → y → x"]);
    let with_its_folder = [
        source("a/mod.rs", "mod x;\nuse x::run;\nstruct Settings;"),
        source("a/x/mod.rs", "mod deep;"),
        source("a/x/deep.rs", "use super::super::Settings;"),
    ];
    assert_eq!(found(&with_its_folder), ["mod → x → mod"]);
}
