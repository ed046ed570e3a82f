//! The rules of the house that the compiler cannot hold. Each is a function over text, and each is shown to be able
//! to fail by a planted violation.

mod circles;
mod code;
mod layers;
mod metrics;
mod states;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use code::{code_of, has_path};

/// Set to anything, this makes `.env.example` anew instead of comparing it.
const BLESS: &str = "POSTHASTE_TEST_BLESS";
/// Folders without sources of the project.
const SKIPPED: [&str; 3] = ["target", ".git", ".local"];
/// Names that the pure layer must not use: no broker, database, network, runtime, environment or clock.
const IMPURE: [&str; 9] =
    ["tokio", "diesel", "lapin", "reqwest", "std::env", "env::var", "Utc::now", "SystemTime::now", "Instant::now"];
/// The one file of the pure layer that reads the clock; it is asked at the edge.
const CLOCK: &str = "shared/domain/src/clock.rs";
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 9] =
    ["util", "utils", "helper", "helpers", "common", "misc", "types", "shared_types", "stuff"];
/// The code that may sleep on a thread: the development stack polls processes that cannot be awaited.
const MAY_SLEEP: [&str; 2] = ["testkit/servers/", "xtask/"];

/// Names that ADR 0019 replaced.
const OLD_WORDS: [&str; 60] = [
    "AsItIs",
    "Bell",
    "Beside",
    "Carrier",
    "Crew",
    "Db",
    "Early",
    "Farewell",
    "Found",
    "Happening",
    "Hearing",
    "Hooks",
    "Keeper",
    "Kept",
    "News",
    "Obstacle",
    "Pieces",
    "Pulse",
    "Remark",
    "Seat",
    "Shop",
    "Shortcut",
    "Standing",
    "Teller",
    "Telling",
    "Turns",
    "Unhashed",
    "Untold",
    "Verdict",
    "Wanted",
    "Whose",
    "Wishes",
    "Won",
    "aside",
    "be_heard",
    "bid_farewell",
    "board",
    "came_claimed",
    "crew",
    "elsewhere",
    "fly",
    "forget_at",
    "goodbye",
    "hear",
    "importing",
    "kept",
    "let_go",
    "pretend",
    "put_into",
    "read_away",
    "shortcut",
    "take_on",
    "tell_dead",
    "telling",
    "try_out",
    "turn_page",
    "unsaid",
    "utter",
    "wishes",
    "work_through",
];

#[test]
fn the_example_of_the_environment_is_the_table_of_settings() {
    let file = root().join(".env.example");
    if runtime::config::environment().contains_key(BLESS) {
        fs::write(&file, runtime::config::env_example()).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    let stale = first_difference(&written, &runtime::config::env_example());
    assert_eq!(stale, None, "make .env.example anew: {BLESS}=1 cargo test --package posthaste-tests --test tidy");
}

#[test]
fn a_stale_example_is_noticed() {
    assert_eq!(first_difference("A=1\nB=2\n", "A=1\nB=2\n"), None);
    assert_eq!(first_difference("A=1\nB=3\n", "A=1\nB=2\n"), Some("line 2: `B=3`, should be `B=2`".to_owned()));
    assert!(first_difference("A=1\n", "A=1\nB=2\n").is_some() && first_difference("A=1", "A=1\n").is_some());
}

#[test]
fn no_test_is_skipped_nothing_is_left_to_do_and_nobody_sleeps() {
    assert_clean(sources().flat_map(|(path, code)| shortcuts(&path, &code)));
}

#[test]
fn a_shortcut_is_noticed() {
    let found = |path, text: &str| shortcuts(path, &code_of(text)).len();
    for text in [
        "#[ignore]",
        "#[ignore = \"slow\"]",
        "todo!()",
        "unimplemented!(\"x\")",
        "std::thread::sleep(d)",
        "thread :: sleep(d)",
    ] {
        assert_eq!(found("worker/src/lib.rs", text), 1, "{text}");
    }
    assert_eq!(found("xtask/src/up.rs", "thread::sleep(d)"), 0);
    assert_eq!(
        found(
            "worker/src/lib.rs",
            "// todo!()\n/* #[ignore] */ let x = \"thread::sleep\"; r#\"todo!\"\"#; my_todo!();"
        ),
        0
    );
}

#[test]
fn the_domain_is_pure() {
    assert_clean(
        sources()
            .filter(|(path, _)| path.starts_with("shared/domain/src/") && path != CLOCK)
            .flat_map(|(path, code)| impurities(&path, &code)),
    );
}

#[test]
fn an_impure_domain_is_noticed() {
    for text in [
        "use tokio::time;",
        "use std::{env, fmt};\nlet x = env::var(n);",
        "let at = chrono::Utc::now();",
        "use diesel::prelude::*;",
    ] {
        assert!(!impurities("domain/x.rs", &code_of(text)).is_empty(), "{text}");
    }
    assert!(
        impurities("domain/x.rs", &code_of("/// Like tokio.\nlet id = Uuid::now_v7(); let tokio_like = 1;")).is_empty()
    );
}

#[test]
fn every_migration_goes_up_and_down() {
    let folders = entries(&root().join("migrations")).into_iter().filter(|path| path.is_dir());
    assert_clean(folders.flat_map(|folder| half_migrations(&relative(&folder), &names(&folder))));
}

#[test]
fn a_migration_without_a_way_back_is_noticed() {
    let files = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    assert!(half_migrations("2026-01-01-000000_add_x", &files(&["up.sql", "down.sql"])).is_empty());
    assert_eq!(
        half_migrations("2026-01-01-000000_add_x", &files(&["up.sql"])),
        ["2026-01-01-000000_add_x has no down.sql"]
    );
    assert_eq!(half_migrations("x", &files(&[])).len(), 2);
}

#[test]
fn every_decision_is_in_the_list_of_decisions() {
    let folder = root().join("docs/adr");
    let list = fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    assert_clean(unlisted(&list, &names(&folder)));
}

#[test]
fn an_unlisted_decision_is_noticed() {
    let files = ["README.md", "0001-one.md", "0002-two.md"].map(str::to_owned).into();
    assert_eq!(
        unlisted("* [One](0001-one.md)\n* 0002-two.md", &files),
        ["docs/adr/README.md does not link 0002-two.md"]
    );
    assert!(unlisted("[One](0001-one.md) [Two](./0002-two.md)", &files).is_empty());
}

#[test]
fn every_module_says_what_it_is_about() {
    assert_clean(sources().filter_map(|(path, _)| empty_name(&path)));
}

#[test]
fn a_name_that_says_nothing_is_noticed() {
    for path in ["worker/src/util.rs", "shared/src/helpers/mod.rs", "ingest/src/types.rs", "tests/tests/common/mod.rs"]
    {
        assert!(empty_name(path).is_some(), "{path}");
    }
    for path in ["worker/src/utility_bills.rs", "shared/domain/src/delivery/retry.rs", "docs/misc"] {
        assert_eq!(empty_name(path), None, "{path}");
    }
}

#[test]
fn old_words_stay_gone() {
    assert_clean(sources().flat_map(|(path, code)| old_words(&path, &code)));
}

#[test]
fn an_old_word_is_noticed() {
    assert_eq!(old_words("a.rs", "pub(crate) enum Verdict {}"), ["a.rs defines `Verdict`, see ADR 0019"]);
    assert_eq!(old_words("a.rs", "mod wishes;\nfn let_go() {}").len(), 2);
    assert!(old_words("a.rs", "enum Verdicts {} fn f() { found(Kept); }").is_empty());
}

#[test]
fn the_rules_see_the_files() {
    let files = sources().count();
    assert!(files > 20, "only {files} files found: a rule that reads nothing finds nothing");
}

/// Where two texts differ first.
fn first_difference(written: &str, wanted: &str) -> Option<String> {
    if written == wanted {
        return None;
    }
    let (mut written, mut wanted) = (written.split('\n'), wanted.split('\n'));
    (1..).find_map(|line| match (written.next(), wanted.next()) {
        (one, other) if one == other && one.is_some() => None,
        (one, other) => {
            Some(format!("line {line}: `{}`, should be `{}`", one.unwrap_or("the end"), other.unwrap_or("the end")))
        }
    })
}

/// Skipped tests, unfinished code and blocked threads.
fn shortcuts(path: &str, code: &str) -> Vec<String> {
    let dense: String = code.split_whitespace().collect();
    let mut found: Vec<&str> = Vec::new();
    found.extend(dense.contains("#[ignore").then_some("#[ignore]"));
    found.extend(has_path(code, "todo!").then_some("todo!"));
    found.extend(has_path(code, "unimplemented!").then_some("unimplemented!"));
    found.extend(
        (has_path(code, "thread::sleep") && !MAY_SLEEP.iter().any(|folder| path.starts_with(folder)))
            .then_some("thread::sleep"),
    );
    found.into_iter().map(|what| format!("{path} has {what}")).collect()
}

/// Types, modules and functions that have a name of the former vocabulary.
fn old_words(path: &str, code: &str) -> Vec<String> {
    let words = code.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let is_definition = |pair: &&[&str]| ["enum", "fn", "mod", "struct", "trait", "type"].contains(&pair[0]);
    let defined = words.windows(2).filter(is_definition).map(|pair| pair[1]);
    let old = defined.filter(|name| OLD_WORDS.contains(name));
    old.map(|name| format!("{path} defines `{name}`, see ADR 0019")).collect()
}

fn impurities(path: &str, code: &str) -> Vec<String> {
    IMPURE.iter().filter(|what| has_path(code, what)).map(|what| format!("{path} touches {what}")).collect()
}

fn half_migrations(folder: &str, files: &BTreeSet<String>) -> Vec<String> {
    ["up.sql", "down.sql"]
        .iter()
        .filter(|file| !files.contains(**file))
        .map(|file| format!("{folder} has no {file}"))
        .collect()
}

fn unlisted(list: &str, files: &BTreeSet<String>) -> Vec<String> {
    let linked = |file: &str| list.contains(&format!("]({file})")) || list.contains(&format!("](./{file})"));
    let decisions = files.iter().filter(|file| file.ends_with(".md") && *file != "README.md");
    decisions.filter(|file| !linked(file)).map(|file| format!("docs/adr/README.md does not link {file}")).collect()
}

fn empty_name(path: &str) -> Option<String> {
    let stem = path.strip_suffix(".rs")?;
    let empty = stem.split('/').find(|part| EMPTY_NAMES.contains(part))?;
    Some(format!("{path}: `{empty}` says nothing about what is inside"))
}

fn assert_clean(found: impl IntoIterator<Item = String>) {
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

/// Every Rust file of the workspace: its path from the root, and its code.
fn sources() -> impl Iterator<Item = (String, String)> {
    let files = files_below(&root()).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    files.map(|path| (relative(&path), code_of(&fs::read_to_string(&path).unwrap())))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let skipped = |path: &PathBuf| path.file_name().is_some_and(|name| SKIPPED.iter().any(|skipped| name == *skipped));
    let inside = entries(folder).into_iter().filter(|path| !skipped(path));
    inside.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The entries of a folder; none where there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|list| list.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

fn names(folder: &Path) -> BTreeSet<String> {
    entries(folder).iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
}
