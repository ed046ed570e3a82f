//! `posthaste users`: imports many people of a tenant, or exports or erases one.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use maintenance::{
    Maintenance,
    erasure::{Erased, Step},
};
use people::{
    imports::{
        job::{self, ImportError, Summary},
        rows::{Format, RowFault},
    },
    person_file,
};
use records::{Records, audit::person};
use serde_json::json;
use store::Store;
use tokio::sync::mpsc;

use crate::{
    output::{Output, table},
    progress, settings,
};

/// The most buffered pieces of an export.
const PIECES: usize = 16;

/// Import people from a file, write out or erase everything about one
#[derive(Debug, Subcommand)]
pub enum Command {
    Import(Import),
    Export(Export),
    Erase(Erase),
}

/// Import people from a CSV or NDJSON file of any size; bad rows are reported by line, the rest is imported
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  posthaste users import people.csv --tenant acme
  posthaste users import people.jsonl --tenant acme --format ndjson --json

CSV needs a header row with user_id and any of email, phone, name, locale, time_zone, quiet_start, quiet_end; other columns
become attributes. Exits with 1 where a row was refused. Running it again is safe.")]
pub struct Import {
    /// The file
    file: PathBuf,
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// How its rows are written; unless given, its name tells
    #[arg(long, value_enum)]
    format: Option<Form>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Csv,
    Ndjson,
}

/// Write out everything that is kept about a person, as one JSON document
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste users export ada --tenant acme")]
pub struct Export {
    /// The tenant's own id of the person
    id: String,
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
}

/// Erase all data that identifies a person or was written to them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  posthaste users erase ada --tenant acme")]
pub struct Erase {
    /// The tenant's own id of the person
    id: String,
    /// The tenant's name
    #[arg(long, value_name = "NAME")]
    tenant: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Import(args) => args.run(out).await,
            Self::Export(args) => args.run().await,
            Self::Erase(args) => args.run(out).await,
        }
    }
}

impl Import {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let format = self.format()?;
        let file = File::open(&self.file).with_context(|| format!("{} cannot be read", self.file.display()))?;
        let length = file.metadata().map(|file| file.len()).unwrap_or_default();
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        let id = store.imports().insert(tenant.id).await.context("failed to begin the import")?;
        let bar = progress::bar(length, "importing");
        let imported = job::import(&store, tenant.id, id, format, bar.wrap_read(file)).await;
        bar.finish_and_clear();
        // Rows imported before a failure stay, so the audit log records the import either way.
        settings::record(&store, "users import", id, Some(tenant.id)).await?;
        let summary = match imported {
            Ok(summary) => summary,
            Err(ImportError::Header(faults)) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                bail!("the header row cannot be used: {}", faults.join("; "));
            }
            Err(error) => return Err(error).context("the import ended early; what came before is stored"),
        };
        let Summary { rows, imported, failed, errors, .. } = &summary;
        let result = json!({"import_id": id, "rows": rows, "imported": imported, "failed": failed, "errors": errors});
        out.print(&result, |_| told(&summary))?;
        Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn format(&self) -> anyhow::Result<Format> {
        let by_name = |path: &Path| match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Format::Csv),
            "ndjson" | "jsonl" | "json" => Some(Format::Ndjson),
            _ => None,
        };
        match self.format {
            Some(Form::Csv) => Ok(Format::Csv),
            Some(Form::Ndjson) => Ok(Format::Ndjson),
            None => by_name(&self.file).context("say how the rows are written: --format csv or --format ndjson"),
        }
    }
}

fn told(summary: &Summary) -> String {
    let Summary { rows, imported, failed, errors, .. } = summary;
    let mut text = format!("imported {imported} of {rows} rows");
    if *failed > 0 {
        let row = |fault: &RowFault| vec![fault.line.to_string(), fault.field.clone(), fault.message.clone()];
        text.push_str(&format!(
            "; {failed} were refused:\n{}",
            table(&["LINE", "FIELD", "WHY"], errors.iter().map(row))
        ));
    }
    text
}

impl Export {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        settings::record(&store, "users export", person(store.sealer(), tenant.id, &self.id), Some(tenant.id)).await?;
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let writing = tokio::spawn(async move { person_file::write(&store, tenant.id, &self.id, true, sender).await });
        while let Some(piece) = pieces.recv().await {
            std::io::stdout().lock().write_all(&piece?)?;
        }
        writing.await?.context("what is kept could not be read to its end")?;
        writeln!(std::io::stdout().lock())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Erase {
    async fn run(self, out: Output) -> anyhow::Result<ExitCode> {
        let store = settings::store()?;
        let tenant = settings::tenant(&store, &self.tenant).await?;
        let spinner = progress::spinner("erasing");
        let (erased, is_pending) = erase(&store, &self, tenant.id).await.context("failed to erase")?;
        spinner.finish_and_clear();
        settings::record(&store, "users erase", person(store.sealer(), tenant.id, &self.id), Some(tenant.id)).await?;
        out.print(&json!({"erased": erased, "pending": is_pending}), |_| {
            let rest = if is_pending { "; what a worker holds right now follows within seconds" } else { "" };
            format!("erased {} messages and {} inbox entries{rest}", erased.messages, erased.inbox)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn erase(store: &Store, asked: &Erase, tenant: domain::TenantId) -> anyhow::Result<(Erased, bool)> {
    let mut erased = Erased::default();
    let person = store.erasure().begin(tenant, &asked.id, true).await?;
    loop {
        let step = store.erasure().step(&person, &mut erased).await?;
        if step != Step::More {
            return Ok((erased, step != Step::Done));
        }
    }
}
