//! Every statement against the schema that the migrations make: each is prepared, and the types of its binds and columns are
//! those that the code declares. The plans of the hot ones are snapshots.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use domain::EventKind;
use store::sql::Shape;
use testkit::TestServers;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The statements that run for each message, or many times a second.
const HOT: [&str; 12] = [
    "accept/accept_plain.sql",
    "claim/claim_queued.sql",
    "claim/messages.sql",
    "due/release.sql",
    "events/record.sql",
    "inbox/list.sql",
    "keys/by_hash.sql",
    "lines/release_shares.sql",
    "outbox/mark_published.sql",
    "outbox/take.sql",
    "poll/poll.sql",
    "recipient_policy/load.sql",
];

#[tokio::test]
async fn every_statement_takes_and_returns_what_the_code_declares() -> Result<()> {
    let database = Database::create().await?;
    let mut faults = Vec::new();
    for shape in statements() {
        faults.extend(differences(&database.client, &shape).await);
    }
    anyhow::ensure!(faults.is_empty(), "\n{}", faults.join("\n"));
    // The query builder reads these columns.
    let columns = deliveries::schema::dead_letters_columns();
    database.client.prepare(columns.split(" -- binds").next().unwrap_or_default()).await?;
    Ok(())
}

/// A plan that changes is not wrong, but it is seen. Where a table can be read by an index, it is: the planner may not choose
/// otherwise because the tables are empty.
#[tokio::test]
async fn the_plans_of_the_hot_statements_are_known() -> Result<()> {
    let database = Database::create().await?;
    database.client.batch_execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off").await?;
    let shapes = statements();
    let mut plans = String::new();
    for file in HOT {
        let shape = shapes.iter().find(|shape| shape.file == file).with_context(|| format!("no statement {file}"))?;
        plans.push_str(&format!("{file}\n{}\n", plan(&database.client, shape).await?));
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("plans", plans);
    });
    Ok(())
}

/// The database function is in a migration, so a new kind of event needs another one.
#[tokio::test]
async fn the_bits_of_the_schema_are_those_of_the_table_of_event_kinds() -> Result<()> {
    let database = Database::create().await?;
    for kind in EventKind::ALL {
        let bits: i16 = database.client.query_one("SELECT reached_bits($1)", &[&kind.as_str()]).await?.get(0);
        assert_eq!(bits, kind.reached(), "{kind}");
    }
    Ok(())
}

#[test]
fn every_file_is_a_statement_and_every_statement_has_a_file_of_its_own() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let mut files = BTreeSet::new();
    for name in ["store", "records", "deliveries", "maintenance"] {
        let root = shared.join(name).join("sql");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.strip_prefix(&root).unwrap().to_string_lossy().into_owned());
                }
            }
        }
    }
    let shapes = statements();
    let named: BTreeSet<String> = shapes.iter().map(|shape| shape.file.to_owned()).collect();
    assert_eq!(files.symmetric_difference(&named).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(named.len(), shapes.len(), "two statements have one file");
}

/// A database with our schema.
struct Database {
    client: Client,
    servers: TestServers,
    name: String,
}

impl Database {
    async fn create() -> Result<Self> {
        let servers = TestServers::shared()?;
        let name = format!("t{}", uuid::Uuid::now_v7().simple());
        let url = servers.copy_schema(&name).await?;
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(Self { client, servers, name })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.servers.delete(&self.name);
    }
}

/// The indexes that a statement uses, without the days of partitions.
async fn plan(client: &Client, shape: &Shape) -> Result<String> {
    let binds = vec!["NULL"; shape.binds.len()].join(", ");
    client.batch_execute(&format!("DEALLOCATE ALL; PREPARE hot AS {}", shape.text)).await?;
    let execute = if binds.is_empty() { "hot".to_owned() } else { format!("hot({binds})") };
    let rows = client.simple_query(&format!("EXPLAIN (COSTS OFF) EXECUTE {execute}")).await?;
    let lines = rows.iter().filter_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let ways: BTreeSet<String> = lines.filter_map(way).map(|way| format!("  {way}")).collect();
    Ok(ways.into_iter().collect::<Vec<_>>().join("\n"))
}

/// The index that a line of a plan uses, or the table that it reads whole. Which kind of scan it is depends on PostgreSQL's version.
fn way(line: &str) -> Option<String> {
    let line = line.trim_start_matches([' ', '-', '>']);
    let is_index = line.starts_with("Index") || line.starts_with("Bitmap Index");
    let name = match line.split_once(" using ") {
        Some((_, rest)) if is_index => rest.split(' ').next()?,
        _ if is_index => line.split_once(" on ")?.1,
        _ => return line.strip_prefix("Seq Scan on ").map(|table| format!("whole {}", without_day(table))),
    };
    Some(without_day(name))
}

/// `deliveries_20261130_pkey` is `deliveries_DAY_pkey`.
fn without_day(name: &str) -> String {
    let is_day = |part: &&str| part.len() == 8 && part.chars().all(|letter| letter.is_ascii_digit());
    name.split('_').map(|part| if is_day(&part) { "DAY" } else { part }).collect::<Vec<_>>().join("_")
}

/// Differences between a statement's declaration and the database.
async fn differences(client: &Client, shape: &Shape) -> Vec<String> {
    let file = shape.file;
    let prepared = match client.prepare(&shape.text).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let text = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            return vec![format!("{file}: {text}")];
        }
    };
    let mut found = Vec::new();
    for ((name, declared), real) in shape.binds.iter().zip(prepared.params()) {
        if *declared != real.oid() {
            found.push(format!("{file}: `:{name}` is {real} and declared with the type {declared}"));
        }
    }
    let Some(columns) = &shape.columns else { return found };
    for (place, (name, declared)) in columns.iter().enumerate() {
        let real = match *name {
            "" => prepared.columns().get(place),
            name => prepared.columns().iter().find(|column| column.name() == name),
        };
        match real {
            None => found.push(format!("{file}: returns no column `{name}`")),
            Some(real) if real.type_().oid() != *declared => {
                found.push(format!("{file}: `{name}` is {} and declared with the type {declared}", real.type_()));
            }
            Some(_) => {}
        }
    }
    let extra = prepared.columns().len().saturating_sub(columns.len());
    if extra > 0 {
        found.push(format!("{file}: returns {extra} columns that the code does not read"));
    }
    found
}

/// Every statement of every crate.
fn statements() -> Vec<Shape> {
    [store::statements(), records::statements(), deliveries::statements(), maintenance::statements()].concat()
}
