//! Every statement against the schema that the migrations make: each is prepared, and the types of its binds and columns are
//! those that the code declares.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use harness::TestServers;
use store::sql::Shape;
use tokio_postgres::{Client, NoTls};

#[tokio::test]
async fn every_statement_takes_and_returns_what_the_code_declares() -> Result<()> {
    let servers = TestServers::shared()?;
    let name = format!("t{}", uuid::Uuid::now_v7().simple());
    let url = servers.copy_schema(&name).await?;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let mut faults = Vec::new();
    for shape in store::statements() {
        faults.extend(differences(&client, &shape).await);
    }
    drop(client);
    servers.delete(&name);
    anyhow::ensure!(faults.is_empty(), "\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn every_file_is_a_statement_and_every_statement_has_a_file_of_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/store/sql");
    let mut files = BTreeSet::new();
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
    let shapes = store::statements();
    let named: BTreeSet<String> = shapes.iter().map(|shape| shape.file.to_owned()).collect();
    assert_eq!(files.symmetric_difference(&named).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(named.len(), shapes.len(), "two statements have one file");
}

/// What differs between a statement's declaration and the database.
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
