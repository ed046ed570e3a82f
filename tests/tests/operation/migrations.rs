//! Migrations go back as well as forth.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use testkit::{Stack, TestServers};
use tokio_postgres::Client;

/// The parts of a database as text: columns, indexes, functions and constraints. Partitions are left out: their days move on.
const SHAPE: &str = "
SELECT item FROM (
    SELECT format('%s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
    AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT indexdef FROM pg_indexes i JOIN pg_class c ON c.relname = i.tablename AND c.relnamespace = 'public'::regnamespace
    WHERE schemaname = 'public' AND NOT c.relispartition
    UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
    UNION ALL
    SELECT format('%s %s %s', c.relname, k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
    JOIN pg_class c ON c.oid = k.conrelid WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
) items (item) ORDER BY item";

async fn shape(sql: &Client) -> Result<Vec<String>> {
    Ok(sql.query(SHAPE, &[]).await?.iter().map(|row| row.get(0)).collect())
}

fn migrations() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn every_migration_goes_down_and_up_again() -> Result<()> {
    let stack = Stack::prepare(TestServers::shared()?, &[]).await?;
    let sql = stack.sql().await?;
    let before = shape(&sql).await?;
    sql.batch_execute("SET posthaste.tenant = '*'").await?;
    for folder in migrations()?.iter().rev() {
        let down = fs::read_to_string(folder.join("down.sql"))?;
        sql.batch_execute(&down).await.with_context(|| folder.display().to_string())?;
    }
    let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')";
    assert_eq!(stack.count(left).await?, 1, "only the list of migrations is left");
    sql.execute("DELETE FROM __diesel_schema_migrations", &[]).await?;
    stack.cli(&["migrate"])?;
    assert_eq!(shape(&sql).await?, before);
    Ok(())
}
